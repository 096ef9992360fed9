//! The mark of a connection that is idle in its pool, and requests that turn up on it.
//!
//! A request that its last user sent and abandoned may still wait in the channel when the connection comes back. The
//! connection's task writes it later, and reports it if the connection is parked by then. If the task has not done all
//! it could, parking is ordered with that: the pool sees the request, or the task sees the mark, or both.

use std::sync::atomic::Ordering::{Release, SeqCst};

use super::ConnectionStatus;

impl ConnectionStatus {
    /// Marks it as idle in the pool. Returns `false` and leaves it unmarked if a request of its last user was written
    /// after check-in had found it idle, and before the mark: its task does not report such a request.
    #[must_use]
    pub(crate) fn park(&self) -> bool {
        if self.is_settled() {
            // Every request was written, and it has no user that could send another, so there is none to race with.
            self.parked.store(true, Release);
        } else {
            self.parked.store(true, SeqCst);
        }
        let is_stray = self.is_stray();
        if is_stray {
            self.unpark();
        }
        !is_stray
    }

    /// Marks it as idle in the pool after the caller has found it [clean](Self::is_clean), and its last user has left.
    #[inline]
    pub(crate) fn park_clean(&self) {
        // Every request was written and answered, and there is no user that could send another: none to race with.
        self.parked.store(true, Release);
    }

    /// Marks it as taken out of the pool. Code that still reads the old value searches the pool for it in vain, or does
    /// not cancel the query of an earlier user.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Release);
    }

    /// Returns whether it is idle in the pool although a request that its last user abandoned runs on it, or has left
    /// state in its session.
    pub(crate) fn is_stray(&self) -> bool {
        self.is_parked() && (!self.is_idle() || self.session.is_marked())
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        hint::black_box,
        sync::atomic::{
            AtomicU32,
            Ordering::{AcqRel, Acquire},
        },
        thread,
        time::Duration,
    };

    use tokio::time::Instant;

    use super::*;

    /// A user sends a request, abandons it and gives the connection back, while its task writes the request.
    #[test]
    fn a_request_written_while_its_connection_is_parked_is_seen_by_one_side() {
        const ROUNDS: u32 = 100_000;
        const LONGEST: Duration = Duration::from_secs(1); // on a machine with other work, a round takes long
        const OVER: u32 = u32::MAX;
        let status = ConnectionStatus::new();
        status.note_status(b'I');
        let settle = |seen| status.settled_wakes.store(seen, Release);
        settle(status.wakes.load(Acquire));
        let (begun, ended, found) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let wait_for = |turn: &AtomicU32, round| {
            (1_u32..).find_map(|tries| {
                if tries.is_multiple_of(100) {
                    thread::yield_now();
                }
                let turn = turn.load(Acquire);
                (turn >= round).then_some(turn)
            })
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1.. {
                    if wait_for(&begun, round) == Some(OVER) {
                        return;
                    }
                    let seen = status.wakes.load(Acquire);
                    status.outstanding.fetch_add(1, SeqCst);
                    settle(seen);
                    found.fetch_add(u32::from(status.is_stray()), AcqRel);
                    ended.store(round, Release);
                }
            });
            let start = Instant::now();
            for round in (1..=ROUNDS).take_while(|_| start.elapsed() < LONGEST) {
                status.wakes.fetch_add(1, AcqRel); // the request is in the channel
                begun.store(round, Release);
                for wait in 0..round % 300 {
                    let _ = black_box(wait); // so that the two meet at every point
                }
                let was_written = !status.is_idle();
                if !was_written && !status.park() {
                    found.fetch_add(1, AcqRel);
                }
                wait_for(&ended, round);
                let is_found = found.swap(0, AcqRel) > 0;
                if !was_written && !is_found {
                    begun.store(OVER, Release);
                    panic!("round {round}: neither side has seen the request");
                }
                status.outstanding.store(0, SeqCst);
                status.unpark();
            }
            begun.store(OVER, Release);
        });
    }
}
