//! The queue of a pool: callers that wait for a connection, and callers that only want the database awake.

use std::mem;

use super::{State, Waiter, WakeWaiter};
use crate::model::config::Config;

/// Shortest queue that is searched for waiters that left.
pub(super) const SHORT_QUEUE: usize = 64;

impl State {
    /// Adds a caller to the queue, in front if it has had its turn before.
    pub(in crate::pool) fn enqueue(&mut self, waiter: Waiter, has_waited: bool) {
        if has_waited {
            return self.waiters.push_front(waiter);
        }
        if self.waiters.len() >= self.prune_waiters_at {
            // Waiters that left are searched only now and then, because a search goes through the whole queue.
            self.waiters.retain(|waiter| !waiter.sender.is_closed());
            self.prune_waiters_at = (2 * self.waiters.len()).max(SHORT_QUEUE);
        }
        self.waiters.push_back(waiter);
    }

    /// Adds a wake waiter. The next login that succeeds answers it, before any caller that wants a connection.
    pub(in crate::pool) fn await_wake(&mut self, waiter: WakeWaiter) {
        let wake_waiters = &mut self.rare.make().wake_waiters;
        wake_waiters.retain(|waiter| !waiter.done.is_closed());
        wake_waiters.push(waiter);
    }

    #[inline]
    pub(in crate::pool) fn has_wake_waiters(&self) -> bool {
        !self.rare.wake_waiters.is_empty()
    }

    /// Removes and returns the wake waiters for which `is_one` is true.
    pub(in crate::pool) fn take_wake_waiters(
        &mut self,
        is_one: impl Fn(&WakeWaiter) -> bool,
    ) -> Vec<WakeWaiter> {
        let mut taken = Vec::new();
        self.rare.reset(|rare| {
            taken = rare.wake_waiters.extract_if(.., |it| is_one(it)).collect();
        });
        taken
    }

    /// Removes and returns the longest waiter that has not left.
    pub(in crate::pool) fn next_waiter(&mut self) -> Option<Waiter> {
        std::iter::from_fn(|| self.waiters.pop_front()).find(|waiter| !waiter.sender.is_closed())
    }

    /// Removes and returns the waiters for which `is_one` is true.
    pub(in crate::pool) fn take_waiters(
        &mut self,
        is_one: impl Fn(&Waiter) -> bool,
    ) -> Vec<Waiter> {
        let waiters = mem::take(&mut self.waiters).into_iter();
        let (taken, kept): (Vec<_>, Vec<_>) = waiters.partition(is_one);
        self.waiters = kept.into();
        taken
    }

    /// Returns whether any caller waits.
    pub(in crate::pool) fn is_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.sender.is_closed())
            || self
                .rare
                .wake_waiters
                .iter()
                .any(|waiter| !waiter.done.is_closed())
    }

    /// Returns the number of waiting callers, some of which may have left.
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len() + self.rare.wake_waiters.len()
    }

    /// Returns the reason for a caller's wait, if it is that all connections that the tenant may have are held.
    pub(in crate::pool) fn full_message(&self, config: &Config) -> Option<String> {
        let limit = self.limit(config);
        if self.open.len() < limit || self.idle() > 0 {
            return None;
        }
        let setting = match self.max_connections {
            Some(_) => "max_connections of the tenant's entry",
            None => "pool_size",
        };
        let held = self.open.iter().map(|it| it.held_for()).max();
        let held = held
            .filter(|it| !it.is_zero())
            .map_or(String::new(), |it| format!(", one of them for {it:.1?}"));
        Some(format!(
            "all {limit} connections that the tenant may have are held{held}; hold them for less time, or raise \
             {setting}"
        ))
    }
}
