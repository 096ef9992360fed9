//! The pools in the cache, found without asking the cache.
//!
//! moka notes each read in a queue that all threads share, which costs more than all the rest of a `get` with a
//! connection at hand. So reads are answered here, and the cache hears of a pool's use now and then. It says which pools
//! live: what it holds is entered here before it is there, and goes when it goes.

use std::sync::Arc;

use dashmap::DashMap;

use crate::{model::tenant::TenantId, pool::Pool};

/// Shards. Far more than threads that look something up at the same moment, so that they hardly ever meet.
const SHARDS: usize = 64;

/// A pool in the cache. The number tells this stay in the cache from an earlier one: moka may report an eviction after
/// the pool has come back.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) pool: Arc<Pool>,
    pub(crate) stay: u64,
}

/// The pools in the cache, by tenant. The hash is keyed by chance, because ids come from outside.
pub(crate) struct Index {
    // A shard is held for a look-up or a change, and nothing is dropped meanwhile.
    entries: DashMap<TenantId, Entry>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            entries: DashMap::with_shard_amount(SHARDS),
        }
    }

    /// The pool of `tenant`, if it is in the cache. No allocation.
    pub(crate) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        let entry = self.entries.get(tenant)?;
        Some(Arc::clone(&entry.pool))
    }

    pub(crate) fn insert(&self, tenant: &TenantId, entry: Entry) {
        let earlier = self.entries.insert(tenant.clone(), entry);
        drop(earlier); // after the shard is released
    }

    /// Takes the pool of `tenant` out, unless it has come back since its stay number `stay`.
    pub(crate) fn remove(&self, tenant: &str, stay: u64) {
        let removed = self.entries.remove_if(tenant, |_, it| it.stay == stay);
        drop(removed); // after the shard is released
    }

    /// Every pool in the cache.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        let entries = self.entries.iter();
        entries.map(|entry| Arc::clone(&entry.pool)).collect()
    }

    /// Everything in it.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> Vec<(TenantId, Entry)> {
        let entries = self.entries.iter();
        entries
            .map(|it| (it.key().clone(), it.value().clone()))
            .collect()
    }
}
