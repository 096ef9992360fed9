//! One tenant's connections: the idle ones, and the callers that wait for one.
//!
//! A connection is in one of four places: idle in the pool, leased to a caller, being opened (`connect`), or in
//! cleanup. A connection that becomes free goes to the longest waiter first; no caller overtakes the queue.

pub(crate) mod budget_owner;
pub(crate) mod cache;
mod checkin;
mod checkout;
mod cleanup;
pub(crate) mod connect;
mod direct_wake;
pub(crate) mod endpoint;
mod failures;
mod forbidden;
mod idle_limit;
pub(crate) mod loan;
pub(crate) mod reaper;
mod refusals;
mod session_reset;
pub(crate) mod shared;
mod state;
pub(crate) mod statement_clearing;
pub(crate) mod suspicion;
mod wake_waiters;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering::Relaxed},
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use self::{shared::Shared, statement_clearing::StatementClearing};
use crate::{
    connection::Connection,
    model::{endpoint::Endpoint, tenant::TenantId},
    sync::lock,
};

pub(crate) use forbidden::Unserved;
pub(crate) use suspicion::VERIFY_TIMEOUT;

pub(crate) use state::{State, Wake};

/// The connections of one tenant.
pub(crate) struct Pool {
    pub(crate) tenant: TenantId,
    pub(crate) shared: Arc<Shared>,
    // Guards everything that changes. Never held across an await, nor while a connection is dropped.
    state: Mutex<State>,
    /// Notified when something changes that a wake may be waiting for.
    changed: Notify,
    /// Permits for direct connections, which bypass the pooler.
    pub(crate) direct: Arc<Semaphore>,
    clearing: StatementClearing,
}

impl Pool {
    pub(crate) fn new(tenant: TenantId, endpoint: Arc<Endpoint>, shared: Arc<Shared>) -> Arc<Self> {
        shared.pace.shorten_to(&endpoint, &shared.config);
        Arc::new(Self {
            tenant,
            direct: Arc::new(Semaphore::new(shared.config.direct_connections)),
            shared,
            state: Mutex::new(State::new(endpoint)),
            changed: Notify::new(),
            clearing: StatementClearing::default(),
        })
    }

    /// Stops trusting connections opened before `instant`: idle ones close now, leased ones when they come back.
    pub(crate) fn condemn(&self, instant: Instant) {
        let doomed = self.state().condemn(instant);
        doomed.into_iter().for_each(Connection::close);
    }

    /// Takes the pool out of use: idle connections close now, leased ones when they come back. Callers in the queue are
    /// still served. Does nothing if the pool has come back to the cache since its stay number `stay`.
    fn retire(&self, stay: u64) {
        let mut state = self.state();
        if state.cache_epoch != stay {
            return;
        }
        state.retired = true;
        let news = state.take_use_delta(); // no later sweep reports these uses
        let idle = state.take_idle(|_| true);
        drop(state);
        if news > 0 {
            self.shared.stats.busiest.add(&self.tenant, f64::from(news));
        }
        idle.into_iter().for_each(Connection::close);
    }

    /// Puts the pool into use in cache epoch `turn`, for the first time or again. Returns the number of this stay in
    /// the cache.
    fn revive(&self, turn: u64) -> u64 {
        let mut state = self.state();
        state.note_use(Instant::now(), turn);
        state.retired = false;
        state.cache_epoch += 1;
        state.cache_epoch
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let reused = self.state().reused;
        self.shared.stats.reused.fetch_add(reused, Relaxed); // keeps the router's total, which no longer finds the pool
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
