//! One connection to one server: its dialing, its driver, its status, and the verdict on its failures.

pub(crate) mod dial;
pub(crate) mod driver;
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
use tokio::time::Instant;

use self::status::ConnectionStatus;
use crate::{
    limits::budget::PermitId,
    model::{config::Config, endpoint::Endpoint},
};

/// A connection and its [status](ConnectionStatus).
///
/// It is boxed because it moves several times between pool and caller, half of the times under the pool's lock.
pub(crate) struct Connection(Box<ConnectionInner>);

/// The fields of a [`Connection`].
pub(crate) struct ConnectionInner {
    pub(crate) client: Client,
    pub(crate) status: Arc<ConnectionStatus>,
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
        Self(Box::new(ConnectionInner {
            client,
            status,
            permit_id,
            endpoint,
            statements,
        }))
    }

    pub(crate) fn has_original_client(&self) -> bool {
        Arc::ptr_eq(&self.statements, &self.client.statement_cache)
    }

    /// Closes it. Its task then sends Terminate to the server.
    pub(crate) fn close(self) {
        self.status.mark_closing();
    }

    pub(crate) fn health(&self, config: &Config) -> Health {
        self.health_at(Instant::now(), config)
    }

    pub(crate) fn health_at(&self, now: Instant, config: &Config) -> Health {
        // The driver's own `is_closed` changes at the same moment, but lies further away in memory.
        if self.status.has_ended() {
            Health::Closed
        } else if self.status.may_be_cancelled() {
            Health::CancelPending
        } else if !self.status.is_clean() || self.status.session.is_marked() {
            Health::Pending
        } else if self.status.is_suspect() || self.status.silent_at(now) > config.verify_after {
            Health::NeedsPing
        } else {
            Health::Healthy
        }
    }
}

impl Deref for Connection {
    type Target = ConnectionInner;

    fn deref(&self) -> &ConnectionInner {
        &self.0
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut ConnectionInner {
        &mut self.0
    }
}

/// The state of a connection, as far as it is known without asking the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    /// It can be used as it is.
    Healthy,
    /// A request may be about to be written on it, or an earlier user's request was written after it came back.
    Pending,
    /// It was silent for so long that it may be dead unnoticed, or it is suspect for another reason.
    NeedsPing,
    /// An earlier user's cancel request may still be under way, and would hit the next user's query.
    CancelPending,
    /// Its task has ended.
    Closed,
}
