//! The budget of connections, and the order of turns when it is used up.
//!
//! Every dial needs a [`Permit`], which is held from before the dial until the server has ended the connection. At the
//! limit, idle connections are closed, those of the least recently used tenants first. If no connection is idle,
//! tenants take turns. A tenant without a connection comes first, and a reserve of the budget is kept for such tenants.
//!
//! The budget's lock is the last to be taken: it is not held while an owner is called or a permit is dropped.

mod room;
mod turns;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{
            AtomicU8, AtomicUsize,
            Ordering::{AcqRel, Acquire, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use self::{
    room::Idle,
    turns::{Key, Turns},
};
use super::wait_estimate::WaitEstimate;
use crate::sync::lock;

/// Shortest life of a tenant's only connection, and shortest wait of another tenant without one, before the first
/// tenant has to give its connection up.
const SHORTEST_HOLD: Duration = Duration::from_millis(500);
/// An owner of connections: one tenant.
pub(crate) trait Owner: Send + Sync {
    /// Returns the last use of the connection that has been idle for longest. A recently used tenant has one only as
    /// surplus, because idle connections are taken last in, first out.
    fn idle_since(&self) -> Option<Instant>;
    /// Closes that connection, after [`Budget::mark_closing`], if it was not used after `unused_since`. Returns whether
    /// there was one.
    fn close_idle(&self, unused_since: Instant) -> bool;
    /// Closes one of the owner's spares, after [`Budget::mark_closing`]. Returns whether there was one.
    fn close_spare(&self) -> bool;
    /// Withdraws the owner's requests if no caller needs them any more.
    fn reconsider(&self);
}

/// The budget of one router's connections.
pub(crate) struct Budget {
    limit: usize,
    /// Limit for owners that already have a connection.
    usual_limit: usize,
    state: Mutex<State>,
    /// Number of connections that should be closed and are not marked yet. Written under the budget's lock, before an
    /// owner is called. Read by an owner that is about to keep a connection idle, under the lock that
    /// `Owner::close_idle` takes.
    missing: AtomicUsize,
    /// Notified when the first connection is missing.
    short: Notify,
    /// Notified when no permit is held any more.
    emptied: Notify,
}

struct State {
    used: usize,
    turns: Turns,
    /// Number of used connections that are being closed for other owners.
    leaving: usize,
    /// Idle connections that were searched and closed since connections are missing.
    searched_idle: Idle,
    wait_estimate: WaitEstimate,
}

impl State {
    /// Returns whether more connections should be closed for owners without one, which may use all of `limit`.
    fn lacks_for_first(&self, limit: usize) -> bool {
        let (first, _) = self.turns.wanted();
        first > 0 && self.used + first > limit + self.leaving
    }
}

impl Budget {
    /// Creates a budget of `limit` connections, of which `reserve` are for owners without one.
    pub(crate) fn new(limit: usize, reserve: usize) -> Arc<Self> {
        let state = State {
            used: 0,
            turns: Turns::default(),
            leaving: 0,
            searched_idle: Idle::None,
            wait_estimate: WaitEstimate::new(),
        };
        Arc::new(Self {
            limit,
            usual_limit: limit - reserve.min(limit),
            state: Mutex::new(state),
            missing: AtomicUsize::new(0),
            short: Notify::new(),
            emptied: Notify::new(),
        })
    }

    /// Waits for a permit to open one connection for `owner`, as long as it takes. Without an owner, the permit never
    /// comes from the reserve.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
    pub(crate) async fn take(self: &Arc<Self>, owner: Option<&Weak<dyn Owner>>) -> Permit {
        let (sender, my_turn) = oneshot::channel();
        let _place = {
            let mut state = self.state();
            if state.turns.waiting() == 0 {
                state.wait_estimate = WaitEstimate::new();
            }
            let (key, number) = state.turns.wait(owner, sender);
            QueuedRequest {
                budget: Arc::clone(self),
                key,
                number,
            }
        };
        self.grant();
        self.make_room_once_more();
        // The sender lives as long as `_place`.
        my_turn
            .await
            .expect("every queued request gets its turn unless it is dropped")
    }

    /// Returns a permit for a spare of `owner`: a connection that the owner may need soon, and that it closes for any
    /// other request. Returns `None` while a request waits or only the reserve is left.
    pub(crate) fn take_spare(self: &Arc<Self>, owner: &Weak<dyn Owner>) -> Option<Permit> {
        let mut state = self.state();
        if state.turns.waiting() > 0 || state.used >= self.usual_limit {
            return None;
        }
        state.used += 1;
        let key = state.turns.hold(owner);
        drop(state);
        Some(self.permit_of(key))
    }

    fn permit_of(self: &Arc<Self>, key: Key) -> Permit {
        let permit_id = PermitId {
            key,
            state: Arc::new(AtomicU8::new(TAKEN)),
        };
        let budget = Arc::clone(self);
        Permit { budget, permit_id }
    }

    /// Gives the free permits to the requests whose turn it is.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let used = state.used;
            let next = (used < self.limit).then(|| state.turns.next(used < self.usual_limit));
            let Some((key, sender)) = next.flatten() else {
                return self.note_missing(&mut state);
            };
            state.used += 1;
            state.wait_estimate.record();
            drop(state);
            // If the request is gone, this drops the permit, and the next request gets it.
            drop(sender.send(self.permit_of(key)));
        }
    }

