//! A queue of the tenants whose records are read again in the background.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Mutex,
};

use tokio::sync::Notify;

use crate::{model::tenant::TenantId, sync::lock};

/// Length at which the queue takes no more tenants because of their use. A later use queues them.
const MAX_QUEUED: usize = 10_000;

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
}

impl Queued {
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
    /// Queues `tenant`, unless it is being read or the queue is full.
    pub(super) fn push_if_room(&self, tenant: &TenantId) {
        let mut queued = lock(&self.queued);
        let is_wanted = queued.members.len() < MAX_QUEUED && !queued.reading.contains_key(tenant);
        if is_wanted && queued.push(tenant) {
            self.pushed.notify_one();
        }
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

    /// Takes out the tenant that was queued first, and waits for one if there is none. The tenant counts as being read
    /// until the returned value is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing out.
    pub(crate) async fn pop(&self) -> Reading<'_> {
        loop {
            if let Some(tenant) = self.try_pop() {
                let queue = self;
                return Reading { queue, tenant };
            }
            self.pushed.notified().await;
        }
    }

    fn try_pop(&self) -> Option<TenantId> {
        let mut queued = lock(&self.queued);
        let tenant = queued.order.pop_front()?;
        queued.members.remove(&tenant);
        queued.reading.insert(tenant.clone(), false);
        self.popped.notify_one();
        Some(tenant)
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
        let a = queue.pop().now_or_never().unwrap();
        let b = queue.pop().now_or_never().unwrap();
        assert_eq!((a.tenant().as_str(), b.tenant().as_str()), ("a", "b"));
        queue.push(&tenant("a"));
        queue.push_if_room(&tenant("b"));
        assert!(queue.pop().now_or_never().is_none(), "both are being read");
        drop((a, b));
        let again = queue.pop().now_or_never().unwrap();
        assert_eq!(again.tenant().as_str(), "a");
        assert!(queue.pop().now_or_never().is_none());
    }

    #[test]
    fn what_is_used_is_bounded_and_what_has_changed_is_not_lost() {
        let queue = RefreshQueue::default();
        for number in 0..MAX_QUEUED + 10 {
            queue.push_if_room(&tenant(&format!("t{number}")));
        }
        assert_eq!(lock(&queue.queued).members.len(), MAX_QUEUED);
        assert!(queue.has_room().now_or_never().is_none());
        queue.push(&tenant("changed"));
        assert_eq!(lock(&queue.queued).members.len(), MAX_QUEUED + 1);
    }
}
