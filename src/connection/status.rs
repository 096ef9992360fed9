//! The status of a connection, and the test for whether it is up to date.
//!
//! The tap writes it as bytes pass. A request that has been sent but not yet written is invisible to the tap: it waits
//! in a channel until the connection's task runs. [`TrackedTask`] closes that gap. It stands between the channel and
//! the task's waker, and notes that a request is about to be written before it wakes the task.

pub(crate) mod liveness;
pub(crate) mod loan_age;
mod session;
pub(crate) mod tracked_task;

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

use self::loan_age::LoanAge;
use super::verdict::ServerClose;
use crate::{model::endpoint::SessionReset, sync::lock};

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
    pub(crate) status: AtomicU8,
    /// `true` while it is idle in the pool.
    parked: AtomicBool,
    /// `true` once its task has ended.
    ended: AtomicBool,
    /// `true` once it must be closed when it comes back, for example because of its age.
    expired: AtomicBool,
    /// Number of times that the task was woken.
    woken: AtomicU64,
    /// The value of `woken` at the start of the last poll in which the task did all it could. If it is less than
    /// `woken`, a request may be waiting to be written.
    settled: AtomicU64,
    /// Number of times that it was taken from the pool.
    leases: AtomicU64,
    /// The last loan whose query a caller asked to cancel; 0 for none.
    cancelled: AtomicU64,
    /// `true` if a hint opened it and no caller has used it yet.
    hinted: AtomicBool,
    /// The flags of its session, which tell whether a reset is needed before the next user gets it.
    pub(crate) session: SessionFlags,
    /// `true` if it is possibly dead, so that the server is pinged on it before it is used.
    suspected: AtomicBool,
    opened: Instant,
    /// Milliseconds from `opened` to the last bytes from the server.
    last_read: AtomicU64,
    /// `true` once a caller has used it: received an answer on it, or given it back in order.
    served: AtomicBool,
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
    /// The instant at which the login was done.
    logged_in: OnceLock<Instant>,
    /// The address at which it was opened; unset for a pipe.
    pub(crate) peer: OnceLock<SocketAddr>,
    /// The instant at which that hint was followed. Locked for a few instructions.
    hinted_at: Mutex<Option<Instant>>,
    /// The instant at which its end was first known, by a message of the server or by the end of its stream.
    died: OnceLock<Instant>,
    /// The server's message when it ended the connection. Written once or twice; never locked across an await.
    farewell: Mutex<Option<ServerClose>>,
    /// The last loan that the sweep has seen. Locked for a few instructions.
    seen_held: Mutex<LoanAge>,
    /// Notified when tenantry begins to close it.
    leave: Notify,
    /// Notified after every poll of the task.
    turned: Notify,
}

impl ConnectionStatus {
    #[cfg(test)]
    pub(crate) fn new() -> Arc<Self> {
        Self::with_reset(SessionReset::Never)
    }

    /// Creates the status of a connection whose session is reset according to `reset`.
    pub(super) fn with_reset(reset: SessionReset) -> Arc<Self> {
        Arc::new(Self {
            outstanding: AtomicU32::new(0),
            status: AtomicU8::new(0),
            parked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            woken: AtomicU64::new(1),
            settled: AtomicU64::new(0),
            leases: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            hinted: AtomicBool::new(false),
            session: SessionFlags::new(reset),
            suspected: AtomicBool::new(false),
            opened: Instant::now(),
            last_read: AtomicU64::new(0),
            served: AtomicBool::new(false),
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
            logged_in: OnceLock::new(),
            peer: OnceLock::new(),
            hinted_at: Mutex::default(),
            died: OnceLock::new(),
            farewell: Mutex::default(),
            seen_held: Mutex::new(LoanAge::new()),
            leave: Notify::new(),
            turned: Notify::new(),
        })
    }

