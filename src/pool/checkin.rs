//! Taking connections back into a pool, and out of it when they end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Pool, cleanup::Parting, lease::Lease};
use crate::{
    connection::{Connection, status::Watch},
    telemetry::stats::count,
};

/// A connection that ends sooner than this, without having served anybody, says that more of them will.
const EARLY_END: Duration = Duration::from_secs(1);

impl Pool {
    /// Takes a connection back from its user.
    pub(crate) fn take_back(self: &Arc<Self>, connection: Connection) {
        if !connection.is_whole() {
            // Somebody has swapped its inside with another tenant's.
            return connection.close();
        }
        if let Some(taken) = connection.watch.take_hint_used() {
            self.shared.hints.give_back(taken);
        }
        if connection.watch.has_ended() {
            return; // its task sees to the rest
        }
        if !connection.watch.is_idle() {
            return self.part(connection);
        }
        connection.watch.mark_served();
        if connection.watch.session.needs_reset() {
            return self.part(connection);
        }
        self.park(connection);
    }

    /// Gives a connection to the longest waiter, or keeps it.
    pub(crate) fn park(self: &Arc<Self>, connection: Connection) {
        if connection.watch.is_outdated() {
            self.note_outdated_plan();
            return connection.close();
        }
        let mut state = self.state();
        if connection.watch.has_ended() {
            drop(state);
            return self.pump(); // its task saw to the rest, but for those who relied on its coming back
        }
        state.note_alive(&connection.watch);
        if state.has_wakers() && (state.lost.is_none() || state.dialing == 0) {
            self.tell_awake(&mut state, &connection.watch);
        }
        let watch = &connection.watch;
        if self.plans.are_doubtful() {
            watch.suspect(); // so that the next caller looks whether they are cleared
        }
        // A request to cancel may still be under way, and must not cost the next in turn its place.
        let spent = watch.is_expired() || watch.was_cancelled() || self.shared.life.is_over();
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
        } else if state.retired || self.shared.life.is_shut() {
            drop(state);
            connection.close();
        } else if let Err(stray) = state.push_idle(connection) {
            drop(state);
            self.part(stray);
        }
    }

    /// Takes a connection on which a request turned up although it was idle out of the pool.
    pub(crate) fn pull(self: &Arc<Self>, watch: &Arc<Watch>) {
        if let Some(connection) = self.take_idle(watch) {
            self.part(connection);
        }
    }

    /// Sees to a connection that came back busy, or with a session to reset, in a task of its own.
    pub(crate) fn part(self: &Arc<Self>, connection: Connection) {
        let parting = Parting::new(connection, self);
        self.shared.runtime.spawn(parting.run());
    }

    fn take_idle(&self, watch: &Arc<Watch>) -> Option<Connection> {
        let is_it = |idle: &Connection| Arc::ptr_eq(&idle.watch, watch);
        self.state().take_idle(is_it).pop()
    }

    /// Notes that a connection's task has ended.
    pub(crate) fn ended(self: &Arc<Self>, watch: &Arc<Watch>) {
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
        self.pump();
    }
}
