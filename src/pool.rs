//! One tenant's connections: the idle ones, and the callers that wait for one.
//!
//! A connection is in one of four places: idle in the pool, on loan to a caller, being opened (`connect`), or in
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
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{
            AtomicU8,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use self::{shared::Shared, statement_clearing::StatementClearing};
use crate::{
    connection::Connection,
    limits::callers::Line,
    model::{endpoint::Endpoint, tenant::TenantId},
    schema::Standing,
    sync::lock,
};

pub(crate) use checkout::CheckedOut;
pub(crate) use forbidden::Unserved;
pub(crate) use suspicion::VERIFY_TIMEOUT;

pub(crate) use state::{State, Wake};

/// The connections of one tenant.
///
/// The order is the order in memory: the fields that every `get` and every check-in reads come first, side by side.
#[repr(C)]
pub(crate) struct Pool {
    pub(crate) shared: Arc<Shared>,
    clearing: StatementClearing,
    /// A [`Standing`] as a number: no idle connection is lent while the schema is too old.
    standing: AtomicU8,
    // Guards everything that changes. Never held across an await, nor while a connection is dropped.
    state: Mutex<State>,
    pub(crate) tenant: TenantId,
    /// Notified when something changes that a wake may be waiting for.
    changed: Notify,
    /// Permits for direct connections, which bypass the pooler. Made for the first one.
    direct: OnceLock<Arc<Semaphore>>,
    /// The waiting callers that found the pool in the cache.
    pub(crate) callers: Line,
}

impl Pool {
    fn new(tenant: TenantId, endpoint: Arc<Endpoint>, shared: Arc<Shared>) -> Arc<Self> {
        shared.pace.shorten_to(&endpoint, &shared.config);
        Arc::new(Self {
            tenant,
            direct: OnceLock::new(),
            shared,
            state: Mutex::new(State::new(endpoint)),
            changed: Notify::new(),
            clearing: StatementClearing::default(),
            standing: AtomicU8::new(Standing::Current as u8),
            callers: Line::new(),
        })
    }

    /// Returns the tenant's schema, compared with this program's.
    #[inline]
    pub(crate) fn standing(&self) -> Standing {
        Standing::from_number(self.standing.load(Acquire))
    }

    /// Sets the tenant's schema, compared with this program's.
    pub(crate) fn set_standing(&self, standing: Standing) {
        self.standing.store(standing as u8, Release);
    }

    /// Returns the permits for direct connections.
    pub(crate) fn direct_permits(&self) -> Arc<Semaphore> {
        let permits = || Arc::new(Semaphore::new(self.shared.config.direct_connections));
        Arc::clone(self.direct.get_or_init(permits))
    }

    /// Stops trusting connections opened before `instant`: idle ones close now, those on loan when they come
    /// back.
    pub(crate) fn condemn(&self, instant: Instant) {
        let doomed = self.state().condemn(instant);
        doomed.into_iter().for_each(Connection::close);
    }

    /// Notes that the pool has left the cache. Returns its idle connections, which the caller must close; those on loan
    /// close when they come back. Callers in the queue are still served.
    fn retire(&self) -> Vec<Connection> {
        let mut state = self.state();
        state.retired = true;
        let uses = state.take_use_delta(); // no later sweep reports these uses
        let (idle, spares) = (state.take_idle(|_| true), state.spares.take());
        drop(state);
        drop(spares);
        if uses > 0 {
            self.shared.stats.busiest.add(&self.tenant, f64::from(uses));
        }
        idle
    }

    /// Notes that the pool enters the cache in `epoch`, for the first time or again.
    fn revive(&self, epoch: u64) {
        let mut state = self.state();
        state.note_use(self.shared.clock.now().millis(), epoch);
        state.retired = false;
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.note_access();
        state
    }

    /// Locks the state for a caller that takes or gives back an idle connection, and changes nothing else without a
    /// note of the [access](State::note_access).
    #[inline]
    fn state_of_idle(&self) -> MutexGuard<'_, State> {
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
