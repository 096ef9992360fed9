//! The mutable state of a pool, and the decisions that follow from it.

mod queue;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use self::queue::SHORT_QUEUE;
use super::{Unserved, loan::Loan};
use crate::{
    connection::{Connection, status::ConnectionStatus, verdict::REPEATED},
    model::{config::Config, endpoint::Endpoint, error::ErrorKind},
    sync::progress::Noted,
    telemetry::labels::Reason,
};

/// Interval at which a pool's use is reported to the cache. The LRU order is right up to this.
const NEWS_AFTER: Duration = Duration::from_secs(1);

/// Number of past wakes that a pool keeps.
const WAKES: usize = 4;

/// Everything that changes in a pool.
pub(crate) struct State {
    /// The tenant's endpoint. Another endpoint is another generation: connections are told apart by it.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Most connections, over all generations; `None` for the router's `pool_size`. It changes without a move, so the
    /// number in `endpoint` may be out of date.
    max_connections: Option<usize>,
    /// `true` if the endpoint came from its source, not a cache, and no login has tried it yet.
    pub(super) fresh: bool,
    /// Idle connections. Last in, first out, so that a quiet tenant's surplus grows old.
    idle: Vec<Connection>,
    /// Callers that wait for a connection. First come, first served. Empty while a connection is idle.
    waiters: VecDeque<Waiter>,
    /// Callers that only want the database awake, and no connection.
    wakers: Vec<WakeWaiter>,
    /// Length of the queue at which it is searched for waiters that left.
    prune_waiters_at: usize,
    /// Number of attempts in progress.
    pub(crate) dialing: usize,
    /// Number of these that have begun to log in.
    pub(super) logging_in: usize,
    /// Number of connections in cleanup, which will probably be free in a moment.
    pub(super) settling: usize,
    /// Connections whose tasks have not ended, idle or not.
    pub(crate) open: Vec<Arc<ConnectionStatus>>,
    /// Direct connections whose tasks have not ended. They prove that the compute is awake, and count for nothing else.
    pub(crate) direct: Vec<Arc<ConnectionStatus>>,
    /// Time of the last loss of a connection, since which the compute may be asleep. `None` if it was proved awake
    /// since.
    pub(crate) lost: Option<Instant>,
    /// Reason for which no caller gets a connection; `None` while the pool is in use.
    pub(super) forbidden: Option<Unserved>,
    /// Number of connections in a row that ended as soon as they were open.
    pub(super) early_ends: u32,
    /// Start of trust: connections opened before this instant are not trusted.
    condemned: Option<Instant>,
    pub(crate) last_failure: Option<Noted>,
    /// Number of changes that may have removed the cause of a failure.
    pub(super) change_count: u64,
    /// Time since which Neon's proxy may only be repeating that the control plane failed.
    pub(super) repeated_since: Option<Instant>,
    /// `true` while the pool is out of the cache: connections that come back are closed.
    pub(crate) retired: bool,
    /// Number of times that the pool has entered the cache.
    pub(super) cache_epoch: u64,
    /// Time of the last report of a use to the cache.
    touched_at: Instant,
    /// Cache epoch of that report.
    touched_epoch: u64,
    /// Number of `get` calls answered with an idle connection at once.
    pub(crate) reused: u64,
    /// Number of `get` calls answered in another way.
    pub(super) lent: u64,
    /// Number of both that was reported for the list of the busiest tenants.
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
    /// Kind of the error of a failed wake.
    pub(crate) failure: Option<ErrorKind>,
}

/// A caller that wants the database awake.
pub(super) struct WakeWaiter {
    pub(super) done: oneshot::Sender<Result<(), Unserved>>,
    pub(super) reason: Reason,
    /// Deadline of the caller.
    pub(super) until: Instant,
    /// Time at which the hint was taken from the hint budget; `None` if the caller is no hint.
    pub(super) hinted: Option<Instant>,
}

/// A caller in the queue.
pub(super) struct Waiter {
    pub(super) turn: oneshot::Sender<Result<Loan, Unserved>>,
    /// Deadline of the caller.
    pub(super) until: Instant,
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

