//! The index of the cached pools, which answers lookups without the order of their use.
//!
//! All threads share the order, and to change it on each use would cost more than all the rest of a `get` with an idle
//! connection. So the index answers reads, and a pool's use is reported to the order only now and then. Both change
//! together, under the lock of the order.

use std::sync::Arc;

use dashmap::DashMap;

use crate::{model::tenant::TenantId, pool::Pool, sync::text_hash::TextHash};

/// Number of shards: far more than the threads that look up at the same time, so that they rarely contend.
const SHARDS: usize = 64;

/// The pools in the cache, by tenant. The hash has a random key, because ids come from outside.
pub(super) struct Index {
    // A shard is locked for a lookup or a change. No pool is dropped under its lock.
    entries: DashMap<TenantId, Arc<Pool>, TextHash>,
}

impl Index {
    pub(in crate::pool) fn new() -> Self {
        Self {
            entries: DashMap::with_hasher_and_shard_amount(TextHash::new(), SHARDS),
        }
    }

    /// Returns the pool of `tenant` if it is in the cache. Does not allocate.
    pub(in crate::pool) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        let entry = self.entries.get(tenant)?;
        Some(Arc::clone(&entry))
    }

    pub(super) fn insert(&self, tenant: &TenantId, pool: &Arc<Pool>) {
        let earlier = self.entries.insert(tenant.clone(), Arc::clone(pool));
        drop(earlier); // after the shard is released
    }

    pub(super) fn remove(&self, tenant: &str) {
        let removed = self.entries.remove(tenant);
        drop(removed); // after the shard is released
    }

    /// Returns every pool in the cache.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let entries = self.entries.iter();
        entries.map(|entry| Arc::clone(&entry)).collect()
    }
}
