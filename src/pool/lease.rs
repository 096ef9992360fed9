//! A connection on loan, and what becomes of it when it comes back.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use deadpool_postgres::{Client, StatementCache};
use tokio::time::Instant;

use super::{Pool, VERIFY_TIMEOUT, session_reset::reset};
use crate::{
    connection::status::Watch,
    limits::budget::Seat,
    model::{
        config::Config,
        endpoint::{Endpoint, Route},
        tenant::TenantId,
    },
    telemetry::stats::count,
};

/// Longest wait for what a connection's last user left, if no transaction is open: it was probably abandoned.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(10);
/// Longest wait for the rollback of a transaction that was dropped: a round trip, also between regions.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(100);

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

/// A connection on loan. Dropping it gives it back.
pub(crate) struct Lease {
    connection: Option<Connection>,
    pool: Arc<Pool>,
}

impl Lease {
    pub(crate) fn new(connection: Connection, pool: Arc<Pool>) -> Self {
        connection.watch.lend();
        Self {
            connection: Some(connection),
            pool,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("only drop, end and discard take it")
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        self.connection
            .as_mut()
            .expect("only drop, end and discard take it")
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.pool.tenant
    }

    /// Has it closed instead of given back.
    pub(crate) fn end(mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }

    /// Has it cancelled and closed instead of given back.
    pub(crate) fn discard(mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.part(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.take_back(connection);
        }
    }
}

/// A connection that came back with a query running, a transaction open, or a session to reset. Its drop closes it.
pub(crate) struct Parting {
    connection: Option<Connection>,
    settling: bool,
    pool: Arc<Pool>,
}

impl Parting {
    pub(crate) fn new(connection: Connection, pool: &Arc<Pool>) -> Self {
        pool.state().settling += 1;
        Self {
            connection: Some(connection),
            settling: true,
            pool: Arc::clone(pool),
        }
    }

    /// Waits a moment for what is over anyway (a rollback under way), and resets the session where that is due; else
    /// cancels the query and closes.
    pub(crate) async fn run(mut self) {
        let clean = self.settle().await;
        let reset = clean && self.reset().await;
        self.settled();
        if reset {
            if let Some(connection) = self.connection.take() {
                self.pool.park(connection);
            }
            return;
        }
        self.pool.pump(); // whoever waited for this one needs another
        self.give_up(clean).await;
    }

    /// Has the connection cancelled before it is closed. `clean`: whether only its session was in the way.
    async fn give_up(&self, clean: bool) {
        let Some(Parts {
            client,
            watch,
            endpoint,
            ..
        }) = self.connection.as_deref()
        else {
            return;
        };
        if watch.is_unanswered() && watch.silent_for() >= VERIFY_TIMEOUT {
            self.pool.suspect_silent_for(VERIFY_TIMEOUT);
        }
        let Pool { tenant, shared, .. } = &*self.pool;
        let (tenant, sqlstate) = (tenant.as_str(), watch.last_sqlstate());
        count(&shared.stats.discarded);
        if clean {
            tracing::debug!(
                tenant,
                sqlstate,
                "session not reset; closing the connection"
            );
        } else {
            tracing::debug!(tenant, sqlstate, "connection came back busy; closing it");
        }
        if clean && watch.is_idle() {
            return; // nothing runs there
        }
        let token = client.cancel_token();
        let peer = watch.peer.get();
        let sent = shared.dialer.cancel(token, endpoint, Route::Pooled, peer);
        let _ = sent.await; // closing it is what counts
    }

    async fn settle(&self) -> bool {
        let Some(Parts { watch, .. }) = self.connection.as_deref() else {
            return false;
        };
        if watch.is_idle() && watch.session.needs_reset() {
            return true; // what is still to be written comes before a reset
        }
        let patience = if watch.in_transaction() {
            ROLLBACK_TIMEOUT
        } else {
            SETTLE_TIMEOUT
        };
        watch.clean_within(patience).await
    }

    /// Resets the session, if it may hold anything of its user's; says whether the connection may be handed on.
    async fn reset(&self) -> bool {
        let longest_silence = self.pool.shared.config.verify_after;
        match self.connection.as_deref() {
            Some(Parts { client, watch, .. }) => reset(client, watch, longest_silence).await,
            None => false,
        }
    }

    fn settled(&mut self) {
        if mem::take(&mut self.settling) {
            self.pool.state().settling -= 1;
        }
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        self.settled();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }
}
