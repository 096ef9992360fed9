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
        let started = Instant::now();
        let awake = match self.join_wake(until, reason, hinted)? {
            Wait::Over => return Ok(false),
            Wait::ForWake(awake) => awake,
            Wait::ForConnection => return self.get(until).await.map(|(_, slept)| slept),
        };
        self.start_due_dials();
        match timeout_at(until, awake).await {
            Ok(Ok(answer)) => answer.map(|()| true),
            Ok(Err(_)) => Err(Error::closed().into()),
            Err(_) => Err(self.out_of_time(started).into()),
        }
    }

    /// Returns the event to wait for. Adds a wake waiter if that event is a login.
    fn join_wake(
        &self,
        until: Instant,
        reason: Reason,
        hinted: Option<Instant>,
    ) -> Result<Wait, Unserved> {
        let refusal = self.refusal(until);
        let mut state = self.state();
        if let Some(why) = &state.forbidden {
            return Err(why.clone());
        }
        if !state.believes_asleep() {
            return Ok(Wait::Over);
        }
        if state.idle() > 0 || state.open.len() >= state.limit(&self.shared.config) {
            // No attempt would begin. A usable connection proves as much.
            return Ok(Wait::ForConnection);
        }
        if let Some(refusal) = refusal.filter(|_| state.open.is_empty()) {
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
        for waker in state.take_wake_waiters(|_| true) {
            match waker.hinted {
                Some(at) if marked => self.shared.hints.give_back(at), // one wake for two hints
                Some(at) => {
                    status.mark_hinted(at); // its use proves that the hint was right
                    marked = true;
                }
                None => {}
            }
            drop(waker.done.send(Ok(())));
        }
    }
}

/// Answers all `wakers` with `why`.
pub(super) fn fail_wake_waiters(wakers: Vec<WakeWaiter>, why: &Unserved) {
    for waker in wakers {
        drop(waker.done.send(Err(why.clone())));
    }
}
