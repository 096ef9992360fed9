//! Limits on waiting callers, per key and in total.
//!
//! The limit only counts callers, and refuses those beyond it. The order in which they are served is not decided here.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::wait_estimate::WaitEstimate;
use crate::sync::lock;

/// The waiting callers of all keys.
pub(crate) struct CallerLimit<K> {
    most_of_one: usize,
    most: usize,
    count: AtomicUsize,
    /// Notified when no caller waits any more.
    emptied: Notify,
    // Locked for a few instructions when a caller begins or ends its wait.
    lines: Mutex<Lines<K>>,
}

struct Lines<K> {
    all: WaitEstimate,
    of: HashMap<K, Line>,
}

struct Line {
    waiting: usize,
    flow: WaitEstimate,
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

impl<K: Clone + Eq + Hash> CallerLimit<K> {
    /// Creates a limit of `most_of_one` callers per key and `most` in total.
    pub(crate) fn new(most_of_one: usize, most: usize) -> Arc<Self> {
        let lines = Lines {
            all: WaitEstimate::new(),
            of: HashMap::new(),
        };
        Arc::new(Self {
            most_of_one,
            most,
            count: AtomicUsize::new(0),
            emptied: Notify::new(),
            lines: Mutex::new(lines),
        })
    }

    /// Takes a slot among the callers that wait for `key`.
    pub(crate) fn try_enter(self: &Arc<Self>, key: &K) -> Result<CallerSlot<K>, QueueFull> {
        let mut lines = lock(&self.lines);
        let count = self.count.load(Relaxed);
        if let Some(line) = lines.of.get_mut(key)
            && line.waiting >= self.most_of_one
        {
            return Err(QueueFull {
                of_one: true,
                most: self.most_of_one,
                wait: line.flow.retry_after(line.waiting),
            });
        }
        if count >= self.most {
            return Err(QueueFull {
                of_one: false,
                most: self.most,
                wait: lines.all.retry_after(count),
            });
        }
        if count == 0 {
            lines.all = WaitEstimate::new();
        }
        self.count.store(count + 1, Relaxed);
        let line = lines.of.entry(key.clone()).or_insert_with(|| Line {
            waiting: 0,
            flow: WaitEstimate::new(),
        });
        line.waiting += 1;
        Ok(CallerSlot {
            waiting: Arc::clone(self),
            key: key.clone(),
            served: false,
        })
    }

    /// Returns the number of waiting callers.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Waits until no caller waits.
    pub(crate) async fn emptied(&self) {
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
pub(crate) struct CallerSlot<K: Clone + Eq + Hash> {
    waiting: Arc<CallerLimit<K>>,
    key: K,
    served: bool,
}

impl<K: Clone + Eq + Hash> CallerSlot<K> {
    /// Frees the slot of a caller that was served. Only such callers count for the speed of the queue.
    pub(crate) fn served(mut self) {
        self.served = true;
    }
}

impl<K: Clone + Eq + Hash> Drop for CallerSlot<K> {
    fn drop(&mut self) {
        let mut lines = lock(&self.waiting.lines);
        if self.waiting.count.fetch_sub(1, Relaxed) == 1 {
            self.waiting.emptied.notify_waiters();
        }
        if self.served {
            lines.all.record();
        }
        let Some(line) = lines.of.get_mut(&self.key) else {
            return;
        };
        line.waiting -= 1;
        if self.served {
            line.flow.record();
        }
        if line.waiting == 0 {
            lines.of.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_for_one_and_so_many_in_all() {
        let waiting = CallerLimit::new(2, 3);
        let first = waiting.try_enter(&"a").unwrap();
        let _second = waiting.try_enter(&"a").unwrap();
        let full = waiting.try_enter(&"a").err().unwrap();
        assert!(full.of_one && full.most == 2 && !full.wait.is_zero());
        let _third = waiting.try_enter(&"b").unwrap();
        let full = waiting.try_enter(&"b").err().unwrap();
        assert!(!full.of_one && full.most == 3);
        assert_eq!(waiting.len(), 3);
        drop(first);
        assert!(waiting.try_enter(&"a").is_ok(), "and left again at once");
        assert_eq!(waiting.len(), 2);
    }
}
