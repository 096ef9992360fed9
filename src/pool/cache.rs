//! Every tenant's pool, by tenant.
//!
//! moka owns which pools live: at most so many, the least recently used one leaves first. Its default policy would
//! refuse new tenants once it is full, hence LRU.

pub(crate) mod index;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use self::index::{Entry, Index};
use super::{Pool, Unserved, lease::Lease, shared::Shared};
use crate::{
    connection::Health,
    model::{endpoint::Endpoint, tenant::TenantId},
    provision::source::Located,
    sync::lock,
    telemetry::stats::count,
};

/// Part of the cache that may change before the cache hears of a pool's use once more.
const EPOCH_FRACTION: u64 = 8;
/// Pools up to which the cache hears of each use that changes their order: of so few it matters who leaves.
const EXACT_LRU_MAX: u64 = 32;

pub(crate) struct PoolCache {
    /// In front of the cache; answers who wants a pool.
    index: Arc<Index>,
    /// How many times a part of the cache has changed.
    epochs: AtomicU64,
    /// Where the pool is of which the cache heard last.
    last: AtomicUsize,
    cached: Cache<TenantId, Entry>,
    /// Insertions so far. Held during one, so that index and cache see them in the same order.
    insertions: Mutex<u64>,
    // Every pool that is still used by anybody, also after it left the cache: a tenant that comes back finds its own
    // connections, and its own wake if one is under way. Held for a look-up, never across an await.
    live: Mutex<HashMap<TenantId, Weak<Pool>>>,
    shared: Arc<Shared>,
}

impl PoolCache {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let index = Arc::new(Index::new());
        let (entered, counts) = (Arc::clone(&index), Arc::clone(&shared));
        let cached = Cache::builder()
            .max_capacity(shared.config.max_pools)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |tenant: Arc<TenantId>, entry: Entry, _| {
                count(&counts.stats.evicted);
                tracing::debug!(tenant = tenant.as_str(), "evict");
                entered.remove(tenant.as_str(), entry.stay);
                entry.pool.retire(entry.stay);
            })
            .build();
        Self {
            index,
            epochs: AtomicU64::new(0),
            last: AtomicUsize::new(0),
            cached,
            insertions: Mutex::new(0),
            live: Mutex::default(),
            shared,
        }
    }

    /// The pool of `tenant`, if it is in the cache. Whoever looks for it uses it.
    pub(crate) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        let pool = self.index.find(tenant)?;
        let is_news = pool.state().note_use(Instant::now(), self.epoch());
        self.note_use(&pool, is_news);
        Some(pool)
    }

    /// An idle connection of `tenant` that can be used as it is; if there is none, its pool, if that is in the cache. No
    /// waiting, no I/O, no allocation.
    pub(crate) fn get_now(&self, tenant: &str) -> Result<Lease, Option<Arc<Pool>>> {
        let pool = self.index.find(tenant).ok_or(None)?;
        self.get_now_from(pool).map_err(Some)
    }

    /// An idle connection of `pool` that can be used as it is, or else the pool.
    pub(crate) fn get_now_from(&self, pool: Arc<Pool>) -> Result<Lease, Arc<Pool>> {
        let now = Instant::now();
        let mut state = pool.state();
        let is_news = state.note_use(now, self.epoch());
        // A runtime that was not driven has to look first which sockets have ended.
        let is_overdue = self.shared.pace.is_overdue(now);
        let connection = if is_overdue { None } else { state.reuse() };
        drop(state);
        self.note_use(&pool, is_news);
        let Some(connection) = connection else {
            return Err(pool);
        };
        let lease = Lease::new(connection, pool);
        if lease.connection().health_at(now, &self.shared.config) == Health::Healthy {
            return Ok(lease);
        }
        let pool = Arc::clone(lease.pool());
        drop(lease);
        pool.state().reused -= 1;
        Err(pool)
    }

    /// How many times a part of the cache has changed.
    fn epoch(&self) -> u64 {
        self.epochs.load(Relaxed)
    }

    /// Tells the cache that `pool` is used, if that `is_news` or changes the order of a few.
    fn note_use(&self, pool: &Arc<Pool>, is_news: bool) {
        let is_one_of_few = self.shared.config.max_pools <= EXACT_LRU_MAX;
        if is_news || is_one_of_few && self.last.load(Relaxed) != address(pool) {
            self.last.store(address(pool), Relaxed);
            // It may report evictions here, so no lock is held.
            self.cached.get(pool.tenant.as_str());
        }
    }

    /// Puts the pool of `tenant` into the cache, the one that is still in use or a new one, and tells it where the
    /// tenant lives.
    pub(crate) fn insert(&self, tenant: &TenantId, located: Located) -> Arc<Pool> {
        let pool = self.live_or_new(tenant, Arc::clone(&located.endpoint));
        pool.set_endpoint(located.endpoint, located.fresh);
        if located.created {
            pool.notify_changed();
        }
        pool.allow();
        let mut insertions = lock(&self.insertions);
        *insertions += 1;
        let part = (self.shared.config.max_pools / EPOCH_FRACTION).max(1);
        let turn = *insertions / part;
        self.epochs.store(turn, Relaxed);
        let entry = Entry {
            pool: Arc::clone(&pool),
            stay: pool.revive(turn),
        };
        self.last.store(address(&pool), Relaxed);
        // In this order: the cache may report at once that it has left again.
        self.index.insert(tenant, entry.clone());
        self.cached.insert(tenant.clone(), entry);
        drop(insertions);
        self.cached.run_pending_tasks(); // whoever is one too many leaves now, and in order of use
        pool
    }

    /// The pool of `tenant` that somebody still uses, or a new one at `endpoint`.
    fn live_or_new(&self, tenant: &TenantId, endpoint: Arc<Endpoint>) -> Arc<Pool> {
        let mut alive = lock(&self.live);
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
        let found = self.remove(tenant);
        self.shared.refusals.clear(tenant);
        if let Some(pool) = self.live(tenant) {
            pool.condemn(Instant::now()); // also if it comes back before they do
            pool.notify_changed(); // a wake of its may be waiting for what was refused to pass
        }
        found
    }

    fn remove(&self, tenant: &str) -> bool {
        let found = self.cached.remove(tenant);
        if let Some(entry) = &found {
            self.index.remove(tenant, entry.stay); // now, whenever the cache says so
            entry.pool.retire(entry.stay);
        }
        self.cached.run_pending_tasks();
        found.is_some()
    }

    /// Puts the pool of `tenant` out of use until the tenant is looked up again: all who wait are answered with `why`. Returns
    /// whether that is news.
    pub(crate) fn forbid(&self, tenant: &TenantId, why: &Unserved) -> bool {
        let Some(pool) = self.live(tenant.as_str()) else {
            return false;
        };
        let is_news = pool.check_allowed().is_ok();
        pool.forbid(why); // in this order: while it is still found, it serves nobody
        self.remove(tenant.as_str());
        is_news
    }

    /// The pool of `tenant` that somebody still uses, in the cache or not.
    pub(crate) fn live(&self, tenant: &str) -> Option<Arc<Pool>> {
        lock(&self.live).get(tenant).and_then(Weak::upgrade)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Every pool in the cache.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        self.index.pools()
    }

    /// Calls of `get` answered with a connection that was idle, and how many are idle now.
    pub(crate) fn reused_and_idle(&self) -> (u64, usize) {
        let alive = lock(&self.live);
        let pools: Vec<_> = alive.values().filter_map(Weak::upgrade).collect();
        drop(alive); // before the pools: this may be the last use of one
        let before = self.shared.stats.reused.load(Relaxed);
        pools.iter().fold((before, 0), |(reused, idle), pool| {
            let state = pool.state();
            (reused + state.reused, idle + state.idle())
        })
    }

    /// Drops every pool from the cache.
    pub(crate) fn evict_all(&self) {
        let insertions = lock(&self.insertions); // none is half-way, to be missed here
        for (tenant, entry) in &self.cached {
            self.index.remove(tenant.as_str(), entry.stay);
            entry.pool.retire(entry.stay);
        }
        self.cached.invalidate_all();
        drop(insertions);
        self.cached.run_pending_tasks();
    }

    pub(crate) fn len(&self) -> u64 {
        self.cached.run_pending_tasks();
        self.cached.entry_count()
    }
}

