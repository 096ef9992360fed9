//! The pools of all tenants, by tenant.
//!
//! moka decides which pools stay cached: at most `max_pools`, and the least recently used one is evicted first. Its
//! default policy would refuse new tenants once the cache is full, hence LRU.

pub(super) mod index;

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
use super::{Pool, Unserved, loan::Loan, shared::Shared};
use crate::{
    connection::Health,
    model::{endpoint::Endpoint, tenant::TenantId},
    provision::source::Located,
    sync::lock,
    telemetry::stats::count,
};

/// Number of epochs in which the whole cache may be replaced. A pool's use is reported to the cache once per epoch.
const EPOCH_FRACTION: u64 = 8;
/// Largest cache that gets a report of every use that changes the LRU order: in a small cache it matters which pool is
/// evicted.
const EXACT_LRU_MAX: u64 = 32;

pub(crate) struct PoolCache {
    /// The index in front of the cache, which answers lookups.
    index: Arc<Index>,
    /// Number of the current epoch.
    epochs: AtomicU64,
    /// Address of the pool whose use was reported last.
    last: AtomicUsize,
    cached: Cache<TenantId, Entry>,
    /// Number of insertions. Locked during each one, so that index and cache see them in the same order.
    insertions: Mutex<u64>,
    // Every pool that is still in use, also after it left the cache: a tenant that comes back finds its own
    // connections, and its own wake if one is in progress. Locked for a lookup, never across an await.
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

    /// Returns the pool of `tenant` if it is in the cache, and counts that as a use.
    pub(crate) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        let pool = self.index.find(tenant)?;
        let is_news = pool.state().note_use(Instant::now(), self.epoch());
        self.note_use(&pool, is_news);
        Some(pool)
    }

    /// Returns an idle connection of `tenant` that needs no check. If there is none, returns the tenant's pool, if that
    /// is cached. Does not wait, do I/O or allocate.
    pub(crate) fn get_now(&self, tenant: &str) -> Result<Loan, Option<Arc<Pool>>> {
        let pool = self.index.find(tenant).ok_or(None)?;
        self.get_now_from(pool).map_err(Some)
    }

    /// Returns an idle connection of `pool` that needs no check, or else the pool.
    pub(crate) fn get_now_from(&self, pool: Arc<Pool>) -> Result<Loan, Arc<Pool>> {
        let now = Instant::now();
        let mut state = pool.state();
        let is_news = state.note_use(now, self.epoch());
        // If the runtime was not driven for a while, it must first notice which sockets have ended.
        let is_overdue = self.shared.pace.is_overdue(now);
        let connection = if is_overdue { None } else { state.reuse() };
        drop(state);
        self.note_use(&pool, is_news);
        let Some(connection) = connection else {
            return Err(pool);
        };
        let lease = Loan::new(connection, pool);
        if lease.connection().health_at(now, &self.shared.config) == Health::Healthy {
            return Ok(lease);
        }
        let pool = Arc::clone(lease.pool());
        drop(lease);
        pool.state().reused -= 1;
        Err(pool)
    }

    /// Returns the number of the current epoch.
    fn epoch(&self) -> u64 {
        self.epochs.load(Relaxed)
    }

    /// Reports the use of `pool` to the cache if a report is due (`is_news`), or if the cache is small and its order
    /// changes.
    fn note_use(&self, pool: &Arc<Pool>, is_news: bool) {
        let is_one_of_few = self.shared.config.max_pools <= EXACT_LRU_MAX;
        if is_news || is_one_of_few && self.last.load(Relaxed) != address(pool) {
            self.last.store(address(pool), Relaxed);
            // This call may run the eviction listener, so no lock is held.
            self.cached.get(pool.tenant.as_str());
        }
    }

    /// Puts the pool of `tenant` into the cache and sets its endpoint. Takes the tenant's pool that is still in use, or
    /// creates one.
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
        // The index comes first: the cache may evict the entry at once.
        self.index.insert(tenant, entry.clone());
        self.cached.insert(tenant.clone(), entry);
        drop(insertions);
        self.cached.run_pending_tasks(); // evicts the surplus now, in LRU order
        pool
    }

    /// Returns the pool of `tenant` that is still in use, or a new one at `endpoint`.
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

    /// Evicts the pool of `tenant` and forgets the tenant's refusals. Returns whether the pool was cached.
    pub(crate) fn evict(&self, tenant: &str) -> bool {
        let found = self.remove(tenant);
        self.shared.refusals.clear(tenant);
        if let Some(pool) = self.live(tenant) {
            pool.condemn(Instant::now()); // leased connections too, also if the pool is cached again
            pool.notify_changed(); // a wake may be waiting for a refusal to end
        }
        found
    }

    fn remove(&self, tenant: &str) -> bool {
        let found = self.cached.remove(tenant);
        if let Some(entry) = &found {
            self.index.remove(tenant, entry.stay); // now: the eviction listener may run later
            entry.pool.retire(entry.stay);
        }
        self.cached.run_pending_tasks();
        found.is_some()
    }

    /// Takes the pool of `tenant` out of use until the tenant is looked up again. Answers all waiting callers with
    /// `why`. Returns whether the pool was in use until now.
    pub(crate) fn forbid(&self, tenant: &TenantId, why: &Unserved) -> bool {
        let Some(pool) = self.live(tenant.as_str()) else {
            return false;
        };
        let is_news = pool.check_allowed().is_ok();
        pool.forbid(why); // before the removal: a caller that still finds the pool gets no connection
        self.remove(tenant.as_str());
        is_news
    }

    /// Returns the pool of `tenant` that is still in use, cached or not.
    pub(crate) fn live(&self, tenant: &str) -> Option<Arc<Pool>> {
        lock(&self.live).get(tenant).and_then(Weak::upgrade)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns every pool in the cache.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        self.index.pools()
    }

    /// Returns how many calls of `get` were answered with an idle connection, and how many connections are idle now.
    pub(crate) fn reused_and_idle(&self) -> (u64, usize) {
        let alive = lock(&self.live);
        let pools: Vec<_> = alive.values().filter_map(Weak::upgrade).collect();
        drop(alive); // before the pools: one of them may be dropped here
        let before = self.shared.stats.reused.load(Relaxed);
        pools.iter().fold((before, 0), |(reused, idle), pool| {
            let state = pool.state();
            (reused + state.reused, idle + state.idle())
        })
    }

    /// Evicts every pool.
    pub(crate) fn evict_all(&self) {
        let insertions = lock(&self.insertions); // so that no insertion is half done, and missed here
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

    /// Number of tenants; the cache holds a quarter of them.
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

    /// Runs `STEPS` random operations on the tenants.
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

    /// Returns the pools in the cache and those in the index, by tenant and stay.
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
