//! One tenant's connections: the idle ones, and the callers who wait for one.
//!
//! A connection is in one of four places: idle here, leased to a caller, being opened (`wake`), or parting. Whatever
//! becomes free goes to the longest waiter first; nobody overtakes the queue.

pub(crate) mod budget_holder;
pub(crate) mod cache;
pub(crate) mod connect;
mod direct_wake;
mod doubt;
pub(crate) mod endpoint;
mod forbidden;
pub(crate) mod lease;
mod plans;
pub(crate) mod reaper;
pub(crate) mod refusals;
pub(crate) mod session_reset;
pub(crate) mod shared;
mod state;
pub(crate) mod wake_waiters;

use std::{
    error::Error as _,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, oneshot},
    task::yield_now,
    time::{Instant, timeout_at},
};

use self::{
    lease::{Connection, Fitness, Lease, Parting},
    refusals::Refusal,
    shared::Shared,
};
use crate::{
    connection::{
        status::Watch,
        verdict::{self, Next},
    },
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, Stage},
        tenant::TenantId,
    },
    sync::retry::{Noted, lock, timed_out},
    telemetry::stats::count,
};

pub(crate) use doubt::VERIFY_TIMEOUT;
pub(crate) use forbidden::Unserved;
use plans::Plans;
use state::Waiter;
pub(crate) use state::{State, Wake};
use wake_waiters::fail_wakers;

/// Longest wait for a turn of a connection's task, which takes microseconds unless the runtime is swamped.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// A caller that waits for longer than this will want to know why.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// A connection that ends sooner than this, without having served anybody, says that more of them will.
const EARLY_END: Duration = Duration::from_secs(1);

/// One tenant's connections.
pub(crate) struct Pool {
    pub(crate) tenant: TenantId,
    pub(crate) shared: Arc<Shared>,
    // Guards everything that changes. Never held across an await, nor while a connection is dropped.
    state: Mutex<State>,
    /// Rung when something was changed that a wake may be waiting for.
    pub(crate) changed: Notify,
    /// How many more connections past the pooler may be open.
    pub(crate) direct: Arc<Semaphore>,
    plans: Plans,
}

impl Pool {
    pub(crate) fn new(tenant: TenantId, endpoint: Arc<Endpoint>, shared: Arc<Shared>) -> Arc<Self> {
        shared.pace.keep_up_with(&endpoint, &shared.config);
        Arc::new(Self {
            tenant,
            direct: Arc::new(Semaphore::new(shared.config.direct_connections)),
            shared,
            state: Mutex::new(State::new(endpoint)),
            changed: Notify::new(),
            plans: Plans::default(),
        })
    }

    /// A connection, by `until`; and whether the database was believed asleep when it was waited for.
    ///
    /// # Cancel safety
    /// Dropping it gives up the place in the queue; an attempt to connect that is under way goes on.
    pub(crate) async fn get(self: &Arc<Self>, until: Instant) -> Result<(Lease, bool), Unserved> {
        let started = Instant::now();
        let found = async {
            let (mut slept, mut has_waited) = (false, false);
            if self.shared.pace.is_overdue(started) {
                yield_now().await; // the runtime looks which sockets have ended
            }
            loop {
                let lease = self.next(until, has_waited, &mut slept).await?;
                has_waited = true; // if the connection is dead, the turn is still this caller's
                let Some(lease) = self.vet(lease).await else {
                    continue;
                };
                if let Some(lease) = self.with_fresh_plans(lease, until).await? {
                    return Ok((lease, slept));
                }
            }
        };
        let mut found = pin!(found);
        if let Ok(found) = timeout_at(until.min(started + LONG_WAIT), &mut found).await {
            return found;
        }
        self.look_who_holds();
        timeout_at(until, found)
            .await
            .unwrap_or_else(|_| Err(self.out_of_time(started).into()))
    }

    /// Takes note of who holds the connections, so that it can be told for how long if that lasts.
    fn look_who_holds(&self) {
        for watch in &self.state().open {
            watch.held_for();
        }
    }

    /// What holds, and is the answer for whoever waits until `until`.
    fn refusal(&self, until: Instant) -> Option<Refusal> {
        let refusal = self.shared.refusals.get(&self.tenant, Route::Pooled);
        refusal.filter(|it| it.answers(until))
    }

    /// The next connection: an idle one, or whatever comes when it is the caller's turn.
    /// Notes in `slept` if it waits for a database believed asleep.
    async fn next(
        self: &Arc<Self>,
        until: Instant,
        has_waited: bool,
        slept: &mut bool,
    ) -> Result<Lease, Unserved> {
        let refusal = self.refusal(until);
        let turn = {
            let mut state = self.state();
            if let Some(why) = &state.forbidden {
                return Err(why.clone());
            }
            if let Some(connection) = state.pop_idle() {
                state.lent += 1;
                drop(state);
                return Ok(Lease::new(connection, Arc::clone(self)));
            }
            if let Some(refusal) = refusal.filter(|_| state.open.is_empty()) {
                return Err(refusal.error().into());
            }
            let (turn, mine) = oneshot::channel();
            let waiter = Waiter { turn, until };
            *slept |= state.believes_asleep();
            state.enqueue(waiter, has_waited);
            mine
        };
        self.pump();
        turn.await.unwrap_or_else(|_| Err(Error::closed().into()))
    }