    /// Records a use of the pool at `now`, in cache epoch `turn`. Returns whether to report the use to the cache.
    ///
    /// Touching the cache on every `get` would dominate its cost, so a pool is touched once per epoch, which keeps hot
    /// pools cached, and once per second, which keeps the LRU order roughly right.
    pub(super) fn note_use(&mut self, now: Instant, turn: u64) -> bool {
        let is_news =
            self.touched_epoch != turn || now.duration_since(self.touched_at) >= NEWS_AFTER;
        if is_news {
            (self.touched_at, self.touched_epoch) = (now, turn);
        }
        is_news
    }

    /// Returns whether the compute may be asleep: no open connection proves that it is awake.
    pub(crate) fn believes_asleep(&self) -> bool {
        self.lost.is_some() || (self.open.is_empty() && self.direct.is_empty())
    }

    /// Returns for how long Neon's proxy may go on repeating that the control plane failed, counted from the first
    /// time.
    pub(super) fn rest_of_repetition(&mut self) -> Duration {
        let now = Instant::now();
        let since = self
            .repeated_since
            .filter(|it| now < *it + REPEATED)
            .unwrap_or(now);
        self.repeated_since = Some(since);
        (since + REPEATED).saturating_duration_since(now)
    }

    /// Sets the tenant's own connection limit. Returns the idle connections beyond it.
    pub(super) fn set_max_connections(
        &mut self,
        most: Option<usize>,
        config: &Config,
    ) -> Vec<Connection> {
        self.max_connections = most;
        let surplus = self.surplus(config).min(self.idle.len());
        let taken: Vec<_> = self.idle.drain(..surplus).collect(); // those idle for longest
        for connection in &taken {
            connection.status.unpark();
            connection.status.mark_closing(); // now, so that `surplus` does not count it as one that stays
        }
        taken
    }

    /// Returns the number of connections beyond the limit, without those that are about to end.
    pub(super) fn surplus(&self, config: &Config) -> usize {
        let limit = self.limit(config);
        if self.open.len() <= limit {
            return 0; // the usual case: only a lowered limit leaves a surplus
        }
        let stay = self.open.iter().filter(|open| !open.is_closing());
        stay.count().saturating_sub(limit)
    }

    /// Returns the limit of the tenant's connections, those being opened included.
    pub(crate) fn limit(&self, config: &Config) -> usize {
        self.max_connections.unwrap_or(config.pool_size)
    }

