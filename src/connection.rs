//! One connection to one server: its dialing, its driver, its status, and the verdict on its failures.

pub(crate) mod dial;
pub(crate) mod driver;
pub(crate) mod lexer;
mod session_state;
pub(crate) mod status;
pub(crate) mod stream;
mod tap;
pub(crate) mod verdict;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use deadpool_postgres::{Client, StatementCache};

use self::status::ConnectionStatus;
use crate::{limits::budget::PermitId, model::endpoint::Endpoint};

/// A connection and its [status](ConnectionStatus).
///
/// It is small because it moves several times between pool and caller, half of the times under the pool's lock. The
/// pool judges it by its status alone, so the status lies outside of the box.
pub(crate) struct Connection {
    inner: Box<ConnectionInner>,
    pub(crate) status: Arc<ConnectionStatus>,
}

/// The fields of a [`Connection`] that the pool does not need.
pub(crate) struct ConnectionInner {
    pub(crate) client: Client,
    /// The id of its permit in the budget.
    pub(crate) permit_id: PermitId,
    /// The endpoint at which it was opened.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The cache of the original client, which detects a swap: users get the client by `&mut` and may swap two clients.
    statements: Arc<StatementCache>,
}

impl Connection {
    pub(crate) fn new(
        client: Client,
        status: Arc<ConnectionStatus>,
        permit_id: PermitId,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let statements = Arc::clone(&client.statement_cache);
        let inner = Box::new(ConnectionInner {
            client,
            permit_id,
            endpoint,
            statements,
        });
        Self { inner, status }
    }

    pub(crate) fn has_original_client(&self) -> bool {
        Arc::ptr_eq(&self.statements, &self.client.statement_cache)
    }

    /// Closes it. Its task then sends Terminate to the server.
    pub(crate) fn close(self) {
        self.status.mark_closing();
    }
}

impl Deref for Connection {
    type Target = ConnectionInner;

    fn deref(&self) -> &ConnectionInner {
        &self.inner
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut ConnectionInner {
        &mut self.inner
    }
}
