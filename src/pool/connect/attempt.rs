//! Attempts to open connections, the first of which wakes the database.
//!
//! An attempt belongs to the tenant, not to a caller. It runs in its own task on the router's runtime, with its own
//! deadline, and goes on when every caller has left. While the compute may be asleep, there is one attempt at a time.
//! It retries until it succeeds, is refused, or its deadline passes. While the compute is awake, a few attempts run
//! side by side, and a failed one only means that the compute may be asleep.

use std::sync::{Arc, Mutex};

use tokio::time::sleep;
use tracing::Instrument;

use super::{
    Connector,
    retries::{FIRST_WAIT, LONGEST_WAIT},
    task::start_and_hand_out,
};
use crate::{
    connection::dial::{Dialed, Start, opened::Opened},
    limits::budget::Permit,
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
    pub(in crate::pool) fn start_due_attempts(self: &Arc<Self>) {
        let mut state = self.state();
        let (due, reason) = state.attempts_due(&self.shared.config);
        let asleep = state.believes_asleep();
        let early_ends = state.rare.early_ends;
        state.dialing += due;
        let most = if asleep { 0 } else { due }; // until the tenant is up, the wake's login is the only one
        let mut spares = state.take_open_spares(most).into_iter();
        let useless = state.take_useless_spares(due);
        drop(state); // a runtime that has ended drops the task at once, and its guard takes the lock
        drop(useless);
        for _ in 0..due {
            let spare = spares.next();
            let mut attempt = Attempt {
                pool: Arc::clone(self),
                waking: false,
                logging_in: false,
                is_finished: false,
            };
            let (life, pool) = (Arc::clone(&self.shared.life), Arc::clone(self));
            let tenant = self.tenant.as_str();
            let span = spans::detached(tracing::debug_span!(parent: None, "open", tenant));
            let task = async move {
                let dialed = tokio::select! {
                    biased;
                    () = life.terminated() => Some(Err(Error::closed())),
                    () = pool.until_forbidden() => None,
                    dialed = attempt.run(asleep, reason, early_ends, spare) => dialed,
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

/// One attempt. It counts as in progress until it is dropped, also after a panic or the end of the runtime.
struct Attempt {
    pool: Arc<Pool>,
    /// `true` if this attempt wakes the tenant.
    waking: bool,
    /// `true` once this attempt has begun to log in.
    logging_in: bool,
    /// `true` once `finish` or `abandon` has run, so that its drop has nothing left to do.
    is_finished: bool,
}

impl Attempt {
    /// Returns the outcome, or `None` if the attempt was not needed any more, or had to give up its permit. `asleep`:
    /// the database was believed asleep when the attempt was started. `spare`: a connection to log in on.
    async fn run(
        &mut self,
        asleep: bool,
        reason: Reason,
        early_ends: u32,
        spare: Option<Opened>,
    ) -> Option<Result<Dialed, Error>> {
        let shared = Arc::clone(&self.pool.shared);
        let progress = Progress::new(Stage::Checkout, shared.config.wake_timeout);
        if asleep && let Err(err) = self.wait_until_useful(&progress, early_ends).await {
            self.waking = true; // so that `finish` takes the error for a refusal
            return Some(Err(err));
        }
        let usable = spare.and_then(|mut it| it.is_usable().then_some(it));
        let start = match usable {
            Some(opened) => Start::Opened(opened),
            None => match self.connector(&progress).permit().await {
                Ok(Some(permit)) => Start::Permit(permit),
                Ok(None) | Err(_) => return None, // no caller waits any more, or no permit in time
            },
        };
        {
            // The wait for the permit may have been long. If the compute may have fallen asleep in that time, this
            // attempt becomes its wake, unless another login is in progress or a refusal has come.
            let mut state = self.pool.state();
            self.waking = state.believes_asleep();
            if self.waking {
                let refusal = shared.refusals.get(&self.pool.tenant, Route::Pooled);
                let was_refused_since = !asleep && refusal.is_some();
                let is_spare = matches!(start, Start::Opened(_));
                if state.logging_in > 0 || was_refused_since || is_spare {
                    self.waking = false;
                    return None;
                }
            }
            state.logging_in += 1;
            self.logging_in = true;
        }
        let endpoint = match start {
            Start::Permit(permit) if self.waking => return Some(self.wake(permit, reason).await),
            Start::Permit(_) => self.pool.endpoint(),
            Start::Opened(ref opened) => Arc::clone(opened.endpoint()),
        };
        let connector = self.connector(&progress);
        tokio::select! {
            biased;
            dialed = connector.dial_and_record(&endpoint, start) => Some(dialed),
            () = connector.preempted() => None,
        }
    }

    /// Wakes the tenant, and opens spares for the callers in the queue.
    async fn wake(&self, permit: Permit, reason: Reason) -> Result<Dialed, Error> {
        let progress = Progress::new(Stage::Wake, self.pool.shared.config.wake_timeout);
        let connector = self.connector(&progress);
        tokio::select! {
            biased;
            dialed = connector.wake(permit, reason) => dialed,
            never = connector.keep_spares() => match never {},
        }
    }

    /// Waits until another attempt may succeed. Returns the active refusal as an error if no caller waits for its end.
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
            is_owned: true,
            progress,
            silent_from: Mutex::default(),
        }
    }

    /// Frees the slot, and starts attempts that may be due instead.
    fn abandon(mut self) {
        self.is_finished = true;
        let mut state = self.pool.state();
        state.dialing -= 1;
        state.logging_in -= u32::from(self.logging_in);
        drop(state);
        self.pool.start_due_attempts();
    }

    /// Frees the slot, and hands the connection or the error to the waiting callers.
    fn finish(mut self, dialed: Result<Dialed, Error>) {
        self.is_finished = true;
        let (pool, waking) = (&self.pool, self.waking);
        let mut state = pool.state();
        state.dialing -= 1;
        state.logging_in -= u32::from(self.logging_in);
        match dialed {
            Ok(dialed) => {
                state.add_open(&dialed.status);
                state.rare.reset(|rare| {
                    (rare.last_failure, rare.repeated_since) = (None, None);
                });
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
            // The callers go on waiting: the next attempt is a wake, which handles the cause or continues this wake.
            Err(err) if !waking || matches!(err.kind(), ErrorKind::Timeout(_)) => {
                state.note_asleep();
                drop(state);
            }
            Err(err) => {
                let has_open = !state.open.is_empty();
                drop(state);
                log_refusal(pool, &err);
                if has_open {
                    pool.fail_one(&err); // the open connections may still serve the others
                }
                pool.refuse(Route::Pooled, &Refusal::new(err, pool.endpoint()));
            }
        }
        pool.start_due_attempts();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let mut state = self.pool.state();
        state.dialing -= 1;
        state.logging_in -= u32::from(self.logging_in);
        let spares = state.spares.take();
        drop(state);
        drop(spares);
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
fn log_refusal(pool: &Pool, err: &Error) {
    let (tenant, code) = (pool.tenant.as_str(), err.kind().code());
    if err.kind().is_transient() {
        tracing::debug!(tenant, code, %err, "refused");
    } else {
        tracing::warn!(tenant, code, %err, "refused");
    }
}
