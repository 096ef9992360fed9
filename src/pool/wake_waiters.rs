//! Those who want a database awake, and no connection: `warm` and `hint`. They wait beside the queue.

use std::sync::Arc;

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{Pool, State, Unserved, state::WakeWaiter};
use crate::{connection::status::ConnectionStatus, model::error::Error, telemetry::labels::Reason};

/// What somebody waits for who wants the database awake.
enum Wait {
    /// Nothing: it is.
    Over,
    /// The next login that succeeds.
    ForWake(oneshot::Receiver<Result<(), Unserved>>),
    /// A connection.
    ForConnection,
}

impl Pool {
    /// Whether there is no reason to wake the tenant's database.
    pub(crate) fn is_up_or_waking(&self) -> bool {
        let state = self.state();
        !state.believes_asleep() || state.dialing > 0 || state.idle() > 0
    }

    /// Waits until the database is awake, until `until`; says whether it had to be woken. `hinted`: when the hint was followed,
    /// if it is one.
    ///
    /// # Cancel safety
    /// Dropping it lets a wake that is under way go on.
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

    /// For what somebody has to wait who wants the database awake.
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
            // No attempt would begin. A connection that can be used shows as much.
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

    /// Tells those who want the database awake that it is, as the connection shows that `watch` is of: it has come back in
    /// order, or is new.
    pub(super) fn tell_awake(&self, state: &mut State, watch: &ConnectionStatus) {
        let mut marked = false;
        for waker in state.take_wake_waiters(|_| true) {
            match waker.hinted {
                Some(at) if marked => self.shared.hints.give_back(at), // one wake for two hints
                Some(at) => {
                    watch.mark_hinted(at); // who uses it proves that the hint was right
                    marked = true;
                }
                None => {}
            }
            drop(waker.done.send(Ok(())));
        }
    }
}

/// Tells them why not.
pub(super) fn fail_wake_waiters(wakers: Vec<WakeWaiter>, why: &Unserved) {
    for waker in wakers {
        drop(waker.done.send(Err(why.clone())));
    }
}
