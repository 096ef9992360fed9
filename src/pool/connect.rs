//! Opening one connection: tried until the compute is up, says no, or the time is over.

pub(crate) mod attempt;
pub(crate) mod deadpool;
pub(crate) mod retries;
pub(crate) mod task;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::Either};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::retries::{FIRST_WAIT, LONGEST_WAIT, RetryPlan};
use super::{Pool, Wake, refusals::Refusal};
use crate::{
    connection::{dial::Dialed, verdict},
    limits::budget::Permit,
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, ErrorKind, Stage},
    },
    sync::{progress::Progress, retry::chance},
    telemetry::{labels::Reason, stats::count},
};

/// How long a login may go unanswered while others wait for the connection it takes. A wake takes less than this.
const OUTSTAYED: Duration = Duration::from_secs(10);
/// Silence of a login after which a second one goes out beside it; by chance up to half as long again, so that logins
/// that were sent together are not repeated together. A login that Neon's proxy never answered was seen to block its tenant
/// for 60 s, while a second one took 85 ms.
const SILENCE: Duration = Duration::from_secs(10);
/// How often somebody who waits looks whether that is still of use.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time for asking where a tenant lives now.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens one connection of a tenant at one of its hosts.
pub(crate) struct Connector<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) route: Route,
    pub(crate) progress: &'a Progress,
}

