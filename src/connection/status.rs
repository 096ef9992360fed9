//! What is known of a connection, and when that can be trusted.
//!
//! The tap writes it as bytes pass. A request that has been sent but not yet written is invisible to the tap: it waits
//! in a channel until the connection's task runs. [`TrackedTask`] closes that gap. It stands between the channel and the
//! task's waker, and notes that something is about to be written before the task knows.

mod doubt;
mod held;
mod session;
mod settling;

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

use self::held::LoanAge;
use super::verdict::ServerClose;
use crate::{model::endpoint::SessionReset, sync::lock};

pub(crate) use session::{Residue, SessionFlags};
pub(crate) use settling::TrackedTask;

/// What is known of one connection. Shared by its stream, its task and its user.
///
/// In this order in memory: what every `get` and every give-back looks at comes first, side by side.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ConnectionStatus {
    /// Requests written, or begun, whose ReadyForQuery has not come. Mere closing of statements is not counted.
    /// Ordered with `parked`: whoever parks looks here afterwards, whoever writes looks there afterwards.
    pub(crate) outstanding: AtomicU32,
    /// Transaction status of the last ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one.
    pub(crate) status: AtomicU8,
    /// Whether it lies in the pool, where nobody uses it.
    parked: AtomicBool,
    /// Whether its task has ended.
    ended: AtomicBool,
    /// Whether it has reached its largest age, so that it is closed when it comes back.
    expired: AtomicBool,
    /// How often the task has been woken.
    woken: AtomicU64,
    /// The value of `woken` at the start of the last turn in which the task did all it could. Where it is less than
    /// `woken`, a request may be waiting to be written.
    settled: AtomicU64,
    /// How often it was taken from the pool.
    leases: AtomicU64,
    /// The last loan on which somebody asked for its query to be cancelled; 0 for none.
    cancelled: AtomicU64,
    /// Whether a hint opened it, and nobody has used it yet.
    hinted: AtomicBool,
    /// Whether its session has to be reset before the next user gets it.
    pub(crate) session: SessionFlags,
    /// Whether it is possibly dead, so that the server is asked on it before it is used.
    suspected: AtomicBool,
    opened: Instant,
    /// Milliseconds from `opened` to the last bytes that came from the server.
    last_read: AtomicU64,
    /// Whether anybody has used it: had an answer on it, or given it back in order.
    served: AtomicBool,
    /// Whether we close it, so that its end says nothing about the server.
    closing: AtomicBool,
    /// Whether the stream has bytes that it could not write.
    pub(crate) blocked: AtomicBool,
    /// Whether the task has read all there is, and so has handed on all that it read.
    pub(crate) drained: AtomicBool,
    /// Whether the last command that the server completed was a rollback.
    rolled_back: AtomicBool,
    /// Whether Postgres refused a statement on it that was prepared before a schema change.
    outdated: AtomicBool,
    /// A number of its own, by chance.
    chance: u8,
    /// The five bytes of the last error's SQLSTATE, as a number; 0 for none.
    pub(crate) sqlstate: AtomicU64,
    /// How often something was written, whole, that may end a transaction.
    ends: AtomicU64,
    /// How often the server said that it is idle, outside any transaction.
    idles: AtomicU64,
    /// When the login was done.
    logged_in: OnceLock<Instant>,
    /// The address at which it was opened, if not by a pipe.
    pub(crate) peer: OnceLock<SocketAddr>,
    /// When that hint was followed. Held for a look.
    hinted_at: Mutex<Option<Instant>>,
    /// When the server was first known to end it, or its stream ended.
    died: OnceLock<Instant>,
    /// What the server said when it ended the connection. Written once or twice in its life; never held across an await.
    farewell: Mutex<Option<ServerClose>>,
    /// The last loan that was looked at by the sweep. Held for a few instructions.
    seen_held: Mutex<LoanAge>,
    /// Rung when we begin to close it.
    leave: Notify,
    /// Rung after every turn of the task.
    turned: Notify,
}