    /// Returns whether connections should be closed for waiting requests. Cheap.
    pub(crate) fn is_contended(&self) -> bool {
        self.missing.load(SeqCst) > 0
    }

    /// Returns whether a connection that was opened at `opened` and has just come back should go to another owner. If
    /// so, it is marked, and the caller must close it. `wanted`: its owner has a use for it now.
    pub(crate) fn should_yield(&self, permit_id: &PermitId, opened: Instant, wanted: bool) -> bool {
        let mut state = self.state();
        if self.missing.load(SeqCst) == 0 {
            return false;
        }
        let held = state.turns.keeps(permit_id.key);
        let is_over =
            |since: Instant| since.elapsed() >= SHORTEST_HOLD && opened.elapsed() >= SHORTEST_HOLD;
        let leaves = if state.lacks_for_first(self.limit) {
            let since = state.turns.first_waits_since(permit_id.key);
            since.is_some_and(|since| !wanted || held > 1 || is_over(since))
        } else {
            let fewest = state.turns.fewest_of_others(permit_id.key);
            fewest.is_some_and(|fewest| held > fewest + 1)
                || state.turns.unowned_waits_since().is_some_and(is_over)
        };
        leaves && self.vacate_in(&mut state, permit_id)
    }

    /// Marks a connection as being closed for other owners. Returns `false` if it was marked before.
    pub(crate) fn mark_closing(&self, permit_id: &PermitId) -> bool {
        self.vacate_in(&mut self.state(), permit_id)
    }

    fn vacate_in(&self, state: &mut State, permit_id: &PermitId) -> bool {
        let taken = permit_id
            .state
            .compare_exchange(TAKEN, LEAVING, AcqRel, Acquire);
        if taken.is_ok() {
            state.leaving += 1;
            state.turns.leave(permit_id.key);
            self.note_missing(state);
        }
        taken.is_ok()
    }

    /// Returns whether only the reserve is left, or nothing.
    pub(crate) fn only_reserve_left(&self) -> bool {
        self.state().used >= self.usual_limit
    }

    /// Returns whether an owner that has no connection at all waits for one.
    pub(crate) fn some_have_none(&self) -> bool {
        self.state().turns.some_have_none()
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the number of connections that are open, being opened or being closed.
    pub(crate) fn used(&self) -> usize {
        self.state().used
    }

    /// Returns the number of requests that wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.state().turns.waiting()
    }

    /// Returns the estimated time until the requests that wait now are served.
    pub(crate) fn wait(&self) -> Duration {
        let state = self.state();
        state.wait_estimate.estimate(state.turns.waiting())
    }

    /// Waits until no permit is held.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.used() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn note_missing(&self, state: &mut State) {
        let (first, others) = state.turns.wanted();
        let limit = if others > 0 {
            self.usual_limit
        } else {
            self.limit
        };
        let missing = if first + others == 0 {
            0
        } else {
            (state.used + first + others).saturating_sub(limit + state.leaving)
        };
        if self.missing.swap(missing, SeqCst) == 0 && missing > 0 {
            self.short.notify_one();
        }
        state.searched_idle = state.searched_idle.min(self.wanted(state));
    }

    fn release(self: &Arc<Self>, permit_id: &PermitId) {
        let mut state = self.state();
        let was_leaving = permit_id.state.swap(FREE, AcqRel) == LEAVING;
        state.used -= 1;
        state.leaving -= usize::from(was_leaving);
        state.turns.release(permit_id.key, was_leaving);
        if state.used == 0 {
            self.emptied.notify_waiters();
        }
        drop(state);
        self.grant();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The right to one connection. Dropping it returns it to the budget.
#[must_use]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    permit_id: PermitId,
}