impl Connector<'_> {
    /// Tries until the compute is up, says no, or the time is over; the first time with `permit`. In between it holds
    /// none, so that those who can be served are.
    pub(crate) async fn try_until_up(&self, permit: Permit) -> Result<Dialed, Error> {
        let mut plan = RetryPlan::new(!self.pool.state().fresh);
        let (mut permit, mut silent) = (Some(permit), None);
        loop {
            let (endpoint, changes) = (self.pool.endpoint(), self.pool.change_count());
            let dialed = tokio::select! {
                biased;
                dialed = self.log_in(&endpoint, permit.take(), &mut silent) => dialed,
                () = self.moved_from(&endpoint) => { silent = None; continue },
                () = self.preempted() => { silent = None; continue },
            };
            let err = match dialed {
                Ok(Some(dialed)) => return Ok(dialed),
                Ok(None) => continue, // it is silent, and gets company
                Err(err) => err,
            };
            let step = self.after(&mut plan, &endpoint, changes, err).await?;
            let Some((wait, err)) = step else {
                silent = None; // it is where the tenant lived before
                continue;
            };
            if let Some(dialed) = self.backoff_wait(wait, err, &mut silent).await? {
                return Ok(dialed);
            }
        }
    }

    /// Does the same as the tenant's wake, and counts it as one.
    pub(crate) async fn wake(&self, permit: Permit, reason: Reason) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        let (id, reason_name) = (tenant.as_str(), reason.name());
        shared.stats.wake_started(reason);
        tracing::debug!(tenant = id, reason = reason_name, "wake");
        let began = Instant::now();
        let dialed = self.try_until_up(permit).await;
        let elapsed = began.elapsed();
        self.pool.state().note_wake(Wake {
            began,
            took: elapsed,
            reason,
            failure: dialed.as_ref().err().map(Error::kind),
        });
        if dialed.is_ok() {
            shared.stats.wake_succeeded(reason, elapsed);
            tracing::debug!(tenant = id, reason = reason_name, ?elapsed, "awake");
        }
        dialed
    }

    /// Decides what to do after `err`: wait for so long before the next try, or go on at once. An error if there is to be
    /// none.
    async fn after(
        &self,
        plan: &mut RetryPlan,
        endpoint: &Arc<Endpoint>,
        changes: u64,
        err: Error,
    ) -> Result<Option<(Duration, Error)>, Error> {
        let is_changed = self.pool.change_count() != changes;
        if is_changed && !self.progress.remaining().is_zero() && plan.takes_change() {
            return Ok(Some((FIRST_WAIT, err))); // it may be about what has been mended
        }
        let next = verdict::next(err.kind());
        if plan.should_relocate(next) && self.has_moved(endpoint, changes).await? {
            return Ok(None);
        }
        match plan.wait(next, &err) {
            Some(wait) => Ok(Some((wait, err))),
            None => Err(err),
        }
    }

    /// Logs in once more, beside the login that is `silent`, if there is one: whichever is answered first counts. Returns
    /// `None` if this one is silent for long as well and was the first; then it is `silent`, and goes on.
    async fn log_in<'b>(
        &'b self,
        endpoint: &Arc<Endpoint>,
        permit: Option<Permit>,
        silent: &mut Option<Login<'b>>,
    ) -> Result<Option<Dialed>, Error> {
        let permit = match permit {
            Some(permit) => Some(permit),
            None => match self.beside(silent, self.permit()).await {
                Either::Left(dialed) => return Ok(Some(dialed)),
                Either::Right(permit) => permit?,
            },
        };
        let permit = permit.ok_or_else(|| self.progress.timed_out())?;
        let endpoint = Arc::clone(endpoint);
        let mut login: Login<'b> = Box::pin(async move { self.dial(&endpoint, permit).await });
        let is_second = silent.is_some();
        let silence = SILENCE + SILENCE / 2 * u32::from(chance()) / u32::from(u8::MAX);
        let answered = timeout(silence, self.beside(silent, &mut login)).await;
        let answered = match answered {
            Ok(answered) => answered,
            Err(_) if is_second => {
                self.note_silence(2, self.progress.remaining());
                self.beside(silent, &mut login).await
            }
            Err(_) => {
                self.note_silence(1, SILENCE);
                *silent = Some(login);
                return Ok(None);
            }
        };
        match answered {
            Either::Left(dialed) => Ok(Some(dialed)),
            Either::Right(dialed) => dialed.map(Some),
        }
    }

    /// Awaits `work` beside a silent login. Returns what the login brings, if it is answered before.
    async fn beside<T>(
        &self,
        silent: &mut Option<Login<'_>>,
        work: impl Future<Output = T>,
    ) -> Either<Dialed, T> {
        let mut work = pin!(work);
        loop {
            let Some(login) = silent else {
                return Either::Right(work.await);
            };
            tokio::select! {
                biased;
                answer = login => {
                    *silent = None;
                    if let Ok(dialed) = answer {
                        return Either::Left(dialed);
                    }
                }
                done = &mut work => return Either::Right(done),
            }
        }
    }

    /// Notes for callers whose time runs out that `count` logins have had no answer, and when that may change.
    fn note_silence(&self, count: usize, wait: Duration) {
        let message = if count == 1 {
            "a login has had no answer for long; a second one goes out beside it"
        } else {
            "two logins side by side have had no answer for long"
        };
        let err = Error::new(ErrorKind::Connect, message).with_retry_after(wait);
        self.progress.note(&err);
        self.pool.record_failure(self.route, err);
    }

    /// The right to one more connection; none if nobody waits for one of this tenant any more.
    pub(crate) async fn permit(&self) -> Result<Option<Permit>, Error> {
        let dialer = &self.pool.shared.dialer;
        let holder = (self.route == Route::Pooled).then(|| self.pool.as_holder());
        let mut taken = pin!(dialer.permit(holder.as_ref(), self.progress));
        if let Some(taken) = taken.as_mut().now_or_never() {
            return taken.map(Some);
        }
        // For callers whose time is over before the turn comes.
        self.pool.record_failure(self.route, dialer.all_in_use());
        loop {
            tokio::select! {
                biased;
                taken = &mut taken => return taken.map(Some),
                () = self.pool.changed.notified() => {} // also by the budget, where nobody waits any more
            }
            if holder.is_some() && !self.pool.state().is_wanted() {
                return Ok(None);
            }
        }
    }

    /// Waits until the tenant does not live at `endpoint` any more: what is dialed there is in vain.
    async fn moved_from(&self, endpoint: &Arc<Endpoint>) {
        loop {
            let changed = self.pool.changed.notified();
            if !Arc::ptr_eq(&self.pool.endpoint(), endpoint) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a login has gone unanswered for long while others have no connection and wait for one. Whoever does
    /// not get an answer must not keep all others from asking.
    pub(crate) async fn preempted(&self) {
        sleep(OUTSTAYED).await;
        while !self.pool.shared.dialer.budget.some_have_none() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether the catalog has the tenant elsewhere, or with another credential, than at `known`. An error if it does
    /// not have it at all any more. If something was changed since `changes` were counted, that is newer than the answer,
    /// and it may work now.
    async fn has_moved(&self, known: &Arc<Endpoint>, changes: u64) -> Result<bool, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        let limit = ASK_TIMEOUT.min(self.progress.remaining());
        let progress = Progress::new(Stage::Lookup, limit);
        let asked = shared
            .source
            .relocate(tenant, known, &progress, &shared.stats);
        let asked = timeout(limit, asked).await;
        if self.pool.change_count() != changes {
            return Ok(true);
        }
        match asked.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(now) => Ok(now.is_some_and(|it| self.pool.move_from(Some(known), it, true))),
            Err(err) if is_gone(err.kind()) => {
                if let Some(catalog) = shared.source.catalog() {
                    catalog.refresh.push(tenant); // the pool follows the entry
                }
                Err(err)
            }
            Err(err) => {
                tracing::debug!(tenant = tenant.as_str(), %err, "cannot ask where the tenant lives now");
                Ok(false)
            }
        }
    }

    /// Waits before the next attempt, and for a login that is `silent`, which may be answered. An error if the attempt would
    /// come too late, or if nobody is left who waits for it.
    async fn backoff_wait(
        &self,
        wait: Duration,
        err: Error,
        silent: &mut Option<Login<'_>>,
    ) -> Result<Option<Dialed>, Error> {
        if wait > LONGEST_WAIT {
            let refusal = self.pool.refuse(self.route, &Refusal::new(err));
            if refusal.until() >= self.progress.deadline() {
                return Err(refusal.error());
            }
            return match self.beside(silent, self.wait_out_refusal()).await {
                Either::Left(dialed) => Ok(Some(dialed)),
                Either::Right(waited) => waited.map(|()| None),
            };
        }
        self.progress.note(&err);
        let in_time = Instant::now() + wait < self.progress.deadline();
        if in_time || self.route == Route::Pooled {
            // The next wake, if one is wanted, begins at once.
            if let Either::Left(dialed) = self.beside(silent, sleep(wait)).await {
                return Ok(Some(dialed));
            }
        }
        if in_time {
            Ok(None)
        } else {
            Err(self.progress.timed_out())
        }
    }

    /// Waits until no refusal holds any more, because its time is over or somebody has changed what it was about. An
    /// error if nobody is left who waits for it.
    pub(crate) async fn wait_out_refusal(&self) -> Result<(), Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        loop {
            let changed = self.pool.changed.notified();
            let Some(refusal) = shared.refusals.get(tenant, self.route) else {
                return Ok(());
            };
            let wanted = match self.route {
                Route::Pooled => self.pool.reject_waiters(&refusal),
                Route::Direct => !refusal.answers(self.progress.deadline()),
            };
            if !wanted {
                return Err(refusal.error());
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(refusal.until()) => {}
            }
        }
    }

    /// Tries once.
    pub(crate) async fn dial(
        &self,
        endpoint: &Arc<Endpoint>,
        permit: Permit,
    ) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        count(&shared.stats.dials);
        if let Some(catalog) = shared.source.catalog() {
            catalog.refresh_if_stale(tenant);
        }
        self.pool.state().fresh = false;
        let (tenant, began) = (tenant.as_str(), Instant::now());
        let deadline = self.progress.deadline();
        let dialed = shared
            .dialer
            .dial(endpoint, self.route, deadline, permit)
            .await;
        let elapsed = began.elapsed();
        match dialed {
            Ok(dialed) => {
                shared.stats.meters.connected(elapsed);
                tracing::debug!(tenant, ?elapsed, "connect");
                Ok(dialed)
            }
            Err(err) => {
                let err = err.with_stage(self.progress.stage());
                let err = self.pool.record_failure(self.route, err);
                tracing::debug!(tenant, ?elapsed, code = err.kind().code(), %err, "connect");
                Err(err)
            }
        }
    }
}

/// Whether the catalog says that the tenant has no database that may be used.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Deleted | ErrorKind::Held | ErrorKind::UnknownTenant
    )
}

/// A login under way.
type Login<'a> = Pin<Box<dyn Future<Output = Result<Dialed, Error>> + Send + 'a>>;
