//! Limits on waiting callers, per key and in total.
//!
//! The limit only counts callers, and refuses those beyond it. The order in which they are served is not decided here.
//!
//! A key may have a [`Line`] of its own, which counts its callers without a lock. Callers of a key that has none are
//! counted in a map.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::wait_estimate::QueueSpeed;
use crate::sync::lock;

/// The waiting callers of all keys.
pub(crate) struct CallerLimit<K> {
    most_of_one: usize,
    most: usize,
    count: AtomicUsize,
    speed: QueueSpeed,
    /// Notified when no caller waits any more, if `is_watched`.
    emptied: Notify,
    /// `true` once [`emptied`](Self::emptied) was called.
    is_watched: AtomicBool,
    /// Number of callers in `lines`.
    mapped: AtomicUsize,
    // The callers of keys without a line of their own. Locked for a few instructions.
    lines: Mutex<HashMap<K, Line>>,
}

/// The waiting callers of one key.
#[derive(Debug)]
pub(crate) struct Line {
    waiting: AtomicUsize,
    speed: QueueSpeed,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            speed: QueueSpeed::new(0),
        }
    }

    /// Returns the number of its callers.
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Adds a caller. Returns the number of those before it.
    fn push(&self, now: u64) -> usize {
        let before = self.waiting.fetch_add(1, SeqCst);
        if before == 0 {
            self.speed.restart(now);
        }
        before
    }

    /// Removes a caller, which was served at that time if it was served. Returns the number of those left.
    fn pop(&self, served: Option<u64>) -> usize {
        if let Some(at) = served {
            self.speed.record(at);
        }
        self.waiting.fetch_sub(1, SeqCst) - 1
    }
}

/// The refusal of a caller beyond a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct QueueFull {
    /// `true` for the limit per key, `false` for the limit in total.
    pub(crate) of_one: bool,
    /// Number of callers that may wait.
    pub(crate) most: usize,
    /// Time after which the caller should try again.
    pub(crate) wait: Duration,
}

impl<K: Eq + Hash> CallerLimit<K> {
    /// Creates a limit of `most_of_one` callers per key and `most` in total.
    pub(crate) fn new(most_of_one: usize, most: usize) -> Self {
        Self {
            most_of_one,
            most,
            count: AtomicUsize::new(0),
            speed: QueueSpeed::new(0),
            emptied: Notify::new(),
            is_watched: AtomicBool::new(false),
            mapped: AtomicUsize::new(0),
            lines: Mutex::default(),
        }
    }

    /// Takes a slot among the callers that wait for `key`, in the key's own `line`. `now`: nanoseconds by the clock of
    /// all lines.
    pub(crate) fn try_enter_line<'a>(
        &'a self,
        line: &'a Line,
        key: &'a K,
        now: u64,
    ) -> Result<CallerSlot<'a, K>, QueueFull> {
        let before = line.push(now);
        let slot = self.slot(key, Some(line));
        let mapped = if self.mapped.load(SeqCst) == 0 {
            0
        } else {
            lock(&self.lines).get(key).map_or(0, Line::len)
        };
        self.check_one(&line.speed, before + mapped, now)?;
        slot.count(now)
    }

    /// Takes a slot among the callers that wait for `key`, which has no line of its own. But if it gets one now, or had
    /// one that is still in use, `in_line` returns the number of callers in that.
    pub(crate) fn try_enter<'a>(
        &'a self,
        key: &'a K,
        now: u64,
        in_line: impl FnOnce() -> usize,
    ) -> Result<CallerSlot<'a, K>, QueueFull>
    where
        K: Clone,
    {
        let before = {
            let mut lines = lock(&self.lines);
            self.mapped.fetch_add(1, SeqCst);
            let line = lines.entry(key.clone()).or_insert_with(Line::new);
            line.push(now)
        };
        let slot = self.slot(key, None);
        let before = before + in_line(); // counted after the push: of two callers that come at once, one sees the other
        if before >= self.most_of_one {
            let lines = lock(&self.lines);
            if let Some(line) = lines.get(key) {
                self.check_one(&line.speed, before, now)?;
            }
        }
        slot.count(now)
    }

    fn slot<'a>(&'a self, key: &'a K, line: Option<&'a Line>) -> CallerSlot<'a, K> {
        CallerSlot {
            limit: self,
            key,
            line,
            is_counted: false,
            served: None,
        }
    }

    /// Refuses a caller of one key if `before` others wait for it.
    fn check_one(&self, speed: &QueueSpeed, before: usize, now: u64) -> Result<(), QueueFull> {
        if before < self.most_of_one {
            return Ok(());
        }
        Err(QueueFull {
            of_one: true,
            most: self.most_of_one,
            wait: speed.retry_after(now, before),
        })
    }

    /// Returns the number of waiting callers.
    pub(crate) fn len(&self) -> usize {
        self.count.load(SeqCst)
    }

    /// Waits until no caller waits.
    pub(crate) async fn emptied(&self) {
        self.is_watched.store(true, SeqCst);
        loop {
            let emptied = self.emptied.notified();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// A slot among the waiting callers. Dropping it frees the slot.
#[must_use]
pub(crate) struct CallerSlot<'a, K: Eq + Hash> {
    limit: &'a CallerLimit<K>,
    key: &'a K,
    /// The key's own line; `None` if the slot is in the map.
    line: Option<&'a Line>,
    /// `true` once the caller counts in total.
    is_counted: bool,
    served: Option<u64>,
}

impl<K: Eq + Hash> CallerSlot<'_, K> {
    /// Counts the caller in total.
    fn count(mut self, now: u64) -> Result<Self, QueueFull> {
        let limit = self.limit;
        self.is_counted = true;
        let before = limit.count.fetch_add(1, SeqCst);
        if before >= limit.most {
            return Err(QueueFull {
                of_one: false,
                most: limit.most,
                wait: limit.speed.retry_after(now, before),
            });
        }
        if before == 0 {
            limit.speed.restart(now);
        }
        Ok(self)
    }

    /// Frees the slot of a caller that was served at `now`. Only such callers count for the speed of the queue.
    pub(crate) fn served(mut self, now: u64) {
        self.served = Some(now);
    }
}

