//! The pools of all tenants, by tenant.
//!
//! At most `max_pools` stay cached. The least recently used one is evicted first.

pub(super) mod index;

use std::{
    collections::HashMap,
    hash::RandomState,
    iter,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use self::index::Index;
use super::{Pool, Unserved, loan::Loan, shared::Shared};
use crate::{
    connection::Connection,
    model::{endpoint::Endpoint, error::Error, tenant::TenantId},
    provision::source::FoundEndpoint,
    schema::Standing,
    sync::{
        clock::Moment,
        lock,
        lru::{Keyed, Lru},
    },
    telemetry::stats::count,
};

/// Number of epochs in which the whole cache may be replaced. A pool's use is reported to the cache once per epoch.
const EPOCH_FRACTION: u64 = 8;
/// Largest cache that gets a report of every use that changes the LRU order: in a small cache it matters which pool is
/// evicted.
const EXACT_LRU_MAX: u64 = 32;

type LivePools = Mutex<HashMap<TenantId, Weak<Pool>>>;

pub(crate) struct PoolCache {
    /// The index in front of the order, which answers lookups.
    index: Index,
    /// Number of the current epoch.
    epochs: AtomicU64,
    /// `true` if the cache is small, so that its order is exact.
    is_exact: bool,
    /// Address of the pool whose use was reported last.
    last_reported: AtomicUsize,
    // Locked for an insertion, a removal or a report of a use. A pool's state and a shard of the index are locked under
    // it, and never the other way round. No connection and no pool is dropped under it.
    order: Mutex<Order>,
    // Every pool that still exists, also after it left the cache: a tenant that comes back finds its own
    // connections, and its own wake if one is in progress. Locked for a lookup, never across an await.
    live: Arc<LivePools>,
    shared: Arc<Shared>,
}

/// The pools in the cache, in the order of their use.
struct Order {
    pools: Lru<Arc<Pool>>,
    /// Number of insertions.
    insertions: u64,
}

impl Keyed for Arc<Pool> {
    fn key(&self) -> &[u8] {
        self.tenant.as_str().as_bytes()
    }
}

/// A pool that has left the cache, and its idle connections, which are about to be closed.
struct Evicted {
    pool: Arc<Pool>,
    idle: Vec<Connection>,
}

/// A pool in the cache, and the time of the call that found it there.
pub(crate) struct Visited {
    pub(crate) pool: Arc<Pool>,
    pub(crate) at: Moment,
}

impl PoolCache {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let order = Order {
            pools: Lru::new(RandomState::new()),
            insertions: 0,
        };
        let live = Arc::new(LivePools::default());
        let weak = Arc::downgrade(&live);
        shared.life.on_terminated(move || {
            // A caller that queues later sees under its pool's lock that the router has terminated.
            let live = weak.upgrade();
            for pool in live.iter().flat_map(|live| existing(live)) {
                pool.fail_all(&Error::closed());
            }
        });
        Self {
            index: Index::new(),
            epochs: AtomicU64::new(0),
            is_exact: shared.config.max_pools <= EXACT_LRU_MAX,
            last_reported: AtomicUsize::new(0),
            order: Mutex::new(order),
            live,
            shared,
        }
    }

    /// Returns the pool of `tenant` if it is in the cache, and counts that as a use.
    pub(crate) fn find(&self, tenant: &str) -> Option<Arc<Pool>> {
        self.visit(tenant).map(|it| it.pool)
    }

    /// Does the same as [`find`](Self::find), and also returns the time.
    pub(crate) fn visit(&self, tenant: &str) -> Option<Visited> {
        let pool = self.index.find(tenant)?;
        let at = self.shared.clock.now();
        let is_report_due = pool.state().note_use(at.millis(), self.epoch());
        self.report_use(&pool, is_report_due);
        Some(Visited { pool, at })
    }

    /// Returns an idle connection of `tenant` that needs no check. If there is none, returns the tenant's pool, if that
    /// is cached. Does not wait, do I/O or allocate.
    pub(crate) fn try_get_idle(&self, tenant: &str) -> Result<Loan, Option<Visited>> {
        let pool = self.index.find(tenant).ok_or(None)?;
        self.try_get_idle_from(pool).map_err(Some)
    }

    /// Returns an idle connection of `pool` that needs no check, or else the pool.
    #[inline]
    pub(crate) fn try_get_idle_from(&self, pool: Arc<Pool>) -> Result<Loan, Visited> {
        let Shared { clock, pace, .. } = &*self.shared;
        let at = clock.now();
        let now = at.millis();
        let mut state = pool.state_of_idle();
        let is_report_due = state.note_use(now, self.epoch());
        // If the sweep is late, the runtime was not driven for a while, and must first notice which sockets have ended.
        let is_too_old = pool.standing() == Standing::TooOld;
        let connection = if is_too_old || pace.is_sweep_overdue(now) {
            None
        } else {
            state.reuse(self.shared.verify_after, now)
        };
        drop(state);
        self.report_use(&pool, is_report_due);
        match connection {
            Some(connection) => Ok(Loan::new(connection, pool)),
            None => Err(Visited { pool, at }),
        }
    }

    /// Returns the number of the current epoch.
    fn epoch(&self) -> u64 {
        self.epochs.load(Relaxed)
    }

    /// Reports the use of `pool` to the cache if `is_report_due`, or if the cache is small and its order changes.
    #[inline]
    fn report_use(&self, pool: &Arc<Pool>, is_report_due: bool) {
        if is_report_due || self.is_exact && self.last_reported.load(Relaxed) != address(pool) {
            self.report(pool);
        }
    }

    #[cold]
    fn report(&self, pool: &Arc<Pool>) {
        self.last_reported.store(address(pool), Relaxed);
        self.order().pools.get(pool.key());
    }

    /// Puts the pool of `tenant` into the cache and sets its endpoint. Takes the tenant's pool that still exists, or
    /// creates one.
    pub(crate) fn insert(&self, tenant: &TenantId, found: FoundEndpoint) -> Arc<Pool> {
        let pool = self.live_or_new(tenant, Arc::clone(&found.endpoint));
        pool.set_endpoint(found.endpoint, found.is_authoritative);
        pool.set_standing(found.standing); // before the pool can be found in the cache
        if found.created {
            pool.notify_changed(); // a refusal of the tenant's earlier database does not hold for the new one
        }
        pool.allow(); // after the endpoint is set: until then, connections would be opened at the earlier one
        let mut order = self.order();
        order.insertions += 1;
        let epoch_length = (self.shared.config.max_pools / EPOCH_FRACTION).max(1);
        let epoch = order.insertions / epoch_length;
        self.epochs.store(epoch, Relaxed);
        pool.revive(epoch);
        self.last_reported.store(address(&pool), Relaxed);
        let earlier = order.pools.insert(Arc::clone(&pool));
        self.index.insert(tenant, &pool);
        let mut evicted = Vec::new();
        while order.pools.len() as u64 > self.shared.config.max_pools {
            let oldest = order.pools.pop_oldest();
            evicted.extend(oldest.map(|pool| self.take_out(pool)));
        }
        drop(order);
        drop(earlier);
        self.close_evicted(evicted);
        pool
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        lock(&self.order)
    }

    /// Takes a pool that has left the order out of the index, under the order's lock.
    fn take_out(&self, pool: Arc<Pool>) -> Evicted {
        self.index.remove(pool.tenant.as_str());
        let idle = pool.retire();
        Evicted { pool, idle }
    }

    /// Closes the idle connections of pools that have left the cache.
    fn close_evicted(&self, evicted: impl IntoIterator<Item = Evicted>) {
        for Evicted { pool, idle } in evicted {
            count(&self.shared.stats.evicted);
            tracing::debug!(tenant = pool.tenant.as_str(), "evict");
            idle.into_iter().for_each(Connection::close);
        }
    }

    /// Returns the pool of `tenant` that still exists, or a new one at `endpoint`.
    fn live_or_new(&self, tenant: &TenantId, endpoint: Arc<Endpoint>) -> Arc<Pool> {
        let mut live = lock(&self.live);
        let existing = live.get(tenant).and_then(Weak::upgrade);
        if let Some(pool) = existing {
            return pool;
        }
        let pool = Pool::new(tenant.clone(), endpoint, Arc::clone(&self.shared));
        live.insert(tenant.clone(), Arc::downgrade(&pool));
        if live.len() as u64 > 2 * self.shared.config.max_pools {
            live.retain(|_, pool| pool.strong_count() > 0);
        }
        pool
    }

    /// Evicts the pool of `tenant` and forgets the tenant's refusals. Returns whether the pool was cached.
    pub(crate) fn evict(&self, tenant: &str) -> bool {
        let found = self.remove(tenant);
        self.shared.refusals.clear(tenant);
        if let Some(pool) = self.live(tenant) {
            pool.condemn(Instant::now()); // connections on loan too, also if the pool is cached again
            pool.notify_changed(); // a wake may be waiting for a refusal to end
        }
        found
    }

    fn remove(&self, tenant: &str) -> bool {
        let mut order = self.order();
        let pool = order.pools.remove(tenant.as_bytes());
        let evicted = pool.map(|pool| self.take_out(pool));
        drop(order);
        let found = evicted.is_some();
        self.close_evicted(evicted);
        found
    }

    /// Forbids the pool of `tenant` to serve until the tenant is looked up again. Answers all waiting callers with
    /// `why`. Returns whether the pool was allowed to serve until now.
    pub(crate) fn forbid(&self, tenant: &TenantId, why: &Unserved) -> bool {
        let Some(pool) = self.live(tenant.as_str()) else {
            return false;
        };
        let was_allowed = pool.check_allowed().is_ok();
        pool.forbid(why); // before the removal: a caller that still finds the pool gets no connection
        self.remove(tenant.as_str());
        was_allowed
    }

    /// Returns the pool of `tenant` that still exists, cached or not.
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
        let pools = existing(&self.live);
        let before = self.shared.stats.reused.load(Relaxed);
        pools.iter().fold((before, 0), |(reused, idle), pool| {
            let state = pool.state();
            (reused + state.reused, idle + state.idle())
        })
    }

    /// Evicts every pool.
    pub(crate) fn evict_all(&self) {
        let mut order = self.order();
        let pools = iter::from_fn(|| order.pools.pop_oldest());
        let evicted: Vec<_> = pools.map(|pool| self.take_out(pool)).collect();
        drop(order);
        self.close_evicted(evicted);
    }

    pub(crate) fn len(&self) -> u64 {
        self.order().pools.len() as u64
    }
}