fn address(pool: &Arc<Pool>) -> usize {
    Arc::as_ptr(pool).addr()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, thread};

    use super::*;
    use crate::{catalog::lookup::Lookup, model::tenant::TenantId, router::TenantRouter};

    /// Tenants, of whom the cache holds a quarter.
    const TENANTS: u64 = 64;
    const STEPS: u64 = 4_000;
    const THREADS: u64 = 4;

    fn lookup() -> impl Lookup {
        |_: TenantId| std::future::ready(Ok(None))
    }

    fn located(tenant: &TenantId) -> Located {
        let endpoint = Endpoint::postgres(tenant.as_str(), "db", "app", "secret");
        Located {
            endpoint: Arc::new(endpoint),
            fresh: false,
            created: false,
        }
    }

    /// Does `STEPS` things with tenants, by chance.
    fn wander(pools: &PoolCache, mut chance: u64) {
        for _ in 0..STEPS {
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            let tenant = TenantId::parse(&format!("{}", chance % TENANTS)).unwrap();
            match chance >> 32 & 0xff {
                0..128 => drop(pools.insert(&tenant, located(&tenant))),
                128..192 => drop(pools.find(tenant.as_str())),
                192..254 => drop(pools.evict(tenant.as_str())),
                _ => pools.evict_all(),
            }
        }
    }

    /// The pools that each holds, by tenant and stay.
    fn held(pools: &PoolCache) -> [BTreeMap<String, (u64, usize)>; 2] {
        let it = |tenant: &TenantId, entry: &Entry| {
            let is_retired = entry.pool.state().retired;
            assert!(!is_retired, "{tenant} is held, and out of use");
            (tenant.to_string(), (entry.stay, address(&entry.pool)))
        };
        let cached = pools
            .cached
            .iter()
            .map(|(tenant, entry)| it(&tenant, &entry));
        let found = pools.index.entries();
        [
            cached.collect(),
            found
                .iter()
                .map(|(tenant, entry)| it(tenant, entry))
                .collect(),
        ]
    }

    #[tokio::test]
    async fn whatever_happens_at_once_the_index_holds_what_the_cache_holds() {
        let router = TenantRouter::builder(lookup()).max_pools(TENANTS / 4);
        let router = router.build().unwrap();
        let pools = &*router.inner.pools;
        for round in 0..5 {
            thread::scope(|scope| {
                for one in 1..=THREADS {
                    scope.spawn(move || wander(pools, (round * THREADS + one) << 20 | 0x9e37));
                }
            });
            let alive: Vec<_> = (0..TENANTS)
                .filter_map(|n| pools.live(&n.to_string()))
                .collect();
            assert!(pools.len() <= TENANTS / 4);
            let [cached, found] = held(pools);
            assert_eq!(found, cached);
            assert!(!found.is_empty());
            for pool in alive {
                let is_held = found.contains_key(pool.tenant.as_str());
                assert_eq!(pool.state().retired, !is_held, "{}", pool.tenant);
            }
        }
    }
}
