//! Check-out: taking an idle connection, or the next free one at the caller's turn.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::yield_now,
    time::{Instant, timeout_at},
};

use super::{
    Pool, State, Unserved, loan::Loan, refusals::Refusal, state::Waiter,
    statement_clearing::Cleared,
};
use crate::{
    connection::{Connection, status::health::Health},
    model::{endpoint::Route, error::Error},
    sync::clock::Moment,
};

/// Longest wait for a connection's task to be polled, which takes microseconds unless the runtime is overloaded.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection for a caller that had to wait, or whose connection needed a check.
pub(crate) struct CheckedOut {
    pub(crate) loan: Loan,
    /// `true` if the caller waited for a database that was believed asleep.
    pub(crate) was_asleep: bool,
    /// The time at which the caller got the connection.
    pub(crate) at: Moment,
}

impl CheckedOut {
    /// Notes that `loan` begins now.
    fn new(loan: Loan, was_asleep: bool) -> Self {
        let at = loan.pool().shared.clock.now();
        loan.connection().status.note_loan_began(at.millis());
        Self {
            loan,
            was_asleep,
            at,
        }
    }
}

impl Pool {
    /// Returns a connection by `until` to a caller that asks for it at `now`.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue. A dial in progress goes on.
    pub(crate) async fn get(
        self: &Arc<Self>,
        until: Instant,
        now: Moment,
    ) -> Result<CheckedOut, Unserved> {
        let checkout = async {
            let (mut was_asleep, mut has_waited) = (false, false);
            if self.shared.pace.is_sweep_overdue(now.millis()) {
                // The runtime was not driven for a while. Now it notices which sockets have ended.
                yield_now().await;
            }
            loop {
                let mut turn = self.take_or_queue(until, has_waited).await?;
                was_asleep |= turn.was_asleep;
                turn.was_asleep = was_asleep;
                has_waited = true; // if the connection is dead, this caller goes to the front of the queue
                let health = self.health_at(turn.at, turn.loan.connection());
                if health == Health::Healthy && !self.clearing.is_clearing_due() {
                    return Ok(turn);
                }
                // Boxed, so that the future of a call whose connection needs no check stays small.
                if let Some(checked) = Box::pin(self.check(turn, until)).await? {
                    return Ok(checked);
                }
            }
        };
        timeout_at(until, checkout)
            .await
            .unwrap_or_else(|_| Err(self.out_of_time(now.instant).into()))
    }

    /// Returns the connection if it can be used, or another one. Returns `None` if the caller must take the next one.
    async fn check(
        self: &Arc<Self>,
        turn: CheckedOut,
        until: Instant,
    ) -> Result<Option<CheckedOut>, Unserved> {
        let check = async {
            let Some(loan) = self.validate(turn.loan).await else {
                return Ok(None);
            };
            // After a schema change, the statements that the pooler has prepared are cleared first.
            match self.with_cleared_statements(loan, until).await? {
                Cleared::Ready(loan) => Ok(Some(CheckedOut {
                    loan,
                    at: self.shared.clock.now(),
                    was_asleep: turn.was_asleep,
                })),
                Cleared::TakeAnother => Ok(None),
            }
        };
        tokio::select! {
            biased;
            () = self.shared.life.terminated() => Err(Error::closed().into()),
            checked = check => checked,
        }
    }

    /// Returns the next connection: an idle one, or the next free one at the caller's turn.
    pub(super) async fn take_or_queue(
        self: &Arc<Self>,
        until: Instant,
        has_waited: bool,
    ) -> Result<CheckedOut, Unserved> {
        let (my_turn, was_asleep) = {
            let (mut state, refusal) = self.state_and_refusal(until);
            if self.shared.life.is_terminated() {
                return Err(Error::closed().into()); // under the lock: a caller that queues earlier is answered
            }
            if let Some(why) = &state.rare.forbidden {
                return Err(why.clone());
            }
            if let Some(connection) = state.pop_idle() {
                state.lent += 1;
                drop(state);
                return Ok(CheckedOut::new(
                    Loan::new(connection, Arc::clone(self)),
                    false,
                ));
            }
            if let Some(refusal) = refusal {
                return Err(refusal.error().into());
            }
            let (sender, my_turn) = oneshot::channel();
            let was_asleep = state.believes_asleep();
            state.enqueue(Waiter { sender, until }, has_waited);
            let may_dial = state.room_for_dials(&self.shared.config) > 0;
            drop(state);
            if may_dial {
                self.start_due_attempts();
            }
            (my_turn, was_asleep)
        };
        // Answered by `hand_out` (checkin.rs), by `fail_one`, `fail_all` and `reject_waiters` (failures.rs), by
        // `forbid`, or when the router terminates (cache.rs).
        let answer = my_turn.await;
        if self.shared.life.is_terminated() {
            return Err(Error::closed().into());
        }
        let loan = answer.unwrap_or_else(|_| Err(Error::closed().into()))?;
        Ok(CheckedOut::new(loan, was_asleep))
    }

    /// Locks the state. Also returns the refusal that answers a caller with deadline `until`, if no connection is open
    /// that may still serve the caller.
    pub(super) fn state_and_refusal(
        &self,
        until: Instant,
    ) -> (MutexGuard<'_, State>, Option<Refusal>) {
        let state = self.state();
        if !state.open.is_empty() {
            return (state, None); // the usual case, which need not search the refusals
        }
        drop(state);
        let refusal = self.shared.refusals.get(&self.tenant, Route::Pooled);
        let state = self.state();
        let refusal = refusal.filter(|it| it.answers(until) && state.open.is_empty());
        (state, refusal)
    }

    fn health_at(&self, now: Moment, connection: &Connection) -> Health {
        let verify_after = self.shared.verify_after;
        connection.status.health(verify_after, now.millis())
    }

    /// Returns the health of `connection` now.
    pub(crate) fn health_of(&self, connection: &Connection) -> Health {
        self.health_at(self.shared.clock.now(), connection)
    }

    /// Returns the loan if its connection can be used. Pings the server if that is in doubt.
    async fn validate(self: &Arc<Self>, loan: Loan) -> Option<Loan> {
        let status = &loan.connection().status;
        let mut health = self.health_of(loan.connection());
        if health == Health::Pending {
            status.settle_within(POLL_TIMEOUT).await;
            health = self.health_of(loan.connection());
        }
        match health {
            Health::Healthy => Some(loan),
            Health::NeedsPing => self.ping(loan).await,
            Health::Pending => {
                // Not given back: the next caller could not use it either.
                loan.clean_up();
                None
            }
            Health::Closed => None,
        }
    }
}