    /// The lease, if its connection can be used; asks the server where that is in doubt.
    async fn vet(self: &Arc<Self>, lease: Lease) -> Option<Lease> {
        let watch = &lease.connection().watch;
        let mut fitness = lease.connection().fitness(&self.shared.config);
        if fitness == Fitness::Unsettled {
            watch.settle_within(TURN_TIMEOUT).await;
            fitness = lease.connection().fitness(&self.shared.config);
        }
        match fitness {
            Fitness::Fit => Some(lease),
            Fitness::Unverified => self.verify(lease).await,
            Fitness::Unsettled => {
                // Not given back: what cannot be used by this caller cannot be used by the next.
                lease.discard();
                None
            }
            Fitness::Tainted => {
                lease.end();
                None
            }
            Fitness::Closed => None,
        }
    }

    /// Trusts no connection opened before `instant` any more.
    pub(crate) fn condemn(&self, instant: Instant) {
        let doomed = self.state().condemn(instant);
        doomed.into_iter().for_each(Connection::close);
    }

    /// Takes a connection back from its user.
    pub(crate) fn take_back(self: &Arc<Self>, connection: Connection) {
        if !connection.is_whole() {
            // Somebody has swapped its inside with another tenant's.
            return connection.close();
        }
        if let Some(taken) = connection.watch.take_hint_used() {
            self.shared.hints.give_back(taken);
        }
        if connection.watch.has_ended() {
            return; // its task sees to the rest
        }
        if !connection.watch.is_idle() {
            return self.part(connection);
        }
        connection.watch.mark_served();
        if connection.watch.session.needs_reset() {
            return self.part(connection);
        }
        self.park(connection);
    }

    /// Gives a connection to the longest waiter, or keeps it.
    pub(crate) fn park(self: &Arc<Self>, connection: Connection) {
        if connection.watch.is_outdated() {
            self.note_outdated_plan();
            return connection.close();
        }
        let mut state = self.state();
        if connection.watch.has_ended() {
            drop(state);
            return self.pump(); // its task saw to the rest, but for those who relied on its coming back
        }
        state.note_alive(&connection.watch);
        if state.has_wakers() && (state.lost.is_none() || state.dialing == 0) {
            self.tell_awake(&mut state, &connection.watch);
        }
        let watch = &connection.watch;
        if self.plans.are_doubtful() {
            watch.suspect(); // so that the next caller looks whether they are cleared
        }
        // A request to cancel may still be under way, and must not cost the next in turn its place.
        let spent = watch.is_expired() || watch.was_cancelled() || self.shared.life.is_over();
        let surplus = state.surplus(&self.shared.config) > 0;
        let spent = spent || surplus || state.condemns(&connection);
        if spent || self.gives_way(&state, &connection) {
            watch.mark_closing(); // now, so that nobody else takes it for one that stays
            drop(state);
            return connection.close();
        }
        if let Some(waiter) = state.next_waiter() {
            state.lent += 1;
            let lease = Lease::new(connection, Arc::clone(self));
            drop(state); // before the lease can come back, which takes the lock
            // A waiter that has just left hands it back by dropping the lease, and the next one gets it.
            drop(waiter.turn.send(Ok(lease)));
        } else if state.retired || self.shared.life.is_shut() {
            drop(state);
            connection.close();
        } else if let Err(stray) = state.push_idle(connection) {
            drop(state);
            self.part(stray);
        }
    }

    /// Takes a connection on which a request turned up although it was idle out of the pool.
    pub(crate) fn pull(self: &Arc<Self>, watch: &Arc<Watch>) {
        if let Some(connection) = self.take_idle(watch) {
            self.part(connection);
        }
    }

    /// Sees to a connection that came back busy, or with a session to reset, in a task of its own.
    pub(crate) fn part(self: &Arc<Self>, connection: Connection) {
        let parting = Parting::new(connection, self);
        self.shared.runtime.spawn(parting.run());
    }

    fn take_idle(&self, watch: &Arc<Watch>) -> Option<Connection> {
        let is_it = |idle: &Connection| Arc::ptr_eq(&idle.watch, watch);
        self.state().take_idle(is_it).pop()
    }

