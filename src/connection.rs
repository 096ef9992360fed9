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

use self::status::Watch;
use crate::{
    limits::budget::Seat,
    model::{config::Config, endpoint::Endpoint},
};

/// A connection and what is known of it.
///
/// In a box: it goes from hand to hand on its way to a caller and back, and half of this under the pool's lock.
pub(crate) struct Connection(Box<Parts>);

/// What a connection is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) watch: Arc<Watch>,
    /// By which the budget knows it.
    pub(crate) seat: Seat,
    /// Where it was opened.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The client's own, by which it is known again: users get at the client by `&mut`, and may swap two of them.
    statements: Arc<StatementCache>,
}

impl Connection {
    pub(crate) fn new(
        client: Client,
        watch: Arc<Watch>,
        seat: Seat,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let statements = Arc::clone(&client.statement_cache);
        Self(Box::new(Parts {
            client,
            watch,
            seat,
            endpoint,
            statements,
        }))
    }

    pub(crate) fn is_whole(&self) -> bool {
        Arc::ptr_eq(&self.statements, &self.client.statement_cache)
    }

    /// Ends it. Its task says goodbye to the server.
    pub(crate) fn close(self) {
        self.watch.mark_closing();
    }

    pub(crate) fn fitness(&self, config: &Config) -> Fitness {
        self.fitness_at(Instant::now(), config)
    }

    pub(crate) fn fitness_at(&self, now: Instant, config: &Config) -> Fitness {
        // The driver's own word, `is_closed`, is given at that same moment, and lies further away in memory.
        if self.watch.has_ended() {
            Fitness::Closed
        } else if self.watch.may_be_cancelled() {
            Fitness::Tainted
        } else if !self.watch.is_clean() || self.watch.session.is_marked() {
            Fitness::Unsettled
        } else if self.watch.is_suspect() || self.watch.silent_at(now) > config.verify_after {
            Fitness::Unverified
        } else {
            Fitness::Fit
        }
    }
}

impl Deref for Connection {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}

/// What can be said of a connection without asking the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fitness {
    /// Can be used as it is.
    Fit,
    /// Something may be about to be written on it, or an earlier user's request was written after it came back.
    Unsettled,
    /// Has lain so long that it may be dead without knowing, or is suspect for another reason.
    Unverified,
    /// An earlier user's request to cancel may still be under way, and would hit the next one.
    Tainted,
    /// Its task has ended.
    Closed,
}