/// The budget's id of a connection.
#[derive(Clone)]
pub(crate) struct PermitId {
    key: Key,
    /// Written under the budget's lock.
    state: Arc<AtomicU8>,
}

const TAKEN: u8 = 0;
const LEAVING: u8 = 1;
const FREE: u8 = 2;

impl Permit {
    pub(crate) fn id(&self) -> PermitId {
        self.permit_id.clone()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.release(&self.permit_id);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// A request that waits. Dropping it withdraws the request if it was not served.
struct QueuedRequest {
    budget: Arc<Budget>,
    key: Key,
    number: u64,
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        let given_up = state.turns.give_up(self.key, self.number);
        self.budget.note_missing(&mut state);
        drop(state);
        drop(given_up);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::{
        room::{IDLE, LONG_IDLE},
        *,
    };

    /// A tenant whose connections end as soon as they are closed.
    struct Tenant {
        budget: Arc<Budget>,
        idle: Mutex<Vec<(Instant, Permit)>>,
        spares: Mutex<Vec<Permit>>,
    }

    impl Tenant {
        fn new(budget: &Arc<Budget>) -> Arc<Self> {
            let budget = Arc::clone(budget);
            let (idle, spares) = (Mutex::default(), Mutex::default());
            Arc::new(Self {
                budget,
                idle,
                spares,
            })
        }

        fn owner(self: &Arc<Self>) -> Weak<dyn Owner> {
            let tenant: Weak<Self> = Arc::downgrade(self);
            tenant
        }

        async fn take(self: &Arc<Self>) -> Permit {
            self.budget.take(Some(&self.owner())).await
        }

        fn take_now(self: &Arc<Self>) -> Option<Permit> {
            self.take().now_or_never()
        }

        fn take_spare(self: &Arc<Self>) -> bool {
            let spare = self.budget.take_spare(&self.owner());
            let is_taken = spare.is_some();
            lock(&self.spares).extend(spare);
            is_taken
        }

        fn park(&self, permit: Permit) {
            lock(&self.idle).push((Instant::now(), permit));
        }
    }

    impl Owner for Tenant {
        fn idle_since(&self) -> Option<Instant> {
            lock(&self.idle).first().map(|(since, _)| *since)
        }

        fn close_idle(&self, unused_since: Instant) -> bool {
            let mut idle = lock(&self.idle);
            if idle.first().is_none_or(|(since, _)| *since > unused_since) {
                return false;
            }
            let (_, permit) = idle.remove(0);
            drop(idle);
            self.budget.mark_closing(&permit.permit_id)
        }

        fn close_spare(&self) -> bool {
            let spare = lock(&self.spares).pop();
            spare.is_some_and(|it| self.budget.mark_closing(&it.permit_id))
        }

        fn reconsider(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_kept_for_those_who_have_none() {
        let budget = Budget::new(3, 1);
        let [busy, quiet, late] = [(); 3].map(|()| Tenant::new(&budget));
        let _held = [busy.take_now().unwrap(), busy.take_now().unwrap()];
        assert!(busy.take_now().is_none());
        let first = quiet.take_now().unwrap();
        assert!(quiet.take_now().is_none() && late.take_now().is_none());
        assert_eq!((budget.used(), budget.waiting()), (3, 0));
        drop(first);
        assert!(late.take_now().is_some());
        let aside = budget.take(None).now_or_never();
        assert!(aside.is_none(), "it is not there for what is nobody's");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_longest_is_closed_first() {
        let budget = Budget::new(2, 0);
        let [old, young, late] = [(); 3].map(|()| Tenant::new(&budget));
        for tenant in [&old, &young] {
            tenant.park(tenant.take_now().unwrap());
            advance(Duration::from_millis(1)).await;
        }
        let _held = late.take_now().unwrap();
        assert!(old.idle_since().is_none() && young.idle_since().is_some());
        assert!(
            late.take_now().is_none(),
            "for one more only what is unused"
        );
        advance(IDLE).await;
        assert!(late.take_now().is_some());
        assert!(young.idle_since().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn spares_take_nothing_that_a_request_wants() {
        let budget = Budget::new(4, 1);
        let [waking, busy, late] = [(); 3].map(|()| Tenant::new(&budget));
        let held = waking.take_now().unwrap();
        assert!(waking.take_spare() && waking.take_spare());
        assert!(!waking.take_spare(), "the reserve is for others");
        let _held = busy.take_now().unwrap();
        assert_eq!(budget.used(), 4);
        let _late = late
            .take_now()
            .expect("a spare was closed for it, however new");
        assert_eq!(lock(&waking.spares).len(), 1);
        let mut one_more = Box::pin(busy.take());
        assert!(
            futures_util::poll!(&mut one_more).is_pending(),
            "all in use"
        );
        assert!(lock(&waking.spares).is_empty());
        drop(held);
        let Poll::Ready(one_more) = futures_util::poll!(&mut one_more) else {
            panic!("its turn");
        };
        drop(one_more);
        assert_eq!(
            (budget.used(), budget.waiting()),
            (2, 0),
            "nothing stays behind"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_take_turns_and_who_has_none_comes_first() {
        let budget = Budget::new(2, 0);
        let [hot, calm, late] = [(); 3].map(|()| Tenant::new(&budget));
        let held = [hot.take_now().unwrap(), calm.take_now().unwrap()];
        let mut waiting = [&hot, &hot, &calm, &late].map(|it| Box::pin(it.take()));
        for it in &mut waiting {
            assert!(futures_util::poll!(it).is_pending());
        }
        let [h1, h2, c, l] = &mut waiting;
        drop(held);
        let Poll::Ready(late_one) = futures_util::poll!(&mut *l) else {
            panic!("it has none");
        };
        let Poll::Ready(hot_one) = futures_util::poll!(&mut *h1) else {
            panic!("it has none any more, and waits for longer than calm");
        };
        drop(late_one);
        let Poll::Ready(_calm_one) = futures_util::poll!(c) else {
            panic!("it has none any more either");
        };
        assert!(futures_util::poll!(&mut *h2).is_pending());
        drop(hot_one);
        assert!(futures_util::poll!(h2).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_more_gives_way_at_once_and_the_only_one_after_its_turn() {
        let budget = Budget::new(3, 0);
        let [hot, calm, late] = [(); 3].map(|()| Tenant::new(&budget));
        let opened = Instant::now();
        let [h1, h2] = [hot.take_now().unwrap(), hot.take_now().unwrap()];
        let c = calm.take_now().unwrap();
        assert!(
            !budget.should_yield(&h1.permit_id, opened, true),
            "nobody waits"
        );
        let mut waits = Box::pin(late.take());
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(
            !budget.should_yield(&c.permit_id, opened, true),
            "its only one"
        );
        assert!(budget.should_yield(&h1.permit_id, opened, true));
        assert!(
            !budget.should_yield(&h2.permit_id, opened, true),
            "one is enough"
        );
        drop(h1);
        let l = waits.await;
        let mut waits = Box::pin(hot.take());
        assert!(futures_util::poll!(&mut waits).is_pending());
        advance(2 * SHORTEST_HOLD).await;
        assert!(
            !budget.should_yield(&l.permit_id, opened, true),
            "both have one"
        );
        drop(h2);
        let _h = waits.await;
        let fourth = Tenant::new(&budget);
        let mut waits = Box::pin(fourth.take());
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(!budget.should_yield(&c.permit_id, opened, true), "not yet");
        advance(SHORTEST_HOLD).await;
        assert!(budget.should_yield(&c.permit_id, opened, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_given_up_leaves_nothing_behind() {
        let budget = Budget::new(1, 0);
        let [a, b] = [(); 2].map(|()| Tenant::new(&budget));
        let held = a.take_now().unwrap();
        let mut gone = Box::pin(b.take());
        let mut waits = Box::pin(b.take());
        assert!(futures_util::poll!(&mut gone).is_pending());
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(budget.is_contended());
        drop(held); // granted, but not yet noticed
        drop(gone);
        assert!(futures_util::poll!(&mut waits).is_ready());
        drop(waits);
        assert_eq!((budget.used(), budget.waiting()), (0, 0));
        assert!(!budget.is_contended());
        assert!(budget.state().turns.owners().is_empty());
        budget.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_is_freed_of_what_has_been_idle_for_long() {
        let budget = Budget::new(2, 1);
        let [a, b] = [(); 2].map(|()| Tenant::new(&budget));
        for tenant in [&a, &b] {
            tenant.park(tenant.take_now().unwrap());
        }
        budget.restore_reserve();
        assert_eq!(budget.used(), 2);
        advance(LONG_IDLE).await;
        budget.restore_reserve();
        assert_eq!(budget.used(), 1);
    }
}
