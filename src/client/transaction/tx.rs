//! The connection that the closure of a transaction gets.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex},
};

use crate::{client::cancel::CancelToken, model::tenant::TenantId, pool::loan::Loan, sync::lock};

/// The connection inside a transaction that the router has begun and will end. Drop it, or let it go out of scope,
/// before the closure's future ends.
///
/// It derefs to deadpool-postgres's client, so `query_typed`, `prepare_cached` and everything that takes its
/// `GenericClient` (as `&*tx`) work. Do not send `BEGIN`, `COMMIT` or `ROLLBACK` on it; for savepoints, send
/// `SAVEPOINT` and `ROLLBACK TO` as text. Finish a stream of rows or a `COPY` before the closure ends: COMMIT waits for
/// it.
pub struct Tx {
    // `None` only during the drop.
    loan: Option<Loan>,
    home: Arc<Home>,
}

/// The place where a dropped [`Tx`] leaves its loan for the router to commit.
pub(super) type Home = Mutex<Option<Loan>>;

impl Tx {
    pub(in crate::client) fn new(loan: Loan, home: &Arc<Home>) -> Self {
        Self {
            loan: Some(loan),
            home: Arc::clone(home),
        }
    }

    fn loan(&self) -> &Loan {
        self.loan.as_ref().expect("only drop takes it")
    }

    /// Returns the tenant whose database this is.
    pub fn tenant(&self) -> &TenantId {
        self.loan().tenant()
    }

    /// Returns a token that cancels the running query from another task.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::of_loan(self.loan())
    }
}

impl Deref for Tx {
    type Target = deadpool_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.loan().connection().client
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        *lock(&self.home) = self.loan.take();
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("tenant", self.tenant())
            .finish_non_exhaustive()
    }
}
