//! Opening one connection, with retries until the compute is up, the login is refused, or the deadline passes.

pub(super) mod attempt;
pub(crate) mod deadpool;
pub(super) mod retries;
mod spare;
pub(crate) mod task;

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::Either};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::retries::{FIRST_WAIT, LONGEST_WAIT, Retries};
use super::{
    Pool, Wake,
    refusals::{Refusal, is_gone},
};
use crate::{
    connection::{
        dial::{Dialed, Start},
        verdict,
    },
    limits::budget::Permit,
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, ErrorKind, Stage},
    },
    sync::{lock, progress::Progress, retry::chance},
    telemetry::{labels::Reason, stats::count},
};

/// Time of a login after which it gives its permit up to a tenant without a connection. A wake takes less than this.
const PREEMPT_AFTER: Duration = Duration::from_secs(10);
/// Silence of a login after which a second login starts beside it. Up to half as much is added at random, so that
/// logins sent together are not repeated together. Observed: a login that Neon's proxy never answered blocked its
/// tenant for 60 s, while a second login took 85 ms.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// Interval between checks whether another tenant needs the permit of a silent login.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for a new lookup of a tenant's endpoint.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// A login in progress.
type Login<'a> = Pin<Box<dyn Future<Output = Result<Dialed, Error>> + Send + 'a>>;

/// The next try after a failed one.
enum NextTry {
    /// It begins at once: the tenant has moved, or something else has changed.
    Now,
    /// It begins after this wait. The error is that of the failed try.
    After(Duration, Error),
}

/// Opens one connection of a tenant at its pooled or its direct host.
pub(super) struct Connector<'a> {
    pub(super) pool: &'a Arc<Pool>,
    pub(super) route: Route,
    /// `true` if the connection counts as the tenant's own in the budget, so that it comes first if it is the only one.
    pub(super) is_owned: bool,
    pub(super) progress: &'a Progress,
    /// The instant from which on the silence of the login in progress shows that the compute is starting.
    pub(super) silent_from: Mutex<Option<Instant>>,
}