    /// Notes that a connection's task has ended.
    pub(crate) fn ended(self: &Arc<Self>, watch: &Arc<Watch>) {
        drop(self.take_idle(watch));
        let mut state = self.state();
        state.remove_open(watch);
        count(&self.shared.stats.closed);
        let ours = watch.is_closing() && watch.farewell().is_none();
        let early = !ours && !watch.has_served() && watch.opened().elapsed() < EARLY_END;
        state.early_ends = if early { state.early_ends + 1 } else { 0 };
        if !ours {
            count(&self.shared.stats.closed_by_peer);
            state.note_loss(watch.died().unwrap_or_else(Instant::now));
        }
        drop(state);
        self.changed.notify_waiters(); // nobody may be left who could serve those who wait
        self.pump();
    }

    /// Fails the longest waiter with `err`, and those who want no connection.
    pub(crate) fn fail_one(&self, err: &Error) {
        let mut state = self.state();
        let (waiter, wakers) = (state.next_waiter(), state.take_wakers(|_| true));
        drop(state);
        if let Some(waiter) = waiter {
            drop(waiter.turn.send(Err(err.clone().into())));
        }
        fail_wakers(wakers, &err.clone().into());
    }

    /// Fails every waiter with `err`.
    pub(crate) fn fail_all(&self, err: &Error) {
        let mut state = self.state();
        let (failed, wakers) = (state.take_waiters(|_| true), state.take_wakers(|_| true));
        drop(state);
        for waiter in failed {
            drop(waiter.turn.send(Err(err.clone().into())));
        }
        fail_wakers(wakers, &err.clone().into());
    }

    /// Remembers `refusal`, returns it as it is remembered, and answers those with it for whom waiting does not help.
    pub(crate) fn refuse(&self, route: Route, refusal: &Refusal) -> Refusal {
        let refusals = &self.shared.refusals;
        let refusal = if let Some(known) = refusals.get(&self.tenant, route) {
            known
        } else {
            count(&self.shared.stats.refused);
            self.shared.stats.meters.refused(refusal.kind());
            refusals.keep(&self.tenant, route, refusal.clone())
        };
        if route == Route::Pooled {
            self.turn_away(&refusal);
        }
        refusal
    }

    /// Answers those with `refusal` for whom waiting does not help; says whether anybody still waits.
    pub(crate) fn turn_away(&self, refusal: &Refusal) -> bool {
        let mut state = self.state();
        if !state.open.is_empty() {
            return state.is_wanted(); // those who wait may still be served by a connection that is open
        }
        let failed = state.take_waiters(|waiter| refusal.answers(waiter.until));
        let wakers = state.take_wakers(|waker| refusal.answers(waker.until));
        let wanted = state.is_wanted();
        drop(state);
        let why = refusal.error().into();
        for waiter in failed {
            drop(waiter.turn.send(Err(Unserved::clone(&why))));
        }
        fail_wakers(wakers, &why);
        wanted
    }

    /// Remembers why the last attempt failed, for callers that run out of time. Returns it with what is known here
    /// about coming back.
    pub(crate) fn note(&self, route: Route, failure: Error) -> Error {
        let mut state = self.state();
        if route == Route::Direct && !state.believes_asleep() {
            return failure; // it is no wake, for which others wait too
        }
        let failure = match verdict::next(failure.kind()) {
            Next::AgainSlowly => failure.with_retry_after(state.rest_of_repetition()),
            _ => failure,
        };
        state.last_failure = Some(Noted::new(failure.clone()));
        failure
    }

    pub(crate) fn out_of_time(&self, started: Instant) -> Error {
        let state = self.state();
        let waited_for = if state.believes_asleep() {
            Stage::Wake
        } else {
            Stage::Checkout
        };
        let failure = state.last_failure.as_ref().map(Noted::error);
        let err = timed_out(waited_for, started.elapsed(), failure);
        let full = state.full(&self.shared.config);
        drop(state);
        match full.filter(|_| waited_for == Stage::Checkout && err.source().is_none()) {
            Some(full) => err.with_more(&full),
            None => err,
        }
    }

    /// Puts the pool out of use: idle connections close now, leased ones when they come back. Callers in the queue are
    /// still served. Does nothing if the pool has come back since its stay number `stay`.
    pub(crate) fn retire(&self, stay: u64) {
        let mut state = self.state();
        if state.stay != stay {
            return;
        }
        state.retired = true;
        let news = state.news_of_use(); // no sweep comes here any more
        let idle = state.take_idle(|_| true);
        drop(state);
        if news > 0 {
            self.shared.stats.busiest.add(&self.tenant, f64::from(news));
        }
        idle.into_iter().for_each(Connection::close);
    }

    /// Puts the pool into use, for the first time or again, when a part of the cache has changed `turn` times; returns the
    /// number of this stay.
    pub(crate) fn revive(&self, turn: u64) -> u64 {
        let mut state = self.state();
        state.note_use(Instant::now(), turn);
        state.retired = false;
        state.stay += 1;
        state.stay
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let reused = self.state().reused;
        self.shared.stats.reused.fetch_add(reused, Relaxed); // whoever counts has no pool to ask any more
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
