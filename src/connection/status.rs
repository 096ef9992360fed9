//! The status of a connection, and the test for whether it is up to date.
//!
//! The tap writes it as bytes pass. A request that has been sent but not yet written is invisible to the tap: it waits
//! in a channel until the connection's task runs. [`TrackedTask`] closes that gap. It stands between the channel and
//! the task's waker, and notes that a request is about to be written before it wakes the task.

mod cancelling;
pub(crate) mod health;
pub(crate) mod liveness;
mod loan_age;
mod marks;
mod parking;
mod session;
pub(crate) mod tracked_task;
mod transaction;

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use self::marks::{Mark, Marks};
use super::verdict::ServerClose;
use crate::{
    model::endpoint::SessionReset,
    sync::{clock::Clock, lock},
};

pub(crate) use session::{Residue, SessionFlags};
pub(super) use tracked_task::TrackedTask;

/// The status of one connection, shared by its stream, its task and its user.
///
/// The order is the order in memory: the fields that every `get` and every check-in reads come first, side by side.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ConnectionStatus {
    /// Number of requests written, or begun, whose ReadyForQuery has not come. Closing of statements is not counted.
    /// Ordered with `parked`: parking is followed by a read of this field, and writing by a read of `parked`.
    pub(super) outstanding: AtomicU32,
    /// Transaction status of the last ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one.
    pub(super) transaction_status: AtomicU8,
    /// `true` while it is idle in the pool.
    parked: AtomicBool,
    marks: Marks,
    /// `true` once a caller has used it: received an answer on it, or given it back in order.
    served: AtomicBool,
    /// `true` once its caller has had its client by `&mut`, and may have swapped it.
    was_mutable: AtomicBool,
    /// The flags of its session, which tell whether a reset is needed before the next user gets it.
    pub(crate) session: SessionFlags,
    /// Number of times that the task was woken.
    wakes: AtomicU64,
    /// The value of `wakes` at the start of the last poll in which the task did all it could. If it is less than
    /// `wakes`, a request may be waiting to be written.
    settled_wakes: AtomicU64,
    /// Number of times that it was taken from the pool.
    loans: AtomicU64,
    /// Milliseconds by `clock` at the beginning of the last loan, or `loan_age::UNKNOWN`.
    lent_at: AtomicU64,
    /// Milliseconds by `clock` at the last bytes from the server.
    last_read: AtomicU64,
    /// `true` once tenantry closes it, so that its end says nothing about the server.
    closing: AtomicBool,
    /// `true` if the stream has bytes that it could not write.
    pub(super) blocked: AtomicBool,
    /// `true` if the task has read all that has arrived, and so has handed on all that it read.
    pub(super) drained: AtomicBool,
    /// `true` if the last command that the server completed was a rollback.
    rolled_back: AtomicBool,
    /// `true` once Postgres has refused a statement on it that was prepared before a schema change.
    outdated: AtomicBool,
    /// `true` once the pool has asked for a clearing because of that.
    outdated_taken: AtomicBool,
    /// A random number, so that connections opened together do not expire together.
    chance: u8,
    /// The five bytes of the last error's SQLSTATE, as a number; 0 for none.
    pub(super) sqlstate: AtomicU64,
    /// Number of completely written statements that may end a transaction.
    ends: AtomicU64,
    /// Number of times that the server reported itself idle, outside any transaction.
    idles: AtomicU64,
    /// The clock of its router.
    clock: Clock,
    /// Nanoseconds by `clock` at its opening.
    opened: u64,
    /// Nanoseconds by `clock` at the end of the login, and one; 0 before that.
    logged_in: AtomicU64,
    /// The address at which it was opened; unset for a pipe.
    pub(crate) peer: OnceLock<SocketAddr>,
    /// The instant at which that hint was followed. Locked for a few instructions.
    hinted_at: Mutex<Option<Instant>>,
    /// Nanoseconds by `clock` at the instant at which its end was first known, by a message of the server or by the end
    /// of its stream, and one; 0 before that.
    died: AtomicU64,
    /// The server's message when it ended the connection.
    farewell: OnceLock<Box<ServerClose>>,
    /// The last loan that was reported as held for long; 0 for none.
    reported_loan: AtomicU64,
    /// Notified when tenantry begins to close it.
    close_requested: Notify,
    /// Notified after every poll of the task.
    polled: Notify,
}

impl ConnectionStatus {
    #[cfg(test)]
    pub(crate) fn new() -> Arc<Self> {
        Self::with_reset(SessionReset::Never, Clock::start())
    }

    /// Creates the status of a connection whose session is reset according to `reset`. `clock`: that of its router.
    pub(super) fn with_reset(reset: SessionReset, clock: Clock) -> Arc<Self> {
        let now = clock.now();
        Arc::new(Self {
            outstanding: AtomicU32::new(0),
            transaction_status: AtomicU8::new(0),
            parked: AtomicBool::new(false),
            marks: Marks::default(),
            wakes: AtomicU64::new(1),
            settled_wakes: AtomicU64::new(0),
            loans: AtomicU64::new(0),
            lent_at: AtomicU64::new(loan_age::UNKNOWN),
            session: SessionFlags::new(reset),
            last_read: AtomicU64::new(now.millis()),
            served: AtomicBool::new(false),
            was_mutable: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            rolled_back: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            outdated_taken: AtomicBool::new(false),
            chance: RandomState::new().hash_one(()).to_be_bytes()[0],
            sqlstate: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            idles: AtomicU64::new(0),
            clock,
            opened: now.nanos,
            logged_in: AtomicU64::new(0),
            peer: OnceLock::new(),
            hinted_at: Mutex::default(),
            died: AtomicU64::new(0),
            farewell: OnceLock::new(),
            reported_loan: AtomicU64::new(0),
            close_requested: Notify::new(),
            polled: Notify::new(),
        })
    }