impl<K: Eq + Hash> Drop for CallerSlot<'_, K> {
    fn drop(&mut self) {
        let limit = self.limit;
        if let Some(line) = self.line {
            line.pop(self.served);
        } else {
            let mut lines = lock(&limit.lines);
            if lines.get(self.key).map(|line| line.pop(self.served)) == Some(0) {
                lines.remove(self.key);
            }
            limit.mapped.fetch_sub(1, SeqCst);
        }
        if !self.is_counted {
            return;
        }
        if let Some(at) = self.served {
            limit.speed.record(at);
        }
        if limit.count.fetch_sub(1, SeqCst) == 1 && limit.is_watched.load(SeqCst) {
            limit.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn() -> usize = || 0;

    #[test]
    fn so_many_for_one_and_so_many_in_all() {
        let (waiting, now) = (CallerLimit::new(2, 3), 0);
        let first = waiting.try_enter(&"a", now, NONE).ok().unwrap();
        let _second = waiting.try_enter(&"a", now, NONE).ok().unwrap();
        let full = waiting.try_enter(&"a", now, NONE).err().unwrap();
        assert!(full.of_one && full.most == 2 && !full.wait.is_zero());
        let _third = waiting.try_enter(&"b", now, NONE).ok().unwrap();
        let full = waiting.try_enter(&"b", now, NONE).err().unwrap();
        assert!(!full.of_one && full.most == 3);
        assert_eq!(waiting.len(), 3);
        drop(first);
        assert!(
            waiting.try_enter(&"a", now, NONE).is_ok(),
            "and left again at once"
        );
        assert_eq!(waiting.len(), 2);
    }

    #[test]
    fn callers_in_a_line_and_in_the_map_count_together() {
        let (waiting, now) = (CallerLimit::new(2, 100), 0);
        let line = Line::new();
        let in_line = || line.len();
        let mapped = waiting.try_enter(&"a", now, in_line).ok().unwrap();
        let own = waiting.try_enter_line(&line, &"a", now).ok().unwrap();
        assert!(
            waiting
                .try_enter_line(&line, &"a", now)
                .is_err_and(|it| it.of_one)
        );
        assert!(
            waiting
                .try_enter(&"a", now, in_line)
                .is_err_and(|it| it.of_one)
        );
        assert_eq!(
            (waiting.len(), line.len()),
            (2, 1),
            "who is refused leaves nothing"
        );
        let _other = waiting.try_enter(&"b", now, NONE).ok().unwrap();
        mapped.served(now);
        let again = waiting.try_enter_line(&line, &"a", now).ok().unwrap();
        drop((own, again));
        assert_eq!((waiting.len(), line.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_last_wait_is_told() {
        let waiting = CallerLimit::new(2, 3);
        let line = Line::new();
        let last = waiting.try_enter_line(&line, &"a", 0).ok();
        let mut emptied = std::pin::pin!(waiting.emptied());
        assert!(futures_util::poll!(&mut emptied).is_pending());
        drop(last);
        assert!(futures_util::poll!(&mut emptied).is_ready());
    }

    #[test]
    fn a_line_that_was_empty_for_long_begins_anew() {
        for (most_of_one, most) in [(1, 100), (100, 1)] {
            let waiting = CallerLimit::new(most_of_one, most);
            let line = Line::new();
            let enter = |now| waiting.try_enter_line(&line, &"a", now);
            enter(0).ok().unwrap().served(0);
            let later = 3_600_000_000_000;
            let _only = enter(later).ok().unwrap();
            let full = enter(later).err().unwrap();
            assert!(full.wait < Duration::from_secs(1), "{full:?}");
        }
    }
}
