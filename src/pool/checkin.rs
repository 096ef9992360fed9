//! Check-in: returning connections to their pool, and removing them when they end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Pool, cleanup::Cleanup, loan::Loan};
use crate::{
    connection::{Connection, status::ConnectionStatus},
    telemetry::stats::count,
};

/// Lifetime below which an unused connection counts as an early end: the next ones will probably end early too.
const EARLY_END: Duration = Duration::from_secs(1);

impl Pool {
    /// Takes a connection back from its caller.
    pub(super) fn check_in(self: &Arc<Self>, connection: Connection) {
        if !connection.has_original_client() {
            // The caller has swapped its client with that of another tenant's connection.
            return connection.close();
        }
        if let Some(taken) = connection.status.take_hint_used() {
            self.shared.hints.give_back(taken);
        }
        if connection.status.has_ended() {
            return; // its task does the rest
        }
        if !connection.status.is_idle() {
            return self.clean_up(connection);
        }
        connection.status.mark_served();
        if connection.status.session.needs_reset() {
            return self.clean_up(connection);
        }
        self.hand_out(connection);
    }

    /// Hands a connection to the longest waiter, or keeps it idle; closes it if it must not be used again.
    pub(crate) fn hand_out(self: &Arc<Self>, connection: Connection) {
        let mut state = self.state();
        if connection.status.has_ended() {
            drop(state);
            self.request_clearing_for(&connection);
            return self.start_due_dials(); // its task did the rest, except for waiters that counted on this connection
        }
        state.note_alive(&connection.status);
        if state.has_wake_waiters() && (state.lost.is_none() || state.dialing == 0) {
            self.tell_awake(&mut state, &connection.status);
        }
        let status = &connection.status;
        if self.clearing.is_clearing_due() {
            status.suspect(); // so that the next caller checks whether the statements are cleared
        }
        // A cancel request may still be in flight. The next waiter could not use the connection, and would lose its
        // turn.
        let spent =
            status.is_expired() || status.was_cancelled() || self.shared.life.is_terminated();
        let surplus = state.surplus(&self.shared.config) > 0;
        let spent = spent || surplus || state.condemns(&connection);
        if spent || self.gives_way(&state, &connection) {
            status.mark_closing(); // now, so that `surplus` does not count it as one that stays
            drop(state);
            self.request_clearing_for(&connection);
            return connection.close();
        }
        if let Some(waiter) = state.next_waiter() {
            state.lent += 1;
            let lease = Loan::new(connection, Arc::clone(self));
            drop(state); // before the lease can come back, which takes the lock
            // If the waiter has just left, the lease is dropped here, and the connection goes to the next waiter.
            drop(waiter.turn.send(Ok(lease)));
        } else if state.retired || self.shared.life.is_stopping() {
            drop(state);
            connection.close();
        } else if let Err(stray) = state.push_idle(connection) {
            drop(state);
            self.clean_up(stray);
        }
    }

    /// Takes an idle connection out of the pool after a request turned up on it.
    pub(super) fn remove_stray(self: &Arc<Self>, status: &Arc<ConnectionStatus>) {
        if let Some(connection) = self.take_idle(status) {
            self.clean_up(connection);
        }
    }

    /// Starts the cleanup of a connection that came back busy or with a session to reset, in its own task.
    pub(super) fn clean_up(self: &Arc<Self>, connection: Connection) {
        self.request_clearing_for(&connection); // now, or the next caller could meet the same refusal
        let cleanup = Cleanup::new(connection, self);
        self.shared.runtime.spawn(cleanup.run());
    }

    fn take_idle(&self, status: &Arc<ConnectionStatus>) -> Option<Connection> {
        let is_it = |idle: &Connection| Arc::ptr_eq(&idle.status, status);
        self.state().take_idle(is_it).pop()
    }

    /// Notes that a connection's task has ended.
    pub(super) fn on_closed(self: &Arc<Self>, status: &Arc<ConnectionStatus>) {
        drop(self.take_idle(status));
        let mut state = self.state();
        state.remove_open(status);
        count(&self.shared.stats.closed);
        let ours = status.is_closing() && status.farewell().is_none();
        let early = !ours && !status.has_served() && status.opened().elapsed() < EARLY_END;
        state.early_ends = if early { state.early_ends + 1 } else { 0 };
        if !ours {
            count(&self.shared.stats.closed_by_peer);
            state.note_loss(status.died().unwrap_or_else(Instant::now));
        }
        drop(state);
        self.changed.notify_waiters(); // waiters may have no connection left to wait for
        self.start_due_dials();
    }
}
