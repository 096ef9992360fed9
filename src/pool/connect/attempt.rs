//! Attempts to open connections, the first of which wakes the database.
//!
//! An attempt belongs to the tenant, not to a caller. It runs in its own task on the router's runtime, with its own
//! deadline, and goes on when every caller has left. While the compute may be asleep, there is one attempt at a time.
//! It retries until it succeeds, is refused, or its deadline passes. While the compute is awake, a few attempts run
//! side by side, and a failed one only means that the compute may be asleep.

use std::sync::Arc;

use tokio::time::sleep;
use tracing::Instrument;

use super::{
    Connector,
    retries::{FIRST_WAIT, LONGEST_WAIT},
    task::start_and_hand_out,
};
use crate::{
    connection::dial::Dialed,
    model::{
        endpoint::Route,
        error::{Error, ErrorKind, Stage},
    },
    pool::{Pool, refusals::Refusal},
    sync::progress::Progress,
    telemetry::{labels::Reason, spans},
};

impl Pool {
    /// Starts the attempts that are due. Must be called after every change that may make one due.
    pub(in crate::pool) fn start_due_dials(self: &Arc<Self>) {
        let mut state = self.state();
        let (due, reason) = state.dials_due(&self.shared.config);
        let asleep = state.believes_asleep();
        let early_ends = state.early_ends;
        state.dialing += due;
        drop(state); // a runtime that has ended drops the task at once, and its guard takes the lock
        for _ in 0..due {
            let mut attempt = DialAttempt {
                pool: Arc::clone(self),
                waking: false,
                logging_in: false,
                landed: false,
            };
            let (life, pool) = (Arc::clone(&self.shared.life), Arc::clone(self));
            let tenant = self.tenant.as_str();
            let span = spans::detached(tracing::debug_span!(parent: None, "open", tenant));
            let task = async move {
                let dialed = tokio::select! {
                    biased;
                    () = life.terminated() => Some(Err(Error::closed())),
                    () = pool.until_forbidden() => None,
                    dialed = attempt.run(asleep, reason, early_ends) => dialed,
                };
                match dialed {
                    Some(dialed) => attempt.finish(dialed),
                    None => attempt.abandon(),
                }
            };
            let task = task.instrument(span);
            self.shared.attempts.spawn_on(task, &self.shared.runtime);
        }
    }
}

/// A slot among the attempts in progress. Dropping it frees the slot, also after a panic or the end of the runtime.
struct DialAttempt {
    pool: Arc<Pool>,
    /// `true` if this attempt wakes the tenant.
    waking: bool,
    /// `true` once this attempt has begun to log in.
    logging_in: bool,
    /// `true` once its outcome is handed on, so that its drop has nothing left to do.
    landed: bool,
}

impl DialAttempt {
    /// Returns the outcome, or `None` if the attempt was not needed any more, or had to give up its permit.
    async fn run(
        &mut self,
        asleep: bool,
        reason: Reason,
        early_ends: u32,
    ) -> Option<Result<Dialed, Error>> {
        let shared = Arc::clone(&self.pool.shared);
        let progress = Progress::new(Stage::Checkout, shared.config.wake_timeout);
        if asleep && let Err(err) = self.wait_until_useful(&progress, early_ends).await {
            self.waking = true; // so that the pool remembers the error as a refusal
            return Some(Err(err));
        }
        let Ok(Some(permit)) = self.connector(&progress).permit().await else {
            return None; // no permit in time, or no caller waits any more
        };
        {
            // Checked only now, because the wait may have been long. If the compute has fallen asleep in that time, it
            // gets one attempt.
            let mut state = self.pool.state();
            self.waking = state.believes_asleep();
            if self.waking {
                let refusal = shared.refusals.get(&self.pool.tenant, Route::Pooled);
                let was_refused_since = !asleep && refusal.is_some();
                if state.logging_in > 0 || was_refused_since {
                    self.waking = false;
                    return None;
                }
            }
            state.logging_in += 1;
            self.logging_in = true;
        }
        if self.waking {
            let progress = Progress::new(Stage::Wake, shared.config.wake_timeout);
            return Some(self.connector(&progress).wake(permit, reason).await);
        }
        let (opening, endpoint) = (self.connector(&progress), self.pool.endpoint());
        tokio::select! {
            biased;
            dialed = opening.dial_and_record(&endpoint, permit) => Some(dialed),
            () = opening.preempted() => None,
        }
    }

    /// Waits until another attempt may succeed.
    async fn wait_until_useful(&self, progress: &Progress, early_ends: u32) -> Result<(), Error> {
        if early_ends > 0 {
            // The last connections ended as soon as they were open: without a wait, the attempts would only loop.
            sleep((FIRST_WAIT * 2_u32.saturating_pow(early_ends.min(6))).min(LONGEST_WAIT)).await;
        }
        self.connector(progress).wait_out_refusal().await
    }

    fn connector<'a>(&'a self, progress: &'a Progress) -> Connector<'a> {
        Connector {
            pool: &self.pool,
            route: Route::Pooled,
            progress,
        }
    }

    /// Frees the slot, and starts attempts that may be due instead.
    fn abandon(mut self) {
        self.landed = true;
        let mut state = self.pool.state();
        state.dialing -= 1;
        state.logging_in -= usize::from(self.logging_in);
        drop(state);
        self.pool.start_due_dials();
    }

    /// Frees the slot, and hands the connection or the error to the waiting callers.
    fn finish(mut self, dialed: Result<Dialed, Error>) {
        self.landed = true;
        let (pool, waking) = (&self.pool, self.waking);
        let mut state = pool.state();
        state.dialing -= 1;
        state.logging_in -= usize::from(self.logging_in);
        match dialed {
            Ok(dialed) => {
                state.open.push(Arc::clone(&dialed.status));
                state.last_failure = None;
                state.repeated_since = None;
                if Arc::ptr_eq(&dialed.endpoint, &state.endpoint) {
                    state.lost = None;
                }
                drop(state);
                pool.shared.refusals.clear_at(&pool.tenant, Route::Pooled);
                start_and_hand_out(pool, dialed);
            }
            Err(err) if err.kind() == ErrorKind::Closed => {
                drop(state);
                pool.fail_all(&err);
            }
            // The next attempt is a wake, which handles the cause.
            Err(err) if !waking || matches!(err.kind(), ErrorKind::Timeout(_)) => {
                state.note_asleep();
                drop(state);
            }
            Err(err) => {
                let serves = !state.open.is_empty();
                drop(state);
                tell_refusal(pool, &err);
                if serves {
                    pool.fail_one(&err); // the open connections may still serve the others
                }
                pool.refuse(Route::Pooled, &Refusal::new(err));
            }
        }
        pool.start_due_dials();
    }
}

impl Drop for DialAttempt {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let mut state = self.pool.state();
        state.dialing -= 1;
        state.logging_in -= usize::from(self.logging_in);
        drop(state);
        if std::thread::panicking() {
            self.pool.fail_all(&Error::panicked());
        } else {
            // Only the end of the runtime drops this task.
            self.pool.shared.life.terminate();
            self.pool.fail_all(&Error::closed());
        }
    }
}

/// Logs a refusal, as a warning if it lasts until the cause is removed.
fn tell_refusal(pool: &Pool, err: &Error) {
    let (tenant, code) = (pool.tenant.as_str(), err.kind().code());
    if err.kind().is_transient() {
        tracing::debug!(tenant, code, %err, "refused");
    } else {
        tracing::warn!(tenant, code, %err, "refused");
    }
}