    /// Returns the reason for a caller's wait, if it is that all connections that the tenant may have are held.
    pub(super) fn full(&self, config: &Config) -> Option<String> {
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
            "all {limit} connections that the tenant may have are held{held}; hold them for less time, or raise \
             {setting}"
        ))
    }

    /// Returns the number of attempts that are due now, and their reason.
    pub(super) fn dials_due(&mut self, config: &Config) -> (usize, Reason) {
        let at_once = if self.believes_asleep() {
            1
        } else {
            config.concurrent_dials
        };
        let taken = self.open.len() + self.dialing;
        let room = self.limit(config).saturating_sub(taken);
        let room = room.min(at_once.saturating_sub(self.dialing));
        if room == 0 {
            return (0, Reason::Request); // before the search of the queue, which may be long
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

    /// Removes and returns an idle connection, and counts it as reused.
    pub(super) fn reuse(&mut self) -> Option<Connection> {
        let connection = self.pop_idle()?;
        self.reused += 1;
        Some(connection)
    }

    /// Keeps a connection idle. Returns it as an error if its task wrote a request just before the task could see that
    /// the connection is idle.
    pub(super) fn push_idle(&mut self, connection: Connection) -> Result<(), Connection> {
        connection.status.park();
        if connection.status.is_stray() {
            connection.status.unpark();
            return Err(connection);
        }
        if self.idle.len() == self.idle.capacity() {
            // Doubles from one on. A `Vec` would begin with four, and most tenants need one.
            self.idle.reserve_exact(self.idle.len().max(1));
        }
        self.idle.push(connection);
        Ok(())
    }

    /// Returns the number of connections handed out since the last call.
    pub(super) fn take_use_delta(&mut self) -> u32 {
        let all = self.reused + self.lent;
        let news = all.saturating_sub(self.reported_uses);
        self.reported_uses = all;
        u32::try_from(news).unwrap_or(u32::MAX)
    }

    /// Records a wake.
    pub(super) fn note_wake(&mut self, wake: Wake) {
        if self.wakes.len() == WAKES {
            self.wakes.remove(0);
        }
        self.wakes.reserve_exact(1); // most tenants have one
        self.wakes.push(wake);
    }

    /// Returns the idle connection that would be handed out next.
    pub(crate) fn next_idle(&self) -> Option<&Connection> {
        self.idle.last()
    }

    /// Returns the number of idle connections.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn pop_idle(&mut self) -> Option<Connection> {
        let connection = self.idle.pop()?;
        connection.status.unpark();
        Some(connection)
    }

    /// Returns the last use of the connection that has been idle for longest.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let oldest = self.idle.first()?;
        Some(oldest.status.last_heard())
    }

    /// Removes and returns the connection that has been idle for longest, if it was not used after `instant`.
    pub(super) fn take_oldest_idle(&mut self, instant: Instant) -> Option<Connection> {
        self.idle_since().filter(|since| *since <= instant)?;
        let connection = self.idle.remove(0);
        connection.status.unpark();
        Some(connection)
    }

    /// Removes and returns the idle connections for which `is_one` is true.
    pub(super) fn take_idle(&mut self, is_one: impl Fn(&Connection) -> bool) -> Vec<Connection> {
        let taken: Vec<_> = self.idle.extract_if(.., |it| is_one(it)).collect();
        for connection in &taken {
            connection.status.unpark();
        }
        taken
    }

    /// Notes that a connection's task has ended.
    pub(super) fn remove_open(&mut self, status: &Arc<ConnectionStatus>) {
        self.direct.retain(|open| !Arc::ptr_eq(open, status));
        self.open.retain(|open| !Arc::ptr_eq(open, status));
        if self.open.is_empty() {
            // The pool may stay empty for long, and its spare capacity is larger than the rest of it.
            self.open.shrink_to_fit();
            self.idle.shrink_to_fit();
            self.waiters.shrink_to_fit();
            self.wakers.shrink_to_fit();
        }
    }

    /// Notes that a connection was lost at `instant`: the compute may be asleep, unless it has taken a login since.
    pub(super) fn note_loss(&mut self, instant: Instant) {
        let mut open = self.open.iter().chain(&self.direct);
        if open.all(|open| open.opened() <= instant) {
            self.lost = self.lost.max(Some(instant));
        }
    }

    /// Notes that the compute may be asleep.
    pub(super) fn note_asleep(&mut self) {
        self.lost = Some(Instant::now());
    }

    /// Notes that a connection works: the compute is awake if the server answered on it after the last loss.
    pub(super) fn note_alive(&mut self, status: &ConnectionStatus) {
        if self.lost.is_some_and(|lost| status.last_heard() > lost) {
            self.lost = None;
        }
    }

    /// Stops trusting all connections that were opened before `now`.
    pub(super) fn condemn_all(&mut self, now: Instant) {
        self.condemned = self.condemned.max(Some(now));
        self.lost = self.lost.max(Some(now));
    }

    /// Stops trusting connections that were opened before `instant`. Returns the idle ones.
    pub(super) fn condemn(&mut self, instant: Instant) -> Vec<Connection> {
        let condemned = self.condemned.max(Some(instant));
        self.condemned = condemned;
        self.note_loss(instant);
        self.take_idle(|it| condemned.is_some_and(|instant| it.status.opened() < instant))
    }

    /// Returns whether `connection` must not be used any more: it is not trusted, or of an earlier generation.
    pub(super) fn condemns(&self, connection: &Connection) -> bool {
        self.forbidden.is_some()
            || !Arc::ptr_eq(&self.endpoint, &connection.endpoint)
            || self
                .condemned
                .is_some_and(|instant| connection.status.opened() < instant)
    }
}
