//! The cleanup of a connection that came back busy, or with a session to reset.

use std::{mem, sync::Arc, time::Duration};

use super::{Pool, VERIFY_TIMEOUT, session_reset::reset};
use crate::{
    connection::{Connection, ConnectionInner},
    model::endpoint::Route,
    telemetry::stats::count,
};

/// Longest wait for a query that the last caller left running outside a transaction: it was probably abandoned.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(10);

/// Longest wait for the rollback of a dropped transaction: one round trip, also between regions.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection that came back with a query running, a transaction open, or a session to reset. Dropping it closes the
/// connection.
pub(super) struct Cleanup {
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

    /// Waits briefly for work that is about to end, such as a rollback, and resets the session if that is due. If one
    /// of the two fails, cancels the query and closes the connection.
    pub(super) async fn run(mut self) {
        let clean = self.settle().await;
        let reset = clean && self.reset().await;
        self.settled();
        if reset {
            if let Some(connection) = self.connection.take() {
                self.pool.hand_out(connection);
            }
            return;
        }
        self.pool.start_due_dials(); // a waiter that counted on this connection needs another
        self.give_up(clean).await;
    }

    /// Sends a cancel request before the connection is closed. `clean`: no query is left, and only the reset failed.
    async fn give_up(&self, clean: bool) {
        let Some(ConnectionInner {
            client,
            status,
            endpoint,
            ..
        }) = self.connection.as_deref()
        else {
            return;
        };
        if status.is_unanswered() && status.silent_for() >= VERIFY_TIMEOUT {
            self.pool.suspect_silent_for(VERIFY_TIMEOUT);
        }
        let Pool { tenant, shared, .. } = &*self.pool;
        let (tenant, sqlstate) = (tenant.as_str(), status.last_sqlstate());
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
        if clean && status.is_idle() {
            return; // nothing to cancel
        }
        let token = client.cancel_token();
        let peer = status.peer.get();
        let sent = shared.dialer.cancel(token, endpoint, Route::Pooled, peer);
        let _ = sent.await; // the connection is closed in any case
    }

    async fn settle(&self) -> bool {
        let Some(ConnectionInner { status, .. }) = self.connection.as_deref() else {
            return false;
        };
        if status.is_idle() && status.session.needs_reset() {
            return true; // requests not written yet go out before the reset
        }
        let patience = if status.in_transaction() {
            ROLLBACK_TIMEOUT
        } else {
            SETTLE_TIMEOUT
        };
        status.clean_within(patience).await
    }

    /// Resets the session if it may hold state of the last caller. Returns whether the connection may be used again.
    async fn reset(&self) -> bool {
        let longest_silence = self.pool.shared.config.verify_after;
        match self.connection.as_deref() {
            Some(ConnectionInner { client, status, .. }) => {
                reset(client, status, longest_silence).await
            }
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
