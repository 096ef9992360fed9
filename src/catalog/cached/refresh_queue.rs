//! A queue of the tenants whose records are read again in the background.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Mutex,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{model::tenant::TenantId, sync::lock};

/// Length at which the queue takes no more tenants because of their use. A later use queues them.
const MAX_QUEUED: usize = 10_000;
/// Average time between two records that are read because of their age, where that is limited.
const REREAD_EVERY: Duration = Duration::from_millis(500);
/// Most such records that are read at once.
const REREADS_AT_ONCE: u32 = 20;

/// Holds each tenant once, however often it is pushed, and gives it to one reader at a time.
#[derive(Debug, Default)]
pub(crate) struct RefreshQueue {
    // Held for one insertion or removal.
    queued: Mutex<Queued>,
    pushed: Notify,
    popped: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    order: VecDeque<TenantId>,
    members: HashSet<TenantId>,
    /// Tenants that are being read; `true` for those that were pushed again since.
    reading: HashMap<TenantId, bool>,
    /// Due time of the next record that is read because of its age, at the average rate.
    next_reread: Option<Instant>,
}

impl Queued {
    /// Returns whether one more record may be read because of its age, and counts it.
    fn may_reread(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next_reread.map_or(now, |next| next.max(now));
        let may_reread = due < now + REREADS_AT_ONCE * REREAD_EVERY;
        if may_reread {
            self.next_reread = Some(due + REREAD_EVERY);
        }
        may_reread
    }

    /// Adds `tenant` to the end. Returns `false` if it is queued already.
    fn push(&mut self, tenant: &TenantId) -> bool {
        let is_new = self.members.insert(tenant.clone());
        if is_new {
            self.order.push_back(tenant.clone());
        }
        is_new
    }
}

impl RefreshQueue {
    /// Queues `tenant`, unless it is being read or the queue is full. If `is_only_old`, no faster than by
    /// [`Queued::may_reread`].
    pub(super) fn push_if_room(&self, tenant: &TenantId, is_only_old: bool) {
        let mut queued = lock(&self.queued);
        let is_there = queued.members.contains(tenant) || queued.reading.contains_key(tenant);
        if is_there || queued.members.len() >= MAX_QUEUED || (is_only_old && !queued.may_reread()) {
            return;
        }
        queued.push(tenant);
        self.pushed.notify_one();
    }

    /// Queues `tenant` even if the queue is full. A tenant that is being read is queued after that.
    pub(crate) fn push(&self, tenant: &TenantId) {
        let mut queued = lock(&self.queued);
        if let Some(again) = queued.reading.get_mut(tenant) {
            *again = true;
        } else if queued.push(tenant) {
            self.pushed.notify_one();
        }
    }

    /// Takes out at most `most` tenants, those that were queued first, and waits for one if there is none. A tenant
    /// counts as being read until its returned value is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing out.
    pub(crate) async fn pop(&self, most: usize) -> Vec<Reading<'_>> {
        loop {
            let taken = self.try_pop(most);
            if !taken.is_empty() {
                return taken;
            }
            self.pushed.notified().await;
        }
    }

    fn try_pop(&self, most: usize) -> Vec<Reading<'_>> {
        let mut queued = lock(&self.queued);
        let most = most.min(queued.order.len());
        let taken: Vec<_> = queued.order.drain(..most).collect();
        for tenant in &taken {
            queued.members.remove(tenant);
            queued.reading.insert(tenant.clone(), false);
        }
        drop(queued);
        self.popped.notify_one();
        let queue = self;
        let reading = |tenant| Reading { queue, tenant };
        taken.into_iter().map(reading).collect()
    }

    /// Waits until fewer than [`MAX_QUEUED`] tenants are queued.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn has_room(&self) {
        while lock(&self.queued).members.len() >= MAX_QUEUED {
            self.popped.notified().await;
        }
    }
}

/// A tenant that is being read, until this value is dropped, also by a panic.
#[must_use]
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    queue: &'a RefreshQueue,
    tenant: TenantId,
}

impl Reading<'_> {
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut queued = lock(&self.queue.queued);
        if queued.reading.remove(&self.tenant) == Some(true) && queued.push(&self.tenant) {
            self.queue.pushed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn tenant(id: &str) -> TenantId {
        TenantId::parse(id).unwrap()
    }

    #[test]
    fn each_is_read_by_one_at_a_time_and_once_more_if_it_changes_under_way() {
        let queue = RefreshQueue::default();
        for id in ["a", "b", "a"] {
            queue.push(&tenant(id));
        }
        let a = queue.pop(1).now_or_never().unwrap();
        let b = queue.pop(7).now_or_never().unwrap();
        let read = [&a, &b].map(|it| it.iter().map(|it| it.tenant().as_str()).collect::<Vec<_>>());
        assert_eq!(read, [["a"], ["b"]]);
        queue.push(&tenant("a"));
        queue.push_if_room(&tenant("b"), false);
        assert!(queue.pop(7).now_or_never().is_none(), "both are being read");
        drop((a, b));
        let again = queue.pop(7).now_or_never().unwrap();
        assert_eq!(again[0].tenant().as_str(), "a");
        assert!(queue.pop(7).now_or_never().is_none());
    }

    #[test]
    fn what_is_used_is_bounded_and_what_has_changed_is_not_lost() {
        let queue = RefreshQueue::default();
        for number in 0..MAX_QUEUED + 10 {
            queue.push_if_room(&tenant(&format!("t{number}")), false);
        }
        assert_eq!(lock(&queue.queued).members.len(), MAX_QUEUED);
        assert!(queue.has_room().now_or_never().is_none());
        queue.push(&tenant("changed"));
        assert_eq!(lock(&queue.queued).members.len(), MAX_QUEUED + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_old_is_read_at_a_steady_rate() {
        let queue = RefreshQueue::default();
        let push = |turn: &str| {
            for number in 0..100 {
                queue.push_if_room(&tenant(&format!("{turn}{number}")), true);
                queue.push_if_room(&tenant(&format!("{turn}{number}")), true); // counts once
            }
            queue
                .pop(usize::MAX)
                .now_or_never()
                .unwrap_or_default()
                .len()
        };
        assert_eq!(push("a"), 20);
        assert_eq!(push("b"), 0);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(push("c"), 6);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(push("d"), 20);
        queue.push_if_room(&tenant("stale"), false);
        assert_eq!(queue.pop(7).now_or_never().unwrap().len(), 1);
    }
}
