//! What becomes of a connection that came back busy, or with a session to reset.

use std::{mem, sync::Arc, time::Duration};

use super::{Pool, VERIFY_TIMEOUT, session_reset::reset};
use crate::{
    connection::{Connection, ConnectionInner},
    model::endpoint::Route,
    telemetry::stats::count,
};

/// Longest wait for what a connection's last user left, if no transaction is open: it was probably abandoned.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(10);

/// Longest wait for the rollback of a transaction that was dropped: a round trip, also between regions.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection that came back with a query running, a transaction open, or a session to reset. Its drop closes it.
pub(crate) struct Cleanup {
    connection: Option<Connection>,
    settling: bool,
    pool: Arc<Pool>,
}

impl Cleanup {
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
                self.pool.release(connection);
            }
            return;
        }
        self.pool.start_due_dials(); // whoever waited for this one needs another
        self.give_up(clean).await;
    }

    /// Has the connection cancelled before it is closed. `clean`: whether only its session was in the way.
    async fn give_up(&self, clean: bool) {
        let Some(ConnectionInner {
            client,
            status: watch,
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
        let Some(ConnectionInner { status: watch, .. }) = self.connection.as_deref() else {
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
            Some(ConnectionInner {
                client,
                status: watch,
                ..
            }) => reset(client, watch, longest_silence).await,
            None => false,
        }
    }

    fn settled(&mut self) {
        if mem::take(&mut self.settling) {
            self.pool.state().settling -= 1;
        }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.settled();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }
}