impl ConnectionStatus {
    #[cfg(test)]
    pub(crate) fn new() -> Arc<Self> {
        Self::with_reset(SessionReset::Never)
    }

    /// A watch over a connection whose session is reset when `reset` says so.
    pub(crate) fn with_reset(reset: SessionReset) -> Arc<Self> {
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

    /// Whether nothing is queued, running or open on it.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_settled() && self.is_idle()
    }

    /// Whether its task has done all it could, so that the rest of what is known here is true.
    fn is_settled(&self) -> bool {
        self.settled.load(Acquire) == self.woken.load(Acquire)
    }

    /// Whether nothing that was written is running or open.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.load(SeqCst) == 0 && self.status.load(Acquire) == b'I'
    }

    /// Waits until it is clean, for `patience` at most; says whether it is.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub(crate) async fn clean_within(&self, patience: Duration) -> bool {
        self.within(patience, Self::is_clean).await
    }

    /// Waits until its task has done all it could, or has ended, for `patience` at most.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
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

    /// When the login was done.
    pub(crate) fn opened(&self) -> Instant {
        self.logged_in.get().copied().unwrap_or(self.opened)
    }

    /// Whether its task has ended, so that nothing more will happen on it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Acquire)
    }

    /// Notes that its task has ended.
    pub(crate) fn mark_ended(&self) {
        self.ended.store(true, Release);
        self.turned.notify_waiters();
    }

    /// Whether a transaction is open, as of the last answer.
    pub(crate) fn in_transaction(&self) -> bool {
        matches!(self.status.load(Acquire), b'T' | b'E')
    }

    /// Whether a statement of the open transaction has failed, as of the last answer.
    pub(crate) fn has_failed(&self) -> bool {
        self.status.load(Acquire) == b'E'
    }

    /// Notes that it lies in the pool from now on.
    pub(crate) fn park(&self) {
        self.parked.store(true, SeqCst);
    }

    /// Notes that it does not any more. Whoever takes it for parked a moment longer looks for it in the pool in vain, or
    /// does not cancel what an earlier user had it do.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Release);
    }

    /// Whether something runs on it although it lies in the pool, or has left something: a request that its last user
    /// abandoned.
    pub(crate) fn is_stray(&self) -> bool {
        self.parked.load(SeqCst) && (!self.is_idle() || self.session.is_marked())
    }

    /// Notes that somebody has used it.
    pub(crate) fn mark_served(&self) {
        self.served.store(true, Release);
    }

    pub(crate) fn has_served(&self) -> bool {
        self.served.load(Acquire)
    }

    /// Notes that we close it.
    pub(crate) fn mark_closing(&self) {
        self.closing.store(true, Release);
        self.leave.notify_one();
    }

    /// Waits until we have been closing it for `patience`.
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

    /// The number of the last loan.
    pub(crate) fn loan(&self) -> u64 {
        self.leases.load(Relaxed)
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(SeqCst)
    }

    /// Notes that it has reached its largest age, if it is older than `lifetime` or, by chance, up to a tenth younger:
    /// connections that were opened together do not end together.
    pub(crate) fn expire_after(&self, lifetime: Duration) {
        let earlier = lifetime / 10 * u32::from(self.chance) / u32::from(u8::MAX);
        if self.opened.elapsed() >= lifetime.saturating_sub(earlier) {
            self.expired.store(true, Release);
        }
    }

    /// For how long it has been on loan, and whether in a transaction, if that is longer than `limit` and was not told
    /// before. As seen by whoever asks this from time to time.
    pub(crate) fn held_beyond(&self, limit: Duration) -> Option<(Duration, bool)> {
        if self.is_parked() {
            return None;
        }
        let held = lock(&self.seen_held).beyond(limit, self.loan());
        held.map(|held| (held, self.in_transaction()))
    }

    /// For how long it has been on loan, as far as that was seen: no longer than it really is.
    pub(crate) fn held_for(&self) -> Duration {
        if self.is_parked() {
            return Duration::ZERO;
        }
        lock(&self.seen_held).seen(self.loan())
    }

    /// Notes that a hint opened it, which was followed at `at`.
    pub(crate) fn mark_hinted(&self, at: Instant) {
        *lock(&self.hinted_at) = Some(at);
        self.hinted.store(true, Relaxed);
    }

    /// When the hint was followed that opened it, now that somebody has used it. Says so once.
    pub(crate) fn take_hint_used(&self) -> Option<Instant> {
        let hinted = self.hinted.load(Relaxed) && self.hinted.swap(false, Relaxed);
        hinted.then(|| lock(&self.hinted_at).take()).flatten()
    }

    /// Notes that the query on `loan` is about to be cancelled; says whether it is still that loan's turn. Ordered
    /// with [`lend`](Self::lend): whoever borrows looks here afterwards.
    pub(crate) fn mark_cancelled(&self, loan: u64) -> bool {
        let is_its_turn = || self.leases.load(SeqCst) == loan && !self.is_parked();
        if !is_its_turn() {
            return false; // nobody is to lose a connection by it
        }
        self.cancelled.fetch_max(loan, SeqCst);
        is_its_turn()
    }

    /// Whether somebody asked for a query on it to be cancelled, so that nobody else is to have it.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst) != 0
    }

    /// Whether a request to cancel an earlier loan's query may still be under way.
    pub(crate) fn may_be_cancelled(&self) -> bool {
        let cancelled = self.cancelled.load(SeqCst);
        cancelled != 0 && cancelled != self.leases.load(SeqCst)
    }

    /// Notes that the login is done.
    pub(crate) fn mark_logged_in(&self) {
        let _ = self.logged_in.set(Instant::now());
    }

    /// Notes that it is dead, or about to be.
    pub(crate) fn mark_dead(&self) {
        let _ = self.died.set(Instant::now());
    }

    /// Since when it is known to be dead.
    pub(crate) fn died(&self) -> Option<Instant> {
        self.died.get().copied()
    }

    /// Notes what a ReadyForQuery says.
    pub(crate) fn note_status(&self, status: u8) {
        self.status.store(status, Release);
        if status == b'I' {
            self.idles.fetch_add(1, Release);
        }
    }

    /// Notes an error, which fails the transaction if one is open. The status that says so may come later.
    pub(crate) fn note_error(&self) {
        let _ = self.status.compare_exchange(b'T', b'E', AcqRel, Acquire);
    }

    /// How often the server said that it is idle, outside any transaction.
    pub(crate) fn idles(&self) -> u64 {
        self.idles.load(Acquire)
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Acquire)
    }

    /// Notes that something was written that may end a transaction.
    pub(crate) fn note_end(&self) {
        self.ends.fetch_add(1, Release);
    }

    /// How often that was so.
    pub(crate) fn ends(&self) -> u64 {
        self.ends.load(Acquire)
    }

    /// Notes that the server completed a command, and whether that was a rollback.
    pub(crate) fn note_done(&self, rollback: bool) {
        self.rolled_back.store(rollback, Release);
    }

    pub(crate) fn was_rolled_back(&self) -> bool {
        self.rolled_back.load(Acquire)
    }

    pub(crate) fn note_farewell(&self, farewell: ServerClose) {
        self.mark_dead();
        *lock(&self.farewell) = Some(farewell);
    }

    /// What the server said when it ended the connection, or is about to.
    pub(crate) fn farewell(&self) -> Option<ServerClose> {
        lock(&self.farewell).clone()
    }

    /// SQLSTATE of the last error the server sent on it.
    pub(crate) fn last_sqlstate(&self) -> Option<String> {
        let packed = self.sqlstate.load(Acquire);
        (packed != 0).then(|| String::from_utf8_lossy(&packed.to_be_bytes()[3..]).into_owned())
    }
}
