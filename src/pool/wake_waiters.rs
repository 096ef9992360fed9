//! Wake waiters: callers that want a database awake, and no connection (`warm` and `hint`). They wait beside the queue.

use std::sync::Arc;

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{Pool, State, Unserved, state::WakeWaiter};
use crate::{connection::status::ConnectionStatus, model::error::Error, telemetry::labels::Reason};

/// The event that a wake waiter waits for.
enum Wait {
    /// None: the database is awake.
    Over,
    /// The next login that succeeds.
    ForWake(oneshot::Receiver<Result<(), Unserved>>),
    /// A connection.
    ForConnection,
}

impl Pool {
    /// Returns whether the database needs no wake: it is awake, or a login is in progress.
    pub(crate) fn is_up_or_waking(&self) -> bool {
        let state = self.state();
        !state.believes_asleep() || state.dialing > 0 || state.idle() > 0
    }

    /// Waits until the database is awake, at most until `until`. Returns whether it had to be woken. `hinted`: for a
    /// hint, the time at which it was taken from the hint budget.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop a wake in progress.
    pub(crate) async fn wake(
        self: &Arc<Self>,
        until: Instant,
        reason: Reason,
        hinted: Option<Instant>,
    ) -> Result<bool, Unserved> {
        let started = self.shared.clock.now();
        let awake = match self.join_wake(until, reason, hinted)? {
            Wait::Over => return Ok(false),
            Wait::ForWake(awake) => awake,
            Wait::ForConnection => return self.get(until, started).await.map(|it| it.was_asleep),
        };
        self.start_due_attempts();
        match timeout_at(until, awake).await {
            Ok(Ok(answer)) => answer.map(|()| true),
            Ok(Err(_)) => Err(Error::closed().into()),
            Err(_) => Err(self.out_of_time(started.instant).into()),
        }
    }

    /// Returns the event to wait for. Adds a wake waiter if that event is a login.
    fn join_wake(
        &self,
        until: Instant,
        reason: Reason,
        hinted: Option<Instant>,
    ) -> Result<Wait, Unserved> {
        let (mut state, refusal) = self.state_and_refusal(until);
        if self.shared.life.is_terminated() {
            return Err(Error::closed().into()); // under the lock: a caller that waits earlier is answered
        }
        if let Some(why) = &state.rare.forbidden {
            return Err(why.clone());
        }
        if !state.believes_asleep() {
            return Ok(Wait::Over);
        }
        if state.idle() > 0 || state.open.len() >= state.limit(&self.shared.config) {
            // No attempt would begin. A usable connection proves as much.
            return Ok(Wait::ForConnection);
        }
        if let Some(refusal) = refusal {
            return Err(refusal.error().into());
        }
        let (done, awake) = oneshot::channel();
        state.await_wake(WakeWaiter {
            done,
            reason,
            until,
            hinted,
        });
        Ok(Wait::ForWake(awake))
    }

    /// Tells all wake waiters that the database is awake. The connection with this status proves it: it is new, or came
    /// back in order.
    pub(super) fn tell_awake(&self, state: &mut State, status: &ConnectionStatus) {
        let mut marked = false;
        for waiter in state.take_wake_waiters(|_| true) {
            match waiter.hinted {
                Some(at) if marked => self.shared.hints.give_back(at), // one wake for two hints
                Some(at) => {
                    status.mark_hinted(at); // its use proves that the hint was right
                    marked = true;
                }
                None => {}
            }
            drop(waiter.done.send(Ok(())));
        }
    }
}

/// Answers all `waiters` with `why`.
pub(super) fn fail_wake_waiters(waiters: Vec<WakeWaiter>, why: &Unserved) {
    for waiter in waiters {
        drop(waiter.done.send(Err(why.clone())));
    }
}