/// Returns every pool that still exists. The caller may drop the last reference to one, so no lock is held any more.
fn existing(live: &LivePools) -> Vec<Arc<Pool>> {
    let live = lock(live);
    live.values().filter_map(Weak::upgrade).collect()
}

fn address(pool: &Arc<Pool>) -> usize {
    Arc::as_ptr(pool).addr()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, thread, time::Duration};

    use super::*;
    use crate::{
        catalog::lookup::Lookup,
        model::{error::ErrorKind, tenant::TenantId},
        router::TenantRouter,
        telemetry::labels::Reason,
    };

    /// Number of tenants; the cache holds a quarter of them.
    const TENANTS: u64 = 64;
    const STEPS: u64 = 4_000;
    const THREADS: u64 = 4;

    fn lookup() -> impl Lookup {
        |_: TenantId| std::future::ready(Ok(None))
    }

    fn found(tenant: &TenantId) -> FoundEndpoint {
        let endpoint = Endpoint::postgres(tenant.as_str(), "db", "app", "secret");
        FoundEndpoint {
            endpoint: Arc::new(endpoint),
            is_authoritative: false,
            created: false,
            standing: Standing::Current,
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
                0..128 => drop(pools.insert(&tenant, found(&tenant))),
                128..192 => drop(pools.find(tenant.as_str())),
                192..254 => drop(pools.evict(tenant.as_str())),
                _ => pools.evict_all(),
            }
        }
    }

    /// Returns the pools in the order and those in the index, by tenant.
    fn held(pools: &PoolCache) -> [BTreeMap<String, usize>; 2] {
        let by_tenant = |pool: &Arc<Pool>| {
            let is_retired = pool.state().retired;
            assert!(!is_retired, "{} is held, and retired", pool.tenant);
            (pool.tenant.to_string(), address(pool))
        };
        let order = pools.order();
        let found = pools.index.pools();
        [
            order.pools.iter().map(by_tenant).collect(),
            found.iter().map(by_tenant).collect(),
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

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_comes_to_a_pool_after_the_end_gets_closed_at_once() {
        let router = TenantRouter::builder(lookup()).build().unwrap();
        let acme = TenantId::parse("acme").unwrap();
        let pool = router.inner.pools.insert(&acme, found(&acme));
        pool.state().dialing = 1; // so that no new attempt finds out
        router.inner.shared.life.terminate();
        let (now, at) = (Instant::now(), pool.shared.clock.now());
        let until = now + Duration::from_secs(20);
        let got = pool.get(until, at).await.err().unwrap();
        let woken = pool.wake(until, Reason::Warm, None).await.unwrap_err();
        let kinds = [got, woken].map(|it| it.error().kind());
        assert_eq!(kinds, [ErrorKind::Closed; 2]);
        assert_eq!(now.elapsed(), Duration::ZERO);
    }
}
