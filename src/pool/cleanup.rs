//! The cleanup of a connection that came back busy, or with a session to reset.

use std::{mem, sync::Arc, time::Duration};

use super::{Pool, VERIFY_TIMEOUT, session_reset::reset};
use crate::{connection::Connection, model::endpoint::Route, telemetry::stats::count};

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
    pub(super) fn new(connection: Connection, pool: &Arc<Pool>) -> Self {
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
        let is_clean = self.settle().await;
        let is_reset = is_clean && self.reset().await;
        self.end_settling();
        if is_reset {
            if let Some(connection) = self.connection.take() {
                self.pool.hand_out(connection);
            }
            return;
        }
        self.pool.start_due_attempts(); // a waiter that counted on this connection needs another
        self.give_up(is_clean).await;
    }

    /// Sends a cancel request before the connection is closed. `clean`: no query is left, and only the reset failed.
    async fn give_up(&self, clean: bool) {
        let Some(connection) = &self.connection else {
            return;
        };
        let Connection { status, .. } = connection;
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
        let (token, peer) = (connection.client.cancel_token(), status.peer.get());
        let endpoint = &connection.endpoint;
        let sent = shared.dialer.cancel(token, endpoint, Route::Pooled, peer);
        let _ = sent.await; // the connection is closed in any case
    }

    /// Waits briefly until no request runs on the connection. Returns whether that is so.
    async fn settle(&self) -> bool {
        let Some(Connection { status, .. }) = &self.connection else {
            return false;
        };
        if status.is_idle() && status.session.needs_reset() {
            return true; // requests not written yet go out before the reset
        }
        let limit = if status.in_transaction() {
            ROLLBACK_TIMEOUT
        } else {
            SETTLE_TIMEOUT
        };
        status.clean_within(limit).await
    }

    /// Resets the session if it may hold state of the last caller. Returns whether the connection may be used again.
    async fn reset(&self) -> bool {
        let longest_silence = self.pool.shared.config.verify_after;
        match &self.connection {
            Some(connection) => {
                reset(&connection.client, &connection.status, longest_silence).await
            }
            None => false,
        }
    }

    /// Tells the pool that the connection no longer counts as one that will be free soon.
    fn end_settling(&mut self) {
        if mem::take(&mut self.settling) {
            self.pool.state().settling -= 1;
        }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.end_settling();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }
}
