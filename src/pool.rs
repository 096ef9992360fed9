//! One tenant's connections: the idle ones, and the callers who wait for one.
//!
//! A connection is in one of four places: idle here, leased to a caller, being opened (`wake`), or parting. Whatever
//! becomes free goes to the longest waiter first; nobody overtakes the queue.

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::Config,
    dial::Dialer,
    endpoint::Endpoint,
    error::{Error, Stage},
    lease::{Connection, Fitness, Lease, Parting},
    life::Life,
    retry::{lock, timed_out},
    stats::{Stats, count},
    tenant::TenantId,
    wake::Reason,
    watch::Watch,
};

/// Longest wait for the answer of an idle connection that is asked whether it still lives.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a turn of a connection's task, which takes microseconds unless the runtime is swamped.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that ends sooner than this, without having served anybody, says that more of them will.
const EARLY_END: Duration = Duration::from_secs(1);

/// What all pools of a router share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) dialer: Dialer,
    pub(crate) stats: Stats,
    pub(crate) life: Arc<Life>,
    pub(crate) runtime: Handle,
    /// The task of every open connection.
    pub(crate) connections: TaskTracker,
    /// The task of every attempt to open one.
    pub(crate) attempts: TaskTracker,
}

impl Shared {
    pub(crate) fn new(config: Config, dialer: Dialer, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            config,
            dialer,
            stats: Stats::default(),
            life: Arc::default(),
            runtime,
            connections: TaskTracker::new(),
            attempts: TaskTracker::new(),
        })
    }
}

/// One tenant's connections at one endpoint.
pub(crate) struct Pool {
    pub(crate) tenant: TenantId,
    pub(crate) endpoint: Endpoint,
    pub(crate) shared: Arc<Shared>,
    // Guards everything that changes. Never held across an await, nor while a connection is dropped.
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Last in, first out, so that a quiet tenant's surplus grows old.
    idle: Vec<Connection>,
    /// First come, first served. Empty while anything is idle.
    waiters: VecDeque<Waiter>,
    /// Attempts under way.
    pub(crate) dialing: usize,
    /// Connections that will probably be free in a moment: what their last user left is about to end.
    pub(crate) settling: usize,
    /// Connections whose tasks have not ended.
    pub(crate) open: usize,
    /// Whether a connection was lost, so that the compute may be asleep.
    pub(crate) lost: bool,
    /// Connections in a row that ended as soon as they were open.
    pub(crate) early_ends: u32,
    /// Connections opened before this instant are not to be trusted.
    condemned: Option<Instant>,
    pub(crate) last_failure: Option<Error>,
    /// Whether the pool is out of the cache: what comes back is closed.
    retired: bool,
    /// How often it has entered the cache.
    stay: u64,
}

/// A caller in the queue.
struct Waiter {
    turn: oneshot::Sender<Result<Lease, Error>>,
    reason: Reason,
}

