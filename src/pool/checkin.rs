//! Taking connections back into a pool, and out of it when they end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Pool, cleanup::Cleanup, lease::Lease};
use crate::{
    connection::{Connection, status::ConnectionStatus},
    telemetry::stats::count,
};

/// A connection that ends sooner than this, without having served anybody, says that more of them will.
const EARLY_END: Duration = Duration::from_secs(1);

impl Pool {
    /// Takes a connection back from its user.
    pub(crate) fn check_in(self: &Arc<Self>, connection: Connection) {
        if !connection.has_original_client() {
            // Somebody has swapped its inside with another tenant's.
            return connection.close();
        }
        if let Some(taken) = connection.status.take_hint_used() {
            self.shared.hints.give_back(taken);
        }
        if connection.status.has_ended() {
            return; // its task sees to the rest
        }
        if !connection.status.is_idle() {
            return self.clean_up(connection);
        }
        connection.status.mark_served();
        if connection.status.session.needs_reset() {
            return self.clean_up(connection);
        }
        self.release(connection);
    }

    /// Gives a connection to the longest waiter, or keeps it.
    pub(crate) fn release(self: &Arc<Self>, connection: Connection) {
        if connection.status.is_outdated() {
            self.note_outdated_plan();
            return connection.close();
        }
        let mut state = self.state();
        if connection.status.has_ended() {
            drop(state);
            return self.start_due_dials(); // its task saw to the rest, but for those who relied on its coming back
        }
        state.note_alive(&connection.status);
        if state.has_wake_waiters() && (state.lost.is_none() || state.dialing == 0) {
            self.tell_awake(&mut state, &connection.status);
        }
        let watch = &connection.status;
        if self.plans.are_doubtful() {
            watch.suspect(); // so that the next caller looks whether they are cleared
        }
        // A request to cancel may still be under way, and must not cost the next in turn its place.
        let spent = watch.is_expired() || watch.was_cancelled() || self.shared.life.is_terminated();
        let surplus = state.surplus(&self.shared.config) > 0;
        let spent = spent || surplus || state.condemns(&connection);
        if spent || self.gives_way(&state, &connection) {
            watch.mark_closing(); // now, so that nobody else takes it for one that stays
            drop(state);
            return connection.close();
        }
        if let Some(waiter) = state.next_waiter() {
            state.lent += 1;
            let lease = Lease::new(connection, Arc::clone(self));
            drop(state); // before the lease can come back, which takes the lock
            // A waiter that has just left hands it back by dropping the lease, and the next one gets it.
            drop(waiter.turn.send(Ok(lease)));
        } else if state.retired || self.shared.life.is_stopping() {
            drop(state);
            connection.close();
        } else if let Err(stray) = state.push_idle(connection) {
            drop(state);
            self.clean_up(stray);
        }
    }

    /// Takes a connection on which a request turned up although it was idle out of the pool.
    pub(crate) fn remove_stray(self: &Arc<Self>, watch: &Arc<ConnectionStatus>) {
        if let Some(connection) = self.take_idle(watch) {
            self.clean_up(connection);
        }
    }

    /// Sees to a connection that came back busy, or with a session to reset, in a task of its own.
    pub(crate) fn clean_up(self: &Arc<Self>, connection: Connection) {
        let parting = Cleanup::new(connection, self);
        self.shared.runtime.spawn(parting.run());
    }

    fn take_idle(&self, watch: &Arc<ConnectionStatus>) -> Option<Connection> {
        let is_it = |idle: &Connection| Arc::ptr_eq(&idle.status, watch);
        self.state().take_idle(is_it).pop()
    }

    /// Notes that a connection's task has ended.
    pub(crate) fn on_closed(self: &Arc<Self>, watch: &Arc<ConnectionStatus>) {
        drop(self.take_idle(watch));
        let mut state = self.state();
        state.remove_open(watch);
        count(&self.shared.stats.closed);
        let ours = watch.is_closing() && watch.farewell().is_none();
        let early = !ours && !watch.has_served() && watch.opened().elapsed() < EARLY_END;
        state.early_ends = if early { state.early_ends + 1 } else { 0 };
        if !ours {
            count(&self.shared.stats.closed_by_peer);
            state.note_loss(watch.died().unwrap_or_else(Instant::now));
        }
        drop(state);
        self.changed.notify_waiters(); // nobody may be left who could serve those who wait
        self.start_due_dials();
    }
}
