//! Check-out: taking an idle connection, or the next free one at the caller's turn.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::yield_now,
    time::{Instant, timeout_at},
};

use super::{Pool, Unserved, loan::Loan, refusals::Refusal, state::Waiter};
use crate::{
    connection::Health,
    model::{endpoint::Route, error::Error},
};

/// Longest wait for a connection's task to run, which takes microseconds unless the runtime is overloaded.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// Wait after which the pool measures how long its connections are held, for the error of a caller that runs out of
/// time.
const LONG_WAIT: Duration = Duration::from_millis(100);

impl Pool {
    /// Returns a connection by `until`, and whether the caller waited for a database that was believed asleep.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue. A dial in progress goes on.
    pub(crate) async fn get(self: &Arc<Self>, until: Instant) -> Result<(Loan, bool), Unserved> {
        let started = Instant::now();
        let found = async {
            let (mut slept, mut has_waited) = (false, false);
            if self.shared.pace.is_overdue(started) {
                yield_now().await; // lets the runtime notice which sockets have ended
            }
            loop {
                let lease = self.next(until, has_waited, &mut slept).await?;
                has_waited = true; // if the connection is dead, this caller keeps its turn
                let Some(lease) = self.validate(lease).await else {
                    continue;
                };
                if let Some(lease) = self.with_cleared_statements(lease, until).await? {
                    return Ok((lease, slept));
                }
            }
        };
        let mut found = pin!(found);
        if let Ok(found) = timeout_at(until.min(started + LONG_WAIT), &mut found).await {
            return found;
        }
        self.note_loans();
        timeout_at(until, found)
            .await
            .unwrap_or_else(|_| Err(self.out_of_time(started).into()))
    }

    /// Starts to measure for how long each connection is held, for the error of a caller that runs out of time.
    fn note_loans(&self) {
        for status in &self.state().open {
            status.held_for();
        }
    }

    /// Returns the active refusal that applies to a caller with deadline `until`.
    pub(super) fn refusal(&self, until: Instant) -> Option<Refusal> {
        let refusal = self.shared.refusals.get(&self.tenant, Route::Pooled);
        refusal.filter(|it| it.answers(until))
    }

    /// Returns the next connection: an idle one, or the next free one at the caller's turn. Sets `slept` if it waits
    /// for a database believed asleep.
    pub(super) async fn next(
        self: &Arc<Self>,
        until: Instant,
        has_waited: bool,
        slept: &mut bool,
    ) -> Result<Loan, Unserved> {
        let refusal = self.refusal(until);
        let turn = {
            let mut state = self.state();
            if let Some(why) = &state.forbidden {
                return Err(why.clone());
            }
            if let Some(connection) = state.pop_idle() {
                state.lent += 1;
                drop(state);
                return Ok(Loan::new(connection, Arc::clone(self)));
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
        self.start_due_dials();
        // Answered by `hand_out` (checkin.rs), by `fail_one` and `fail_all` (failures.rs), or by `forbid`.
        turn.await.unwrap_or_else(|_| Err(Error::closed().into()))
    }

    /// Returns the lease if its connection can be used. Pings the server if that is in doubt.
    async fn validate(self: &Arc<Self>, lease: Loan) -> Option<Loan> {
        let status = &lease.connection().status;
        let mut health = lease.connection().health(&self.shared.config);
        if health == Health::Pending {
            status.settle_within(TURN_TIMEOUT).await;
            health = lease.connection().health(&self.shared.config);
        }
        match health {
            Health::Healthy => Some(lease),
            Health::NeedsPing => self.ping(lease).await,
            Health::Pending => {
                // Not given back: the next caller could not use it either.
                lease.discard();
                None
            }
            Health::CancelPending => {
                lease.close();
                None
            }
            Health::Closed => None,
        }
    }
}
