//! One connection to one server: opened, driven, watched, and judged where it fails.

pub(crate) mod dial;
pub(crate) mod driver;
pub(crate) mod session_state;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod tap;
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

/// A connection and what is known of it.
///
/// In a box: it goes from hand to hand on its way to a caller and back, and half of this under the pool's lock.
pub(crate) struct Connection(Box<ConnectionInner>);

/// What a connection is made of.
pub(crate) struct ConnectionInner {
    pub(crate) client: Client,
    pub(crate) status: Arc<ConnectionStatus>,
    /// By which the budget knows it.
    pub(crate) permit_id: PermitId,
    /// Where it was opened.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The client's own, by which it is known again: users get at the client by `&mut`, and may swap two of them.
    statements: Arc<StatementCache>,
}

impl Connection {
    pub(crate) fn new(
        client: Client,
        watch: Arc<ConnectionStatus>,
        seat: PermitId,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let statements = Arc::clone(&client.statement_cache);
        Self(Box::new(ConnectionInner {
            client,
            status: watch,
            permit_id: seat,
            endpoint,
            statements,
        }))
    }

    pub(crate) fn has_original_client(&self) -> bool {
        Arc::ptr_eq(&self.statements, &self.client.statement_cache)
    }

    /// Ends it. Its task says goodbye to the server.
    pub(crate) fn close(self) {
        self.status.mark_closing();
    }

    pub(crate) fn health(&self, config: &Config) -> Health {
        self.health_at(Instant::now(), config)
    }

    pub(crate) fn health_at(&self, now: Instant, config: &Config) -> Health {
        // The driver's own word, `is_closed`, is given at that same moment, and lies further away in memory.
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

/// What can be said of a connection without asking the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    /// Can be used as it is.
    Healthy,
    /// Something may be about to be written on it, or an earlier user's request was written after it came back.
    Pending,
    /// Has lain so long that it may be dead without knowing, or is suspect for another reason.
    NeedsPing,
    /// An earlier user's request to cancel may still be under way, and would hit the next one.
    CancelPending,
    /// Its task has ended.
    Closed,
}