    /// Returns whether nothing is queued, running or open on it.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_settled() && self.is_idle()
    }

    /// Returns whether it has no mark, and its session needs no reset: nothing speaks against keeping it idle once it
    /// is clean.
    #[inline]
    pub(crate) fn is_unmarked(&self) -> bool {
        self.marks.is_empty() && !self.session.needs_reset()
    }

    /// Returns whether its task has done all it could, so that the rest of the status is up to date.
    fn is_settled(&self) -> bool {
        self.settled_wakes.load(Acquire) == self.wakes.load(Acquire)
    }

    /// Returns whether no written request is running, and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.load(SeqCst) == 0 && self.transaction_status.load(Acquire) == b'I'
    }

    /// Waits until it is clean, for `limit` at most, and returns whether it is.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn clean_within(&self, limit: Duration) -> bool {
        self.within(limit, Self::is_clean).await
    }

    /// Waits until its task has done all it could, or has ended, for `limit` at most.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn settle_within(&self, limit: Duration) {
        self.within(limit, Self::is_settled).await;
    }

    async fn within(&self, limit: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let holds = async {
            loop {
                let polled = self.polled.notified();
                if condition(self) || self.has_ended() {
                    return;
                }
                polled.await;
            }
        };
        timeout(limit, holds).await.is_ok() && !self.has_ended()
    }

    /// Returns the instant at which the login was done; before that, the instant at which it began.
    pub(crate) fn opened(&self) -> Instant {
        let opened = || self.clock.instant(Duration::from_nanos(self.opened));
        self.instant(&self.logged_in).unwrap_or_else(opened)
    }

    /// Returns whether its task has ended, so that nothing more will happen on it.
    pub(crate) fn has_ended(&self) -> bool {
        self.marks.has(Mark::ENDED)
    }

    /// Notes that its task has ended.
    pub(crate) fn mark_ended(&self) {
        self.marks.set(Mark::ENDED);
        self.polled.notify_waiters();
    }

    /// Notes that its caller gets its client by `&mut`.
    pub(crate) fn note_mutable(&self) {
        self.was_mutable.store(true, Relaxed); // the caller itself gives it back
    }

    /// Returns whether its caller has had its client by `&mut`, and forgets it.
    #[inline]
    pub(crate) fn take_mutable(&self) -> bool {
        let was_mutable = self.was_mutable.load(Relaxed);
        if was_mutable {
            self.was_mutable.store(false, Relaxed);
        }
        was_mutable
    }

    /// Notes that a caller has used it.
    pub(crate) fn mark_served(&self) {
        self.served.store(true, Release);
    }

    pub(crate) fn has_served(&self) -> bool {
        self.served.load(Acquire)
    }

    /// Notes that tenantry closes it.
    pub(crate) fn mark_closing(&self) {
        self.closing.store(true, Release);
        self.close_requested.notify_one();
    }

    /// Waits until `limit` has passed since tenantry began to close it.
    pub(crate) async fn close_timed_out(&self, limit: Duration) {
        self.close_requested.notified().await;
        tokio::time::sleep(limit).await;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Acquire)
    }

    /// Marks it as expired if it is older than `lifetime`, or than a random age that is up to a tenth less: connections
    /// that were opened together do not expire together.
    pub(crate) fn expire_after(&self, lifetime: Duration) {
        let earlier = lifetime / 10 * u32::from(self.chance) / u32::from(u8::MAX);
        let age = self.clock.now().nanos.saturating_sub(self.opened);
        if Duration::from_nanos(age) >= lifetime.saturating_sub(earlier) {
            self.expire();
        }
    }

    /// Notes that it was opened for a hint, which was followed at `at`.
    pub(crate) fn mark_hinted(&self, at: Instant) {
        *lock(&self.hinted_at) = Some(at);
        self.marks.set(Mark::HINTED);
    }

    /// Returns the instant at which the hint that opened it was followed, now that a caller has used it. Only the first
    /// call returns the instant.
    pub(crate) fn take_hint_used(&self) -> Option<Instant> {
        let is_first = self.marks.take(Mark::HINTED);
        is_first.then(|| lock(&self.hinted_at).take()).flatten()
    }

    /// Notes that the login is done.
    pub(super) fn mark_logged_in(&self) {
        self.set_once(&self.logged_in);
    }

    /// Notes that it has died, or is about to.
    pub(super) fn mark_dead(&self) {
        self.set_once(&self.died);
    }

    /// Returns the instant since which it is known to be dead.
    pub(crate) fn died(&self) -> Option<Instant> {
        self.instant(&self.died)
    }

    /// Sets one of its instants to this one, unless it is set.
    fn set_once(&self, instant: &AtomicU64) {
        let nanos = self.clock.now().nanos;
        let _ = instant.compare_exchange(0, nanos.saturating_add(1), AcqRel, Acquire);
    }

    /// Returns one of its instants, if it is set.
    fn instant(&self, instant: &AtomicU64) -> Option<Instant> {
        let nanos = instant.load(Acquire).checked_sub(1)?;
        Some(self.clock.instant(Duration::from_nanos(nanos)))
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.marks.has(Mark::EXPIRED)
    }

    /// Notes the server's message when it ends the connection. The first one stays: it is Postgres's reason, and
    /// PgBouncer may send one of its own after it ("server conn crashed?").
    pub(super) fn note_farewell(&self, farewell: ServerClose) {
        self.mark_dead();
        let _ = self.farewell.set(Box::new(farewell));
    }

    /// Returns the server's message when it ended the connection, or is about to end it.
    pub(crate) fn farewell(&self) -> Option<ServerClose> {
        self.farewell.get().map(|it| (**it).clone())
    }
}
