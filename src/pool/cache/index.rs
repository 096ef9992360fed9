//! The index of the cached pools, which answers lookups without the cache.
//!
//! moka records each read in a queue that all threads share, which costs more than all the rest of a `get` with an idle
//! connection. So the index answers reads, and a pool's use is reported to the cache only now and then. The cache
//! decides which pools stay: a pool enters the index before it enters the cache, and leaves the index when it leaves
//! the cache.

use std::sync::Arc;

use dashmap::DashMap;

use crate::{model::tenant::TenantId, pool::Pool};

/// Number of shards: far more than the threads that look up at the same time, so that they rarely contend.
const SHARDS: usize = 64;

/// A pool in the cache. `stay` tells this stay in the cache from an earlier one: moka may report an eviction after the
/// pool has come back.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(in crate::pool) pool: Arc<Pool>,
    pub(super) stay: u64,
}

/// The pools in the cache, by tenant. The hash has a random key, because ids come from outside.
pub(super) struct Index {
    // A shard is locked for a lookup or a change. No pool is dropped under its lock.
    entries: DashMap<TenantId, Entry>,
}

impl Index {
    pub(in crate::pool) fn new() -> Self {
        Self {
            entries: DashMap::with_shard_amount(SHARDS),
        }
    }

    /// Returns the pool of `tenant` if it is in the cache. Does not allocate.
    pub(in crate::pool) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        let entry = self.entries.get(tenant)?;
        Some(Arc::clone(&entry.pool))
    }

    pub(super) fn insert(&self, tenant: &TenantId, entry: Entry) {
        let earlier = self.entries.insert(tenant.clone(), entry);
        drop(earlier); // after the shard is released
    }

    /// Removes the pool of `tenant`, unless it has come back since its stay number `stay`.
    pub(super) fn remove(&self, tenant: &str, stay: u64) {
        let removed = self.entries.remove_if(tenant, |_, it| it.stay == stay);
        drop(removed); // after the shard is released
    }

    /// Returns every pool in the cache.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let entries = self.entries.iter();
        entries.map(|entry| Arc::clone(&entry.pool)).collect()
    }

    /// Returns all entries.
    #[cfg(test)]
    pub(in crate::pool) fn entries(&self) -> Vec<(TenantId, Entry)> {
        let entries = self.entries.iter();
        entries
            .map(|it| (it.key().clone(), it.value().clone()))
            .collect()
    }
}
