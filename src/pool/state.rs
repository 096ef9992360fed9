//! What a pool holds at a moment, and what follows from it.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{Unserved, lease::Lease};
use crate::{
    connection::{Connection, status::ConnectionStatus, verdict::REPEATED},
    model::{config::Config, endpoint::Endpoint, error::ErrorKind},
    sync::progress::Noted,
    telemetry::labels::Reason,
};

/// Time after which the cache hears once more that a pool is used. Its order of use is right up to this.
const NEWS_AFTER: Duration = Duration::from_secs(1);

/// Wakes that are remembered of a tenant that has a pool.
const WAKES: usize = 4;

/// A queue of this length is not looked through for waiters who left.
const SHORT_QUEUE: usize = 64;

/// Everything that changes in a pool.
pub(crate) struct State {
    /// Where the tenant lives. Another one is another generation: its connections are told apart by it.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The most connections, whatever their generation; none for the router's own number. It changes without a move, so
    /// that of the endpoint above may be out of date.
    max_connections: Option<usize>,
    /// Whether the endpoint came from where the truth is, and nobody has tried it yet.
    pub(crate) fresh: bool,
    /// Last in, first out, so that a quiet tenant's surplus grows old.
    idle: Vec<Connection>,
    /// First come, first served. Empty while anything is idle.
    waiters: VecDeque<Waiter>,
    /// Who only wants the database awake, and no connection.
    wakers: Vec<WakeWaiter>,
    /// Length of the queue at which it is looked through for waiters who left.
    prune_waiters_at: usize,
    /// Attempts under way.
    pub(crate) dialing: usize,
    /// How many of them have begun to log in.
    pub(crate) logging_in: usize,
    /// Connections that will probably be free in a moment: what their last user left is about to end.
    pub(crate) settling: usize,
    /// Connections whose tasks have not ended, idle or not.
    pub(crate) open: Vec<Arc<ConnectionStatus>>,
    /// Direct connections whose tasks have not ended. They prove that the compute is awake, and are not counted else.
    pub(crate) direct: Vec<Arc<ConnectionStatus>>,
    /// When a connection was lost, so that the compute may be asleep; none if it was proved awake since.
    pub(crate) lost: Option<Instant>,
    /// Why no caller gets a connection, if none does.
    pub(crate) forbidden: Option<Unserved>,
    /// Connections in a row that ended as soon as they were open.
    pub(crate) early_ends: u32,
    /// Connections opened before this instant are not to be trusted.
    condemned: Option<Instant>,
    pub(crate) last_failure: Option<Noted>,
    /// How often something was changed that may have mended what failed.
    pub(crate) change_count: u64,
    /// Since when Neon's control plane may only be repeating that it failed.
    pub(crate) repeated_since: Option<Instant>,
    /// Whether the pool is out of the cache: what comes back is closed.
    pub(crate) retired: bool,
    /// How often it has entered the cache.
    pub(crate) cache_epoch: u64,
    /// When the cache last heard that it is used.
    touched_at: Instant,
    /// How many times a part of the cache had changed by then.
    touched_epoch: u64,
    /// Calls of `get` answered with a connection that was idle.
    pub(crate) reused: u64,
    /// Those answered with one that was waited for.
    pub(crate) lent: u64,
    /// How many of both were told to whoever asks which tenants are busiest.
    reported_uses: u64,
    /// The last few wakes, oldest first.
    pub(crate) wakes: Vec<Wake>,
}

/// A wake that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wake {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    pub(crate) reason: Reason,
    /// Why it failed, if it has.
    pub(crate) failure: Option<ErrorKind>,
}

/// Somebody who wants the database awake.
pub(crate) struct WakeWaiter {
    pub(crate) done: oneshot::Sender<Result<(), Unserved>>,
    pub(crate) reason: Reason,
    /// When its own time is over.
    pub(crate) until: Instant,
    /// When the hint was followed, if it is one.
    pub(crate) hinted: Option<Instant>,
}

