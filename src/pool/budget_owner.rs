//! A pool as an owner of connections in the budget.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::{Pool, State};
use crate::{connection::Connection, limits::budget::Owner, telemetry::stats::count};

impl Pool {
    /// Returns whether another tenant needs the permit of `connection` more. If so, the caller must close the
    /// connection.
    pub(super) fn gives_way(self: &Arc<Self>, state: &State, connection: &Connection) -> bool {
        let budget = &self.shared.dialer.budget;
        if !budget.is_contended() {
            return false;
        }
        let opened = connection.status.opened();
        let gives_way = budget.should_yield(&connection.permit_id, opened, state.is_wanted());
        if gives_way {
            count(&self.shared.stats.closed_for_others);
        }
        gives_way
    }

    /// Returns the pool as the budget's `Owner`.
    pub(super) fn as_owner(self: &Arc<Self>) -> Weak<dyn Owner> {
        let pool: Weak<Self> = Arc::downgrade(self);
        pool
    }
}

impl Owner for Pool {
    fn idle_since(&self) -> Option<Instant> {
        self.state().idle_since()
    }

    fn close_idle(&self, unused_since: Instant) -> bool {
        let oldest = self.state().take_oldest_idle(unused_since);
        let Some(connection) = oldest else {
            return false;
        };
        self.shared
            .dialer
            .budget
            .mark_closing(&connection.permit_id);
        count(&self.shared.stats.closed_for_others);
        connection.close();
        true
    }

    fn close_spare(&self) -> bool {
        let spare = self.state().pop_spare();
        let Some(spare) = spare else {
            return false;
        };
        self.shared.dialer.budget.mark_closing(&spare.permit_id);
        true
    }

    fn reconsider(&self) {
        if !self.state().is_wanted() {
            self.changed.notify_waiters();
        }
    }
}