    /// Returns whether nothing is queued, running or open on it.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_settled() && self.is_idle()
    }

    /// Returns whether its task has done all it could, so that the rest of the status is up to date.
    fn is_settled(&self) -> bool {
        self.settled.load(Acquire) == self.woken.load(Acquire)
    }

    /// Returns whether no written request is running, and no transaction is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.load(SeqCst) == 0 && self.status.load(Acquire) == b'I'
    }

    /// Waits until it is clean, for `patience` at most, and returns whether it is.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn clean_within(&self, patience: Duration) -> bool {
        self.within(patience, Self::is_clean).await
    }

    /// Waits until its task has done all it could, or has ended, for `patience` at most.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(crate) async fn settle_within(&self, patience: Duration) {
        self.within(patience, Self::is_settled).await;
    }

    async fn within(&self, patience: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let holds = async {
            loop {
                let turned = self.turned.notified();
                if condition(self) || self.has_ended() {
                    return;
                }
                turned.await;
            }
        };
        timeout(patience, holds).await.is_ok() && !self.has_ended()
    }

    /// Returns the instant at which the login was done; before that, the instant at which it began.
    pub(crate) fn opened(&self) -> Instant {
        self.logged_in.get().copied().unwrap_or(self.opened)
    }

    /// Returns whether its task has ended, so that nothing more will happen on it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Acquire)
    }

    /// Notes that its task has ended.
    pub(crate) fn mark_ended(&self) {
        self.ended.store(true, Release);
        self.turned.notify_waiters();
    }

    /// Returns whether a transaction is open, as of the last answer.
    pub(crate) fn in_transaction(&self) -> bool {
        matches!(self.status.load(Acquire), b'T' | b'E')
    }

    /// Returns whether a statement of the open transaction has failed, as of the last answer.
    pub(crate) fn has_failed(&self) -> bool {
        self.status.load(Acquire) == b'E'
    }

    /// Marks it as idle in the pool.
    pub(crate) fn park(&self) {
        self.parked.store(true, SeqCst);
    }

    /// Marks it as taken out of the pool. Code that still reads the old value searches the pool for it in vain, or does
    /// not cancel the query of an earlier user.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Release);
    }

    /// Returns whether it is idle in the pool although a request that its last user abandoned runs on it, or has left
    /// state in its session.
    pub(crate) fn is_stray(&self) -> bool {
        self.parked.load(SeqCst) && (!self.is_idle() || self.session.is_marked())
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
        self.leave.notify_one();
    }

    /// Waits until `patience` has passed since tenantry began to close it.
    pub(crate) async fn close_timed_out(&self, patience: Duration) {
        self.leave.notified().await;
        tokio::time::sleep(patience).await;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Acquire)
    }

    /// Notes that it was taken from the pool, and returns the number of this loan.
    pub(crate) fn lend(&self) -> u64 {
        self.leases.fetch_add(1, SeqCst) + 1
    }

    /// Returns the number of the last loan.
    pub(crate) fn loan(&self) -> u64 {
        self.leases.load(Relaxed)
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.load(SeqCst)
    }

    /// Marks it as expired if it is older than `lifetime`, or than a random age that is up to a tenth less: connections
    /// that were opened together do not expire together.
    pub(crate) fn expire_after(&self, lifetime: Duration) {
        let earlier = lifetime / 10 * u32::from(self.chance) / u32::from(u8::MAX);
        if self.opened.elapsed() >= lifetime.saturating_sub(earlier) {
            self.expired.store(true, Release);
        }
    }

    /// Returns the time for which it has been on loan, and whether a transaction is open, if that time exceeds `limit`
    /// and was not reported before. The time counts from the first call that saw the loan.
    pub(crate) fn held_beyond(&self, limit: Duration) -> Option<(Duration, bool)> {
        if self.is_parked() {
            return None;
        }
        let held = lock(&self.seen_held).beyond(limit, self.loan());
        held.map(|held| (held, self.in_transaction()))
    }

    /// Returns the time since its loan was first seen, which is no longer than the real loan. Zero if it is in the
    /// pool.
    pub(crate) fn held_for(&self) -> Duration {
        if self.is_parked() {
            return Duration::ZERO;
        }
        lock(&self.seen_held).seen(self.loan())
    }

    /// Notes that it was opened for a hint, which was followed at `at`.
    pub(crate) fn mark_hinted(&self, at: Instant) {
        *lock(&self.hinted_at) = Some(at);
        self.hinted.store(true, Relaxed);
    }

    /// Returns the instant at which the hint that opened it was followed, now that a caller has used it. Only the first
    /// call returns the instant.
    pub(crate) fn take_hint_used(&self) -> Option<Instant> {
        let hinted = self.hinted.load(Relaxed) && self.hinted.swap(false, Relaxed);
        hinted.then(|| lock(&self.hinted_at).take()).flatten()
    }

    /// Notes that the query on `loan` is about to be cancelled, and returns whether that loan still lasts. Ordered with
    /// [`lend`](Self::lend): lending is followed by a read of this mark.
    pub(crate) fn mark_cancelled(&self, loan: u64) -> bool {
        let is_its_turn = || self.leases.load(SeqCst) == loan && !self.is_parked();
        if !is_its_turn() {
            return false; // the next user must not lose the connection
        }
        self.cancelled.fetch_max(loan, SeqCst);
        is_its_turn()
    }

    /// Returns whether a caller asked to cancel a query on it, so that no other caller may get it.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst) != 0
    }

    /// Returns whether a request to cancel an earlier loan's query may still be under way.
    pub(super) fn may_be_cancelled(&self) -> bool {
        let cancelled = self.cancelled.load(SeqCst);
        cancelled != 0 && cancelled != self.leases.load(SeqCst)
    }

    /// Notes that the login is done.
    pub(super) fn mark_logged_in(&self) {
        let _ = self.logged_in.set(Instant::now());
    }

    /// Notes that it has died, or is about to.
    pub(super) fn mark_dead(&self) {
        let _ = self.died.set(Instant::now());
    }

    /// Returns the instant since which it is known to be dead.
    pub(crate) fn died(&self) -> Option<Instant> {
        self.died.get().copied()
    }

    /// Notes the transaction status that a ReadyForQuery reports.
    pub(super) fn note_status(&self, status: u8) {
        self.status.store(status, Release);
        if status == b'I' {
            self.idles.fetch_add(1, Release);
        }
    }

    /// Notes an error, which fails the transaction if one is open. The server may report that status later.
    pub(super) fn note_error(&self) {
        let _ = self.status.compare_exchange(b'T', b'E', AcqRel, Acquire);
    }

    /// Returns the number of times that the server reported itself idle, outside any transaction.
    pub(crate) fn idles(&self) -> u64 {
        self.idles.load(Acquire)
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Acquire)
    }

    /// Notes that a statement was written that may end a transaction.
    pub(super) fn note_end(&self) {
        self.ends.fetch_add(1, Release);
    }

    /// Returns the number of written statements that may end a transaction.
    pub(crate) fn ends(&self) -> u64 {
        self.ends.load(Acquire)
    }

    /// Notes that the server completed a command, and whether that was a rollback.
    pub(super) fn note_done(&self, rollback: bool) {
        self.rolled_back.store(rollback, Release);
    }

    pub(crate) fn was_rolled_back(&self) -> bool {
        self.rolled_back.load(Acquire)
    }

    /// Notes the server's message when it ends the connection. The first one stays: it is Postgres's reason, and
    /// PgBouncer may send one of its own after it ("server conn crashed?").
    pub(super) fn note_farewell(&self, farewell: ServerClose) {
        self.mark_dead();
        lock(&self.farewell).get_or_insert(farewell);
    }

    /// Returns the server's message when it ended the connection, or is about to end it.
    pub(crate) fn farewell(&self) -> Option<ServerClose> {
        lock(&self.farewell).clone()
    }

    /// Returns the SQLSTATE of the last error that the server sent on it.
    pub(crate) fn last_sqlstate(&self) -> Option<String> {
        let packed = self.sqlstate.load(Acquire);
        (packed != 0).then(|| String::from_utf8_lossy(&packed.to_be_bytes()[3..]).into_owned())
    }
}