/// A caller in the queue.
pub(crate) struct Waiter {
    pub(crate) turn: oneshot::Sender<Result<Lease, Unserved>>,
    /// When its own time is over.
    pub(crate) until: Instant,
}

impl State {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self {
            max_connections: endpoint.max_connections,
            endpoint,
            fresh: false,
            idle: Vec::new(),
            waiters: VecDeque::new(),
            wakers: Vec::new(),
            prune_waiters_at: SHORT_QUEUE,
            dialing: 0,
            logging_in: 0,
            settling: 0,
            open: Vec::new(),
            direct: Vec::new(),
            lost: None,
            forbidden: None,
            early_ends: 0,
            condemned: None,
            last_failure: None,
            change_count: 0,
            repeated_since: None,
            retired: false,
            cache_epoch: 0,
            touched_at: Instant::now(),
            touched_epoch: 0,
            reused: 0,
            lent: 0,
            reported_uses: 0,
            wakes: Vec::new(),
        }
    }

    /// Notes that the pool is used, and when: in time, and by how much of the cache had changed. Says whether the cache
    /// should hear of it.
    ///
    /// Not each time, as that costs more than all the rest of a `get`. But before much of the cache has changed, or else
    /// whoever is used all the time would leave it; and again after a while, or else those used most, being the first
    /// after a change, would seem to be used least when it changes next.
    pub(crate) fn note_use(&mut self, now: Instant, turn: u64) -> bool {
        let is_news =
            self.touched_epoch != turn || now.duration_since(self.touched_at) >= NEWS_AFTER;
        if is_news {
            (self.touched_at, self.touched_epoch) = (now, turn);
        }
        is_news
    }

    /// Whether the compute may be asleep: nothing is open that would prove the contrary.
    pub(crate) fn believes_asleep(&self) -> bool {
        self.lost.is_some() || (self.open.is_empty() && self.direct.is_empty())
    }

    /// How long Neon's proxy may still be repeating that the control plane failed, counted from the first time.
    pub(crate) fn rest_of_repetition(&mut self) -> Duration {
        let now = Instant::now();
        let since = self
            .repeated_since
            .filter(|it| now < *it + REPEATED)
            .unwrap_or(now);
        self.repeated_since = Some(since);
        (since + REPEATED).saturating_duration_since(now)
    }

    /// Takes note of how many connections there may be; returns the idle ones that are too many.
    pub(crate) fn set_max_connections(
        &mut self,
        most: Option<usize>,
        config: &Config,
    ) -> Vec<Connection> {
        self.max_connections = most;
        let surplus = self.surplus(config).min(self.idle.len());
        let taken: Vec<_> = self.idle.drain(..surplus).collect(); // those unused for longest
        for connection in &taken {
            connection.status.unpark();
            connection.status.mark_closing(); // now, so that nobody else takes it for one that stays
        }
        taken
    }

    /// How many connections there are beyond what there may be, not counting those that are about to end.
    pub(crate) fn surplus(&self, config: &Config) -> usize {
        let limit = self.limit(config);
        if self.open.len() <= limit {
            return 0; // always, unless the limit was lowered
        }
        let stay = self.open.iter().filter(|open| !open.is_closing());
        stay.count().saturating_sub(limit)
    }

    /// The most connections of the tenant, those in opening included.
    pub(crate) fn limit(&self, config: &Config) -> usize {
        self.max_connections.unwrap_or(config.pool_size)
    }

    /// What keeps callers waiting, if that is that all connections there may be are held.
    pub(crate) fn full(&self, config: &Config) -> Option<String> {
        let limit = self.limit(config);
        if self.open.len() < limit || !self.idle.is_empty() {
            return None;
        }
        let setting = match self.max_connections {
            Some(_) => "max_connections of the tenant's entry",
            None => "pool_size",
        };
        let held = self.open.iter().map(|it| it.held_for()).max();
        let held = held.filter(|it| !it.is_zero()).map_or(String::new(), |it| {
            format!(", one of them for {it:.1?} or more")
        });
        Some(format!(
            "all {limit} connections that the tenant may have are held{held}; hold them for less time, or raise {setting}"
        ))
    }

    /// How many more attempts are due now, and why.
    pub(crate) fn dials_due(&mut self, config: &Config) -> (usize, Reason) {
        let at_once = if self.believes_asleep() {
            1
        } else {
            config.concurrent_dials
        };
        let taken = self.open.len() + self.dialing;
        let room = self.limit(config).saturating_sub(taken);
        let room = room.min(at_once.saturating_sub(self.dialing));
        if room == 0 {
            return (0, Reason::Request); // before the queue is looked through, which may be long
        }
        self.waiters.retain(|waiter| !waiter.turn.is_closed());
        self.wakers.retain(|waker| !waker.done.is_closed());
        let coming = self.dialing + self.settling;
        let wakes = coming == 0 && !self.wakers.is_empty();
        let due = self.waiters.len().max(usize::from(wakes));
        let due = due.saturating_sub(coming).min(room);
        let first = self.wakers.first().filter(|_| self.waiters.is_empty());
        (due, first.map_or(Reason::Request, |it| it.reason))
    }

    /// Adds a caller to the queue: in front, if it has had its turn before.
    pub(crate) fn enqueue(&mut self, waiter: Waiter, has_waited: bool) {
        if has_waited {
            return self.waiters.push_front(waiter);
        }
        if self.waiters.len() >= self.prune_waiters_at {
            // Those who left are looked for now and then only: each look goes through all.
            self.waiters.retain(|waiter| !waiter.turn.is_closed());
            self.prune_waiters_at = (2 * self.waiters.len()).max(SHORT_QUEUE);
        }
        self.waiters.push_back(waiter);
    }

    /// To be answered when a login has succeeded: sooner than whoever wants a connection.
    pub(crate) fn await_wake(&mut self, waker: WakeWaiter) {
        self.wakers.retain(|waker| !waker.done.is_closed());
        self.wakers.push(waker);
    }

    #[inline]
    pub(crate) fn has_wake_waiters(&self) -> bool {
        !self.wakers.is_empty()
    }

    /// Takes those out who only want the database awake, and for whom `is_one` holds.
    pub(crate) fn take_wake_waiters(
        &mut self,
        is_one: impl Fn(&WakeWaiter) -> bool,
    ) -> Vec<WakeWaiter> {
        self.wakers.extract_if(.., |it| is_one(it)).collect()
    }

    /// The longest waiter who is still there.
    pub(crate) fn next_waiter(&mut self) -> Option<Waiter> {
        std::iter::from_fn(|| self.waiters.pop_front()).find(|waiter| !waiter.turn.is_closed())
    }

    /// Takes the waiters out for whom `is_one` holds.
    pub(crate) fn take_waiters(&mut self, is_one: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let waiters = mem::take(&mut self.waiters).into_iter();
        let (taken, kept): (Vec<_>, Vec<_>) = waiters.partition(is_one);
        self.waiters = kept.into();
        taken
    }

    /// Whether anybody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.turn.is_closed())
            || self.wakers.iter().any(|waker| !waker.done.is_closed())
    }

    /// An idle connection for a caller who need not wait.
    pub(crate) fn reuse(&mut self) -> Option<Connection> {
        let connection = self.pop_idle()?;
        self.reused += 1;
        Some(connection)
    }

    /// Keeps a connection. Returns it if its task wrote something just before it could see that it is kept.
    pub(crate) fn push_idle(&mut self, connection: Connection) -> Result<(), Connection> {
        connection.status.park();
        if connection.status.is_stray() {
            connection.status.unpark();
            return Err(connection);
        }
        if self.idle.len() == self.idle.capacity() {
            // Doubles from one on. By itself it would begin with four, of which most tenants need one.
            self.idle.reserve_exact(self.idle.len().max(1));
        }
        self.idle.push(connection);
        Ok(())
    }

    /// How often a connection was handed out since this was last asked.
    pub(crate) fn take_use_delta(&mut self) -> u32 {
        let all = self.reused + self.lent;
        let news = all.saturating_sub(self.reported_uses);
        self.reported_uses = all;
        u32::try_from(news).unwrap_or(u32::MAX)
    }

    /// Remembers a wake.
    pub(crate) fn note_wake(&mut self, wake: Wake) {
        if self.wakes.len() == WAKES {
            self.wakes.remove(0);
        }
        self.wakes.reserve_exact(1); // of most tenants there is one
        self.wakes.push(wake);
    }

    /// How many callers wait, some of whom may have left.
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.len() + self.wakers.len()
    }

    /// The connection that would be handed out next.
    pub(crate) fn next_idle(&self) -> Option<&Connection> {
        self.idle.last()
    }

    /// How many connections are idle.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(crate) fn pop_idle(&mut self) -> Option<Connection> {
        let connection = self.idle.pop()?;
        connection.status.unpark();
        Some(connection)
    }

    /// When the connection was last used that has been idle for longest.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let oldest = self.idle.first()?;
        Some(oldest.status.last_heard())
    }

    /// Takes that connection out, if it was not used after `instant`.
    pub(crate) fn take_oldest_idle(&mut self, instant: Instant) -> Option<Connection> {
        self.idle_since().filter(|since| *since <= instant)?;
        let connection = self.idle.remove(0);
        connection.status.unpark();
        Some(connection)
    }

    /// Takes the idle connections out for which `is_one` holds.
    pub(crate) fn take_idle(&mut self, is_one: impl Fn(&Connection) -> bool) -> Vec<Connection> {
        let taken: Vec<_> = self.idle.extract_if(.., |it| is_one(it)).collect();
        for connection in &taken {
            connection.status.unpark();
        }
        taken
    }

    /// Notes that a connection's task has ended.
    pub(crate) fn remove_open(&mut self, watch: &Arc<ConnectionStatus>) {
        self.direct.retain(|open| !Arc::ptr_eq(open, watch));
        self.open.retain(|open| !Arc::ptr_eq(open, watch));
        if self.open.is_empty() {
            // The pool may stay like this for long, and what there was room for was more than the rest of it.
            self.open.shrink_to_fit();
            self.idle.shrink_to_fit();
            self.waiters.shrink_to_fit();
            self.wakers.shrink_to_fit();
        }
    }

    /// Notes that a connection was lost at `instant`: the compute may be asleep, unless it has taken a login since.
    pub(crate) fn note_loss(&mut self, instant: Instant) {
        let mut open = self.open.iter().chain(&self.direct);
        if open.all(|open| open.opened() <= instant) {
            self.lost = self.lost.max(Some(instant));
        }
    }

    /// Notes that the compute may be asleep.
    pub(crate) fn note_asleep(&mut self) {
        self.lost = Some(Instant::now());
    }

    /// Notes that a connection is in order: the compute is awake, if the server was heard on it after the last loss.
    pub(crate) fn note_alive(&mut self, watch: &ConnectionStatus) {
        if self.lost.is_some_and(|lost| watch.last_heard() > lost) {
            self.lost = None;
        }
    }

    /// Trusts no connection of now any more.
    pub(crate) fn condemn_all(&mut self, now: Instant) {
        self.condemned = self.condemned.max(Some(now));
        self.lost = self.lost.max(Some(now));
    }

    /// Trusts no connection opened before `instant` any more; returns the idle ones among them.
    pub(crate) fn condemn(&mut self, instant: Instant) -> Vec<Connection> {
        let condemned = self.condemned.max(Some(instant));
        self.condemned = condemned;
        self.note_loss(instant);
        self.take_idle(|it| condemned.is_some_and(|instant| it.status.opened() < instant))
    }

    /// Whether `connection` must not be used any more: it is not trusted, or of an earlier generation.
    pub(crate) fn condemns(&self, connection: &Connection) -> bool {
        self.forbidden.is_some()
            || !Arc::ptr_eq(&self.endpoint, &connection.endpoint)
            || self
                .condemned
                .is_some_and(|instant| connection.status.opened() < instant)
    }
}