impl Connector<'_> {
    /// Tries until the compute is up, the login is refused, or the deadline passes. The first try uses `permit`.
    /// Between tries no permit is held, so that other tenants can use it.
    pub(super) async fn try_until_up(&self, permit: Permit) -> Result<Dialed, Error> {
        let mut retries = Retries::new(!self.pool.state().is_authoritative);
        let (mut permit, mut silent) = (Some(permit), None);
        loop {
            let (endpoint, changes) = (self.pool.endpoint(), self.pool.change_count());
            // The last two arms end all logins in progress, which frees their permits, and begin again.
            let dialed = tokio::select! {
                biased;
                dialed = self.try_with_backup(&endpoint, permit.take(), &mut silent) => dialed,
                () = self.until_moved(&endpoint) => { silent = None; continue },
                () = self.preempted() => { silent = None; continue },
            };
            let err = match dialed {
                Ok(Some(dialed)) => return Ok(dialed),
                Ok(None) => continue, // this login is silent; the next round starts a second one beside it
                Err(err) => err,
            };
            let next_try = self
                .decide_next(&mut retries, &endpoint, changes, err)
                .await?;
            match next_try {
                NextTry::Now => silent = None, // the silent login went to the tenant's earlier endpoint
                NextTry::After(wait, err) => {
                    if let Some(dialed) = self.backoff_wait(wait, err, &mut silent).await? {
                        return Ok(dialed);
                    }
                }
            }
        }
    }

    /// Runs [`try_until_up`](Self::try_until_up) as the tenant's wake, and counts it as one.
    pub(super) async fn wake(&self, permit: Permit, reason: Reason) -> Result<Dialed, Error> {
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

    /// Decides when to try again after the failure `err`. Returns an error if there must be no other try.
    async fn decide_next(
        &self,
        retries: &mut Retries,
        endpoint: &Arc<Endpoint>,
        changes: u64,
        err: Error,
    ) -> Result<NextTry, Error> {
        let is_changed = self.pool.change_count() != changes;
        if is_changed && !self.progress.remaining().is_zero() && retries.try_after_change() {
            return Ok(NextTry::After(FIRST_WAIT, err)); // the failure may be older than the change
        }
        let next = verdict::next(err.kind());
        if retries.take_relocation(next) && self.look_up_again(endpoint, changes).await? {
            return Ok(NextTry::Now);
        }
        match retries.wait(next, &err) {
            Some(wait) => Ok(NextTry::After(wait, err)),
            None => Err(err),
        }
    }

    /// Logs in with `permit`, or with a new permit if that is `None`. A `silent` login goes on beside this one, and the
    /// first success counts. Without a `silent` login: if this login gets no answer for about `SILENT_AFTER`, stores it
    /// as the `silent` one and returns `None`.
    async fn try_with_backup<'b>(
        &'b self,
        endpoint: &Arc<Endpoint>,
        permit: Option<Permit>,
        silent: &mut Option<Login<'b>>,
    ) -> Result<Option<Dialed>, Error> {
        let permit = match permit {
            Some(permit) => Some(permit),
            None => match self.race_silent_login(silent, self.permit()).await {
                Either::Left(dialed) => return Ok(Some(dialed)),
                Either::Right(permit) => permit?,
            },
        };
        let permit = permit.ok_or_else(|| self.progress.timed_out())?;
        let endpoint = Arc::clone(endpoint);
        let mut login: Login<'b> =
            Box::pin(async move { self.dial_and_record(&endpoint, Start::Permit(permit)).await });
        let is_second = silent.is_some();
        let silence = SILENT_AFTER + SILENT_AFTER / 2 * u32::from(chance()) / u32::from(u8::MAX);
        let answered = timeout(silence, self.race_silent_login(silent, &mut login)).await;
        let answered = match answered {
            Ok(answered) => answered,
            Err(_) if is_second => {
                self.note_silence(2, self.progress.remaining());
                self.race_silent_login(silent, &mut login).await
            }
            Err(_) => {
                self.note_silence(1, SILENT_AFTER);
                *silent = Some(login);
                return Ok(None);
            }
        };
        match answered {
            Either::Left(dialed) => Ok(Some(dialed)),
            Either::Right(dialed) => dialed.map(Some),
        }
    }

    /// Awaits `work`, and the silent login beside it. Returns the login's connection if that comes first.
    async fn race_silent_login<T>(
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

    /// Records, for callers that run out of time, that `count` logins have had no answer, and when that may change.
    fn note_silence(&self, count: usize, wait: Duration) {
        let message = if count == 1 {
            "a login has had no answer for a long time; a second one is sent in parallel"
        } else {
            "two parallel logins have had no answer for a long time"
        };
        let err = Error::new(ErrorKind::Connect, message).with_retry_after(wait);
        self.progress.note(&err);
        self.pool.record_failure(self.route, err);
    }

    /// Returns a permit for one more connection, or `None` if no caller of this tenant waits for one any more.
    pub(super) async fn permit(&self) -> Result<Option<Permit>, Error> {
        let dialer = &self.pool.shared.dialer;
        let owner = self.is_owned.then(|| self.pool.as_owner());
        let mut permit = pin!(dialer.permit(owner.as_ref(), self.progress));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return permit.map(Some);
        }
        // For callers whose deadline passes before the permit comes.
        self.pool
            .record_failure(self.route, dialer.all_in_use_error());
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => return permit.map(Some),
                // The budget also notifies `changed`, by `Owner::reconsider`, if no caller waits any more.
                () = self.pool.changed.notified() => {}
            }
            if self.route == Route::Pooled && !self.pool.state().is_wanted() {
                return Ok(None);
            }
        }
    }

    /// Waits until `endpoint` is no longer the tenant's, which makes a login there useless.
    async fn until_moved(&self, endpoint: &Arc<Endpoint>) {
        loop {
            let changed = self.pool.changed.notified();
            if !Arc::ptr_eq(&self.pool.endpoint(), endpoint) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a login has been silent for long and a tenant without a connection waits for a permit. A hung login
    /// must not hold a permit that other tenants need.
    pub(super) async fn preempted(&self) {
        sleep(PREEMPT_AFTER).await;
        while !self.pool.shared.dialer.budget.some_have_none() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Looks the tenant up again, and sets the pool's endpoint. Returns whether it differs from `known`. Also returns
    /// `true` if something has changed since `changes` was counted: the change is newer than the answer, and a login
    /// may work now. Returns an error if the tenant has no usable database any more.
    async fn look_up_again(&self, known: &Arc<Endpoint>, changes: u64) -> Result<bool, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        let limit = ASK_TIMEOUT.min(self.progress.remaining());
        let progress = Progress::new(Stage::Lookup, limit);
        let lookup = shared
            .source
            .relocate(tenant, known, &progress, &shared.stats);
        let answer = timeout(limit, lookup).await;
        if self.pool.change_count() != changes {
            return Ok(true);
        }
        match answer.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(now) => Ok(now.is_some_and(|it| self.pool.replace_endpoint(Some(known), it, true))),
            Err(err) if is_gone(err.kind()) => {
                if let Some(catalog) = shared.source.catalog() {
                    catalog.refresh.push(tenant); // the pool follows the entry
                }
                Err(err)
            }
            Err(err) => {
                tracing::debug!(tenant = tenant.as_str(), %err, "cannot look the tenant up again");
                Ok(false)
            }
        }
    }

    /// Waits before the next try, and beside that for the answer of a `silent` login. Returns an error if the try would
    /// come too late, or if no caller waits for it any more.
    async fn backoff_wait(
        &self,
        wait: Duration,
        err: Error,
        silent: &mut Option<Login<'_>>,
    ) -> Result<Option<Dialed>, Error> {
        if wait > LONGEST_WAIT {
            // The server asks for a longer wait than any backoff. Such a failure is a refusal: it answers the callers
            // that cannot wait for its end.
            let refusal = self
                .pool
                .refuse(self.route, &Refusal::new(err, self.pool.endpoint()));
            if refusal.until() >= self.progress.deadline() {
                return Err(refusal.error());
            }
            return match self
                .race_silent_login(silent, self.wait_out_refusal())
                .await
            {
                Either::Left(dialed) => Ok(Some(dialed)),
                Either::Right(waited) => waited.map(|()| None),
            };
        }
        self.progress.note(&err);
        let in_time = Instant::now() + wait < self.progress.deadline();
        if in_time || self.route == Route::Pooled {
            // A pooled wake waits even past its deadline. The next wake begins as soon as this one ends, and its first
            // login would follow the failed one without a pause.
            if let Either::Left(dialed) = self.race_silent_login(silent, sleep(wait)).await {
                return Ok(Some(dialed));
            }
        }
        if in_time {
            Ok(None)
        } else {
            Err(self.progress.timed_out())
        }
    }

    /// Waits until no refusal is active any more, because it has expired or something has changed. Returns the refusal
    /// as an error if no caller waits for that.
    pub(super) async fn wait_out_refusal(&self) -> Result<(), Error> {
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

    /// Tries to log in once.
    pub(super) async fn dial_and_record(
        &self,
        endpoint: &Arc<Endpoint>,
        start: Start,
    ) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        count(&shared.stats.dials);
        if let Some(catalog) = shared.source.catalog() {
            catalog.refresh_if_stale(tenant); // while the pool is cached, no lookup does this
        }
        self.pool.state().is_authoritative = false; // so that the next wake may look the tenant up again
        let (tenant, began) = (tenant.as_str(), Instant::now());
        let deadline = self.progress.deadline();
        let on_opened = |took| self.note_login_sent(took);
        let dialed = shared
            .dialer
            .dial(endpoint, self.route, deadline, start, on_opened)
            .await;
        *lock(&self.silent_from) = None;
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
