//! Every tenant's pool, by tenant.
//!
//! moka owns which pools live: at most so many, the least recently used one leaves first. Its default policy would
//! refuse new tenants once it is full, hence LRU.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    endpoint::Endpoint, pool::Pool, retry::lock, shared::Shared, source::Located, stats::count,
    tenant::TenantId,
};

pub(crate) struct Pools {
    cached: Cache<TenantId, Entry>,
    // Every pool that is still used by anybody, also after it left the cache: a tenant that comes back finds its own
    // connections, and its own wake if one is under way. Held for a look-up, never across an await.
    alive: Mutex<HashMap<TenantId, Weak<Pool>>>,
    shared: Arc<Shared>,
}

/// A pool in the cache. The number tells this stay in the cache from an earlier one: moka may report an eviction after
/// the pool has come back.
#[derive(Clone)]
struct Entry {
    pool: Arc<Pool>,
    stay: u64,
}

impl Pools {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let counts = Arc::clone(&shared);
        let cached = Cache::builder()
            .max_capacity(shared.config.max_pools)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, entry: Entry, _| {
                count(&counts.stats.evicted);
                entry.pool.retire(entry.stay);
            })
            .build();
        Self {
            cached,
            alive: Mutex::default(),
            shared,
        }
    }

    /// The pool of `tenant`, if it is in the cache.
    pub(crate) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        self.cached.get(tenant).map(|entry| entry.pool)
    }

    /// Puts the pool of `tenant` into the cache, the one that is still in use or a new one, and tells it where the
    /// tenant lives.
    pub(crate) fn insert(&self, tenant: &TenantId, located: Located) -> Arc<Pool> {
        let pool = self.alive_or_new(tenant, Arc::clone(&located.endpoint));
        pool.move_to(located.endpoint, located.fresh);
        if located.created {
            pool.mended();
        }
        let entry = Entry {
            pool: Arc::clone(&pool),
            stay: pool.revive(),
        };
        self.cached.insert(tenant.clone(), entry);
        pool
    }

    /// The pool of `tenant` that somebody still uses, or a new one at `endpoint`.
    fn alive_or_new(&self, tenant: &TenantId, endpoint: Arc<Endpoint>) -> Arc<Pool> {
        let mut alive = lock(&self.alive);
        let known = alive.get(tenant).and_then(Weak::upgrade);
        if let Some(pool) = known {
            return pool;
        }
        let pool = Pool::new(tenant.clone(), endpoint, Arc::clone(&self.shared));
        alive.insert(tenant.clone(), Arc::downgrade(&pool));
        if alive.len() as u64 > 2 * self.shared.config.max_pools {
            alive.retain(|_, pool| pool.strong_count() > 0);
        }
        pool
    }

    /// Drops the pool of `tenant` from the cache, and what was refused of it; says whether there was one.
    pub(crate) fn evict(&self, tenant: &str) -> bool {
        let found = self.cached.remove(tenant);
        self.cached.run_pending_tasks();
        self.shared.refusals.clear(tenant);
        if let Some(pool) = self.alive(tenant) {
            pool.condemn(Instant::now()); // also if it comes back before they do
            pool.mended(); // a wake of its may be waiting for what was refused to pass
        }
        found.is_some()
    }

    /// The pool of `tenant` that somebody still uses, in the cache or not.
    pub(crate) fn alive(&self, tenant: &str) -> Option<Arc<Pool>> {
        lock(&self.alive).get(tenant).and_then(Weak::upgrade)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Every pool in the cache.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        let entries = self.cached.iter();
        entries.map(|(_, entry)| entry.pool).collect()
    }

    /// Drops every pool from the cache.
    pub(crate) fn evict_all(&self) {
        for (_, entry) in &self.cached {
            entry.pool.retire(entry.stay);
        }
        self.cached.invalidate_all();
        self.cached.run_pending_tasks();
    }

    pub(crate) fn len(&self) -> u64 {
        self.cached.run_pending_tasks();
        self.cached.entry_count()
    }
}