impl Pool {
    pub(crate) fn new(tenant: TenantId, endpoint: Endpoint, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            tenant,
            endpoint,
            shared,
            state: Mutex::default(),
        })
    }

    /// An idle connection that can be used as it is. No waiting, no I/O, no allocation.
    pub(crate) fn get_now(self: &Arc<Self>) -> Option<Lease> {
        let connection = self.state().pop_idle()?;
        let lease = Lease::new(connection, self);
        (lease.connection().fitness(&self.shared.config) == Fitness::Fit).then_some(lease)
    }

    /// A connection, by `until`.
    ///
    /// # Cancel safety
    /// Dropping it gives up the place in the queue; an attempt to connect that is under way goes on.
    pub(crate) async fn get(
        self: &Arc<Self>,
        until: Instant,
        reason: Reason,
    ) -> Result<Lease, Error> {
        let started = Instant::now();
        let found = async {
            loop {
                let lease = self.next(reason).await?;
                if let Some(lease) = self.vet(lease).await {
                    return Ok(lease);
                }
            }
        };
        timeout_at(until, found)
            .await
            .unwrap_or_else(|_| Err(self.out_of_time(started)))
    }

    /// The next connection: an idle one, or whatever comes when it is the caller's turn.
    async fn next(self: &Arc<Self>, reason: Reason) -> Result<Lease, Error> {
        let turn = {
            let mut state = self.state();
            if let Some(connection) = state.pop_idle() {
                drop(state);
                return Ok(Lease::new(connection, self));
            }
            let (sender, turn) = oneshot::channel();
            state.waiters.push_back(Waiter {
                turn: sender,
                reason,
            });
            turn
        };
        self.pump();
        turn.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    /// The lease, if its connection can be used; asks the server where that is in doubt.
    async fn vet(&self, lease: Lease) -> Option<Lease> {
        let Connection { client, watch, .. } = lease.connection();
        let mut fitness = lease.connection().fitness(&self.shared.config);
        if fitness == Fitness::Unsettled && watch.clean_when_settled(TURN_TIMEOUT).await {
            fitness = lease.connection().fitness(&self.shared.config);
        }
        match fitness {
            Fitness::Fit => Some(lease),
            Fitness::Unverified => {
                let asked = Instant::now();
                let answer = timeout(VERIFY_TIMEOUT, client.check_connection()).await;
                if matches!(answer, Ok(Ok(()))) {
                    return Some(lease);
                }
                lease.end();
                self.condemn(asked);
                None
            }
            Fitness::Unsettled => {
                // Not given back: what cannot be used by this caller cannot be used by the next.
                lease.discard();
                None
            }
            Fitness::Closed => None,
        }
    }

    /// Trusts no connection opened before `instant` any more.
    fn condemn(&self, instant: Instant) {
        let mut state = self.state();
        state.condemned = state.condemned.max(Some(instant));
        state.lost = true;
        let idle = mem::take(&mut state.idle);
        let (doomed, kept) = idle
            .into_iter()
            .partition::<Vec<_>, _>(|it| state.condemns(it));
        state.idle = kept;
        drop(state);
        doomed.into_iter().for_each(Connection::close);
    }

    /// Takes a connection back from its user.
    pub(crate) fn take_back(self: &Arc<Self>, connection: Connection) {
        if !connection.is_whole() {
            // Somebody has swapped its inside with another tenant's.
            return connection.close();
        }
        if !connection.watch.is_idle() && !connection.client.is_closed() {
            return self.part(connection);
        }
        connection.watch.mark_served();
        self.park(connection);
    }

    /// Gives a connection to the longest waiter, or keeps it.
    pub(crate) fn park(self: &Arc<Self>, connection: Connection) {
        let mut state = self.state();
        if connection.client.is_closed() {
            drop(state);
            return; // its task has ended or is about to, and sees to the rest
        }
        if state.condemns(&connection) || self.shared.life.is_over() {
            drop(state);
            return connection.close();
        }
        if let Some(waiter) = state.next_waiter() {
            drop(state);
            // A waiter that has just left hands it back by dropping the lease, and the next one gets it.
            drop(waiter.turn.send(Ok(Lease::new(connection, self))));
        } else if state.retired {
            drop(state);
            connection.close();
        } else {
            let watch = Arc::clone(&connection.watch);
            watch.set_parked(true);
            state.idle.push(connection);
            drop(state);
            if watch.is_stray() {
                self.pull(&watch); // its task wrote something just before it could see that it is parked
            }
        }
    }

    /// Takes a connection on which a request turned up although it was idle out of the pool.
    pub(crate) fn pull(self: &Arc<Self>, watch: &Arc<Watch>) {
        if let Some(connection) = self.take_idle(watch) {
            self.part(connection);
        }
    }

    /// Sees to a connection that came back busy, in a task of its own.
    pub(crate) fn part(self: &Arc<Self>, connection: Connection) {
        let parting = Parting::new(connection, self);
        self.shared.runtime.spawn(parting.run());
    }

    fn take_idle(&self, watch: &Arc<Watch>) -> Option<Connection> {
        let mut state = self.state();
        let place = state
            .idle
            .iter()
            .position(|idle| Arc::ptr_eq(&idle.watch, watch))?;
        watch.set_parked(false);
        Some(state.idle.remove(place))
    }

    /// Notes that a connection's task has ended.
    pub(crate) fn ended(self: &Arc<Self>, watch: &Arc<Watch>) {
        drop(self.take_idle(watch));
        let mut state = self.state();
        state.open -= 1;
        let ours = watch.is_closing();
        let early = !ours && !watch.has_served() && watch.opened().elapsed() < EARLY_END;
        state.early_ends = if early { state.early_ends + 1 } else { 0 };
        if !ours {
            count(&self.shared.stats.closed_by_peer);
            state.lost = true;
        }
        drop(state);
        self.pump();
    }

    /// Fails every waiter, or only the longest one, with `err`.
    pub(crate) fn fail(&self, err: &Error, everyone: bool) {
        let mut state = self.state();
        state.last_failure = Some(err.clone());
        let failed = if everyone {
            mem::take(&mut state.waiters)
        } else {
            state.waiters.pop_front().into_iter().collect()
        };
        drop(state);
        for waiter in failed {
            drop(waiter.turn.send(Err(err.clone())));
        }
    }

    /// Remembers why the last attempt failed, for callers that run out of time.
    pub(crate) fn note(&self, failure: &Error) {
        self.state().last_failure = Some(failure.clone());
    }

    fn out_of_time(&self, started: Instant) -> Error {
        let state = self.state();
        let waited_for = if state.believes_asleep() {
            Stage::Wake
        } else {
            Stage::Checkout
        };
        timed_out(waited_for, started.elapsed(), state.last_failure.clone())
    }

    /// Puts the pool out of use: idle connections close now, leased ones when they come back. Callers in the queue are
    /// still served. Does nothing if the pool has come back since its stay number `stay`.
    pub(crate) fn retire(&self, stay: u64) {
        let mut state = self.state();
        if state.stay != stay {
            return;
        }
        state.retired = true;
        let idle = mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(Connection::close);
    }

    /// Puts the pool into use, for the first time or again; returns the number of this stay.
    pub(crate) fn revive(&self) -> u64 {
        let mut state = self.state();
        state.retired = false;
        state.stay += 1;
        state.stay
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Whether the compute may be asleep: nothing is open that would prove the contrary.
    pub(crate) fn believes_asleep(&self) -> bool {
        self.lost || self.open == 0
    }

    /// How many more attempts are due now, and why.
    pub(crate) fn dials_due(&mut self, config: &Config) -> (usize, Reason) {
        self.waiters.retain(|waiter| !waiter.turn.is_closed());
        let at_once = if self.believes_asleep() {
            1
        } else {
            config.concurrent_dials
        };
        let room = config.pool_size.saturating_sub(self.open + self.dialing);
        let coming = self.dialing + self.settling;
        let unserved = self.waiters.len().saturating_sub(coming);
        let due = unserved.min(at_once.saturating_sub(self.dialing)).min(room);
        (
            due,
            self.waiters
                .front()
                .map_or(Reason::Request, |waiter| waiter.reason),
        )
    }

    fn pop_idle(&mut self) -> Option<Connection> {
        let connection = self.idle.pop()?;
        connection.watch.set_parked(false);
        Some(connection)
    }

    fn next_waiter(&mut self) -> Option<Waiter> {
        std::iter::from_fn(|| self.waiters.pop_front()).find(|waiter| !waiter.turn.is_closed())
    }

    fn condemns(&self, connection: &Connection) -> bool {
        self.condemned
            .is_some_and(|instant| connection.watch.opened() < instant)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
