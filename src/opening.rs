//! Opening one connection: tried until the compute is up, says no, or the time is over.

use std::{iter, mem, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    budget::Permit,
    dial::Dialed,
    endpoint::{Endpoint, Route},
    error::{Error, ErrorKind, Stage},
    pool::Pool,
    refusals::Refusal,
    retry::{Progress, backoff},
    stats::count,
    verdict::{self, Next},
};

/// First wait between two attempts to wake a compute. Most faults of a cold start pass within it.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(100);
/// First wait after Neon's control plane has failed.
const FIRST_SLOW_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts, unless the server asks for more.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Wait before the second try with a credential that was refused: a rotation takes that long to get everywhere.
const SECOND_TRY_WAIT: Duration = Duration::from_secs(1);
/// How long a login may go unanswered while others wait for the connection it takes. A wake takes less than this.
const OUTSTAYED: Duration = Duration::from_secs(10);
/// How often somebody who waits looks whether that is still of use.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time for asking where a tenant lives now.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens one connection of a tenant at one of its hosts.
pub(crate) struct Opening<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) route: Route,
    pub(crate) progress: &'a Progress,
}

impl Opening<'_> {
    /// Tries until the compute is up, says no, or the time is over; the first time with `permit`. In between it holds
    /// none, so that those who can be served are.
    pub(crate) async fn try_until_up(&self, permit: Permit) -> Result<Dialed, Error> {
        let mut tries = Tries::new(!self.pool.state().fresh);
        let mut permit = Some(permit);
        loop {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => self
                    .permit()
                    .await?
                    .ok_or_else(|| self.progress.timed_out())?,
            };
            let (endpoint, mends) = (self.pool.endpoint(), self.pool.mends());
            let dialed = tokio::select! {
                biased;
                dialed = self.dial(&endpoint, permit) => dialed,
                () = self.moved_from(&endpoint) => continue,
                () = self.outstay() => continue,
            };
            let err = match dialed {
                Ok(dialed) => return Ok(dialed),
                Err(err) => err,
            };
            if self.pool.mends() != mends && !self.progress.remaining().is_zero() {
                continue; // it was about what has been mended meanwhile
            }
            let next = verdict::next(err.kind());
            if tries.asks(next) && self.has_moved(&endpoint, mends).await? {
                continue;
            }
            match tries.wait(next, &err) {
                Some(wait) => self.rest(wait, err).await?,
                None => return Err(err),
            }
        }
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
        self.pool.note(self.route, dialer.all_in_use());
        loop {
            tokio::select! {
                biased;
                taken = &mut taken => return taken.map(Some),
                () = sleep(LOOK_AGAIN), if holder.is_some() => {}
            }
            if !self.pool.state().is_wanted() {
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
    pub(crate) async fn outstay(&self) {
        sleep(OUTSTAYED).await;
        while !self.pool.shared.dialer.budget.some_have_none() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Opens a connection past the pooler, unless it is known that this cannot work now.
    pub(crate) async fn open_direct(&self) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        self.outwait().await?;
        let mut permit = self.permit().await?;
        if self.pool.state().lost {
            // The turn was long in coming, and the compute may have fallen asleep meanwhile: its one wake comes first. Once,
            // because a connection that is still open serves for it, and then proves enough.
            drop(permit);
            let until = self.progress.deadline();
            drop(self.pool.get(until).await?);
            permit = self.permit().await?;
        }
        let permit = permit.ok_or_else(|| self.progress.timed_out())?;
        let dialed = self.try_until_up(permit).await;
        match &dialed {
            Ok(_) => shared.refusals.clear_at(tenant, Route::Direct),
            Err(err) if !matches!(err.kind(), ErrorKind::Timeout(_)) => {
                self.pool.refuse(Route::Direct, &Refusal::new(err.clone()));
            }
            Err(_) => {}
        }
        dialed
    }

    /// Whether the catalog has the tenant elsewhere, or with another credential, than at `known`. An error if it does
    /// not have it at all any more. If something was mended since there were so many `mends`, whoever did that knows
    /// better than the answer, and it may work now.
    async fn has_moved(&self, known: &Arc<Endpoint>, mends: u64) -> Result<bool, Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        let limit = ASK_TIMEOUT.min(self.progress.remaining());
        let progress = Progress::new(Stage::Lookup, limit);
        let asked = shared
            .source
            .relocate(tenant, known, &progress, &shared.stats);
        let asked = timeout(limit, asked).await;
        if self.pool.mends() != mends {
            return Ok(true);
        }
        match asked.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(now) => Ok(now.is_some_and(|it| self.pool.move_from(Some(known), it, true))),
            Err(err) if is_gone(err.kind()) => Err(err),
            Err(err) => {
                tracing::debug!(tenant = tenant.as_str(), %err, "cannot ask where the tenant lives now");
                Ok(false)
            }
        }
    }

    /// Waits before the next attempt. An error if that would come too late, or if nobody is left who waits for it.
    async fn rest(&self, wait: Duration, err: Error) -> Result<(), Error> {
        if wait > LONGEST_WAIT {
            let refusal = self.pool.refuse(self.route, &Refusal::new(err));
            if refusal.until() >= self.progress.deadline() {
                return Err(refusal.error());
            }
            return self.outwait().await;
        }
        self.progress.note(&err);
        let in_time = Instant::now() + wait < self.progress.deadline();
        if in_time || self.route == Route::Pooled {
            sleep(wait).await; // the next wake, if one is wanted, begins at once
        }
        if in_time {
            Ok(())
        } else {
            Err(self.progress.timed_out())
        }
    }

    /// Waits until no refusal holds any more, because its time is over or somebody has changed what it was about. An
    /// error if nobody is left who waits for it.
    pub(crate) async fn outwait(&self) -> Result<(), Error> {
        let Pool { tenant, shared, .. } = &**self.pool;
        loop {
            let changed = self.pool.changed.notified();
            let Some(refusal) = shared.refusals.get(tenant, self.route) else {
                return Ok(());
            };
            let wanted = match self.route {
                Route::Pooled => self.pool.turn_away(&refusal),
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
            catalog.mind(tenant);
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
                let err = self.pool.note(self.route, err);
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

/// What one wake has tried, and how long it waits for the next try.
struct Tries {
    waits: Waits,
    slow_waits: Waits,
    /// Whether the catalog may still be asked.
    may_ask: bool,
    /// Whether a refused credential has had its second try.
    tried_twice: bool,
}

type Waits = Box<dyn Iterator<Item = Duration> + Send>;

impl Tries {
    /// `may_ask`: whether the endpoint came from a cache, so that the catalog may know better.
    fn new(may_ask: bool) -> Self {
        let slow_waits = backoff(FIRST_SLOW_WAIT, LONGEST_WAIT);
        Self {
            waits: Box::new(backoff(FIRST_WAIT, LONGEST_WAIT)),
            slow_waits: Box::new(iter::once(FIRST_SLOW_WAIT).chain(slow_waits)),
            may_ask,
            tried_twice: false,
        }
    }

    /// Whether the catalog is to be asked now: once.
    fn asks(&mut self, next: Next) -> bool {
        let asks = matches!(next, Next::AskThenAgain | Next::AskThenOnce);
        asks && mem::take(&mut self.may_ask)
    }

    /// The wait before the next try after `err`; `None` if there is to be none.
    fn wait(&mut self, next: Next, err: &Error) -> Option<Duration> {
        match next {
            Next::Again | Next::AskThenAgain => {
                let wait = self.waits.next()?.min(LONGEST_WAIT);
                Some(wait.max(err.retry_after().unwrap_or_default()))
            }
            Next::AgainSlowly => Some(self.slow_waits.next()?.min(LONGEST_WAIT)),
            Next::AskThenOnce => {
                (!mem::replace(&mut self.tried_twice, true)).then_some(SECOND_TRY_WAIT)
            }
            Next::Refuse => None,
        }
    }
}
