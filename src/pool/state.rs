//! The mutable state of a pool, and the decisions that follow from it.

mod idle;
mod queue;
mod rare;
pub(super) mod spares;

use std::{collections::VecDeque, iter, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use self::{idle::Idle, queue::SHORT_QUEUE, rare::Rare, spares::Spares};
use super::{Unserved, loan::Loan};
use crate::{
    connection::{
        Connection,
        status::{ConnectionStatus, health::Health},
        verdict::REPEATED,
    },
    model::{config::Config, endpoint::Endpoint, error::ErrorKind},
    telemetry::labels::Reason,
};

/// Interval at which a pool's use is reported to the cache, in milliseconds. The LRU order is right up to this.
const REPORT_EVERY: u64 = 1000;

/// Number of past wakes that a pool keeps.
const WAKES: usize = 4;

/// Everything that changes in a pool.
///
/// The order is the order in memory: the fields that every `get` and every check-in reads come first, side by side.
#[repr(C)]
pub(crate) struct State {
    idle: Idle<Connection>,
    /// Time of the last report of a use to the cache, in milliseconds by the clock of the router.
    touched_at: u64,
    /// Epoch of the cache at that report.
    touched_epoch: u64,
    /// Number of `get` calls answered with an idle connection at once.
    pub(crate) reused: u64,
    /// `true` if a check-in found the state [usual](Self::is_usual) and nothing was changed since, other than by calls
    /// that take and give back idle connections.
    was_usual: bool,
    /// `true` while the pool is out of the cache: connections that come back are closed.
    pub(crate) retired: bool,
    /// `true` if the endpoint came from the authority (`FoundEndpoint::is_authoritative`) and no login has tried it
    /// yet, so that another lookup would return the same.
    pub(super) is_authoritative: bool,
    /// Number of these in `dialing` that have begun to log in.
    pub(super) logging_in: u32,
    /// Time of the last loss of a connection, since which the compute may be asleep. `None` if it was proved awake
    /// since.
    pub(crate) lost: Option<Instant>,
    /// The part that most pools never have.
    pub(crate) rare: Rare,
    /// Callers that wait for a connection. First come, first served. Empty while a connection is idle.
    waiters: VecDeque<Waiter>,
    /// Connections whose tasks have not ended, idle or not.
    pub(crate) open: Vec<Arc<ConnectionStatus>>,
    /// Most connections, those at earlier endpoints included; `None` for the router's `pool_size`. A new limit alone
    /// does not replace `endpoint`, so the limit in `endpoint` may be out of date.
    max_connections: Option<usize>,
    /// The tenant's endpoint. Connections that were opened at an earlier one are not handed out any more.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Length of the queue at which it is searched for waiters that left.
    prune_waiters_at: usize,
    /// Number of attempts in progress.
    pub(crate) dialing: usize,
    /// Connections that are opened for the callers in the queue, and that log in when the wake is over.
    pub(super) spares: Option<Box<Spares>>,
    /// Number of connections in cleanup. Most are clean within milliseconds, so no others are opened in their place.
    pub(super) settling: usize,
    /// Number of changes that may have removed the cause of a failure.
    pub(super) change_count: u64,
    /// Number of `get` calls answered in another way than those in `reused`.
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
    pub(super) sender: oneshot::Sender<Result<Loan, Unserved>>,
    /// Deadline of the caller.
    pub(super) until: Instant,
}

impl State {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self {
            idle: Idle::new(),
            touched_at: 0,
            touched_epoch: 0,
            reused: 0,
            was_usual: false,
            retired: false,
            is_authoritative: false,
            logging_in: 0,
            lost: None,
            rare: Rare::default(),
            waiters: VecDeque::new(),
            open: Vec::new(),
            max_connections: endpoint.max_connections,
            endpoint,
            prune_waiters_at: SHORT_QUEUE,
            dialing: 0,
            spares: None,
            settling: 0,
            change_count: 0,
            lent: 0,
            reported_uses: 0,
            wakes: Vec::new(),
        }
    }

    /// Records a use of the pool at `now`, in milliseconds by the clock of the router, and in `epoch` of the cache.
    /// Returns whether to report the use to the cache.
    ///
    /// Touching the cache on every `get` would dominate its cost, so a pool is touched once per epoch, which keeps hot
    /// pools cached, and once per second, which keeps the LRU order roughly right.
    pub(super) fn note_use(&mut self, now: u64, epoch: u64) -> bool {
        let since = now.saturating_sub(self.touched_at);
        let is_report_due = self.touched_epoch != epoch || since >= REPORT_EVERY;
        if is_report_due {
            (self.touched_at, self.touched_epoch) = (now, epoch);
        }
        is_report_due
    }

    /// Returns whether the compute may be asleep: no open connection proves that it is awake.
    pub(crate) fn believes_asleep(&self) -> bool {
        self.lost.is_some() || (self.open.is_empty() && self.rare.direct.is_empty())
    }

    /// Returns for how long Neon's proxy may go on repeating that the control plane failed, counted from the first
    /// time.
    pub(super) fn rest_of_repetition(&mut self) -> Duration {
        let now = Instant::now();
        let rare = self.rare.make();
        let since = rare
            .repeated_since
            .filter(|it| now < *it + REPEATED)
            .unwrap_or(now);
        rare.repeated_since = Some(since);
        (since + REPEATED).saturating_duration_since(now)
    }

    /// Sets the tenant's own connection limit. Returns the idle connections beyond it.
    pub(super) fn set_max_connections(
        &mut self,
        most: Option<usize>,
        config: &Config,
    ) -> Vec<Connection> {
        self.max_connections = most;
        let surplus = self.surplus(config);
        let oldest = iter::from_fn(|| self.idle.pop_oldest());
        let taken: Vec<_> = oldest.take(surplus).collect();
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
        let staying = self.open.iter().filter(|open| !open.is_closing());
        staying.count().saturating_sub(limit)
    }

    /// Returns the limit of the tenant's connections, those being opened included.
    pub(crate) fn limit(&self, config: &Config) -> usize {
        self.max_connections.unwrap_or(config.pool_size)
    }

    /// Returns the number of attempts that may begin now, if there are callers for them.
    pub(super) fn room_for_dials(&self, config: &Config) -> usize {
        let at_once = if self.believes_asleep() {
            1
        } else {
            config.concurrent_dials
        };
        let taken = self.open.len() + self.dialing;
        let room = self.limit(config).saturating_sub(taken);
        room.min(at_once.saturating_sub(self.dialing))
    }

    /// Returns the number of attempts that are due now, and their reason.
    pub(super) fn attempts_due(&mut self, config: &Config) -> (usize, Reason) {
        let room = self.room_for_dials(config);
        if room == 0 {
            return (0, Reason::Request); // before the search of the queue, which may be long
        }
        self.waiters.retain(|waiter| !waiter.sender.is_closed());
        self.rare
            .reset(|rare| rare.wake_waiters.retain(|it| !it.done.is_closed()));
        let wake_waiters = &self.rare.wake_waiters;
        // One attempt for each waiter that gets no connection from an attempt or a cleanup in progress. One is enough
        // for all wake waiters.
        let in_progress = self.dialing + self.settling;
        let needs_wake = in_progress == 0 && !wake_waiters.is_empty();
        let due = self.waiters.len().max(usize::from(needs_wake));
        let due = due.saturating_sub(in_progress).min(room);
        let only_to_wake = wake_waiters.first().filter(|_| self.waiters.is_empty());
        (due, only_to_wake.map_or(Reason::Request, |it| it.reason))
    }

    /// Lends the next idle connection to a caller at `now`, and counts it as reused, if it can be used as it is.
    /// `verify_after`, `now`: as for the connection's [health](ConnectionStatus::health).
    pub(super) fn reuse(&mut self, verify_after: u64, now: u64) -> Option<Connection> {
        let next = self.idle.newest()?;
        if next.status.health(verify_after, now) != Health::Healthy {
            return None;
        }
        let connection = self.idle.pop()?;
        connection.status.unpark();
        connection.status.lend(Some(now));
        self.reused += 1;
        Some(connection)
    }

    /// Returns whether no caller waits, and nothing has happened that counts for a connection that comes back.
    #[inline]
    pub(super) fn is_usual(&mut self, config: &Config) -> bool {
        if !self.was_usual {
            self.was_usual = self.is_usual_now(config);
        }
        debug_assert_eq!(self.was_usual, self.is_usual_now(config));
        self.was_usual
    }

    fn is_usual_now(&self, config: &Config) -> bool {
        let is_quiet = self.waiters.is_empty() && self.rare.is_absent() && self.lost.is_none();
        is_quiet && !self.retired && self.open.len() <= self.limit(config)
    }

    /// Notes that the state may be changed in any way.
    pub(super) fn note_access(&mut self) {
        self.was_usual = false;
    }

    /// Keeps a clean connection idle.
    pub(super) fn push_clean(&mut self, connection: Connection) {
        connection.status.park_clean();
        self.idle.push(connection);
    }

    /// Keeps a connection idle. Returns it as an error if a request of its last user has turned up on it.
    pub(super) fn push_idle(&mut self, connection: Connection) -> Result<(), Connection> {
        if !connection.status.park() {
            return Err(connection);
        }
        self.idle.push(connection);
        Ok(())
    }

    /// Returns the number of connections handed out since the last call.
    pub(super) fn take_use_delta(&mut self) -> u32 {
        let all = self.reused + self.lent;
        let uses = all.saturating_sub(self.reported_uses);
        self.reported_uses = all;
        u32::try_from(uses).unwrap_or(u32::MAX)
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
        self.idle.newest()
    }

    /// Returns the number of idle connections.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Removes and returns an idle connection, which it lends.
    pub(super) fn pop_idle(&mut self) -> Option<Connection> {
        let connection = self.idle.pop()?;
        connection.status.unpark();
        connection.status.lend(None);
        Some(connection)
    }

    /// Returns the last use of the connection that has been idle for longest.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let oldest = self.idle.oldest()?;
        Some(oldest.status.last_heard())
    }

    /// Removes and returns the connection that has been idle for longest, if it was not used after `instant`.
    pub(super) fn take_oldest_idle(&mut self, instant: Instant) -> Option<Connection> {
        self.idle_since().filter(|since| *since <= instant)?;
        let connection = self.idle.pop_oldest()?;
        connection.status.unpark();
        Some(connection)
    }

    /// Removes and returns the idle connections for which `is_one` is true.
    pub(super) fn take_idle(&mut self, is_one: impl Fn(&Connection) -> bool) -> Vec<Connection> {
        let taken = self.idle.take(is_one);
        for connection in &taken {
            connection.status.unpark();
        }
        taken
    }

    /// Notes that a connection is open.
    pub(super) fn add_open(&mut self, status: &Arc<ConnectionStatus>) {
        if self.open.len() == self.open.capacity() {
            self.open.reserve_exact(self.open.len().max(1)); // as for `idle`
        }
        self.open.push(Arc::clone(status));
    }

    /// Notes that a connection's task has ended.
    pub(super) fn remove_open(&mut self, status: &Arc<ConnectionStatus>) {
        self.rare
            .reset(|rare| rare.direct.retain(|open| !Arc::ptr_eq(open, status)));
        self.open.retain(|open| !Arc::ptr_eq(open, status));
        if self.open.is_empty() {
            // The pool may stay empty for long, and its spare capacity is larger than the rest of it.
            self.open.shrink_to_fit();
            self.idle.shrink_to_fit();
            self.waiters.shrink_to_fit();
        }
    }

    /// Notes that a connection was lost at `instant`: the compute may be asleep, unless it has taken a login since.
    pub(super) fn note_loss(&mut self, instant: Instant) {
        let mut open = self.open.iter().chain(&self.rare.direct);
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
        let rare = self.rare.make();
        rare.condemned = rare.condemned.max(Some(now));
        self.lost = self.lost.max(Some(now));
    }

    /// Stops trusting connections that were opened before `instant`. Returns the idle ones.
    pub(super) fn condemn(&mut self, instant: Instant) -> Vec<Connection> {
        let rare = self.rare.make();
        rare.condemned = rare.condemned.max(Some(instant));
        let condemned = rare.condemned;
        self.note_loss(instant);
        self.take_idle(|it| condemned.is_some_and(|instant| it.status.opened() < instant))
    }

    /// Returns whether `connection` must not be used any more: it is not trusted, or it was opened at an earlier
    /// endpoint.
    pub(super) fn condemns(&self, connection: &Connection) -> bool {
        self.rare.forbidden.is_some()
            || !Arc::ptr_eq(&self.endpoint, &connection.endpoint)
            || self
                .rare
                .condemned
                .is_some_and(|instant| connection.status.opened() < instant)
    }
}
