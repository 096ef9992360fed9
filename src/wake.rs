//! Opening connections, and waking a database with the first of them.
//!
//! An attempt belongs to the tenant, not to a caller: it runs in a task of its own on the router's runtime, with its
//! own deadline, and goes on when every caller has left. While the compute may be asleep there is one attempt at a
//! time, and it is repeated until it succeeds, is refused, or its time is over; while it is awake there are a few side
//! by side, and one that fails only says that the compute may be asleep.

use std::{
    future::poll_fn,
    iter, mem,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use deadpool_postgres::{Client, Manager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    dial::{ConnectionTask, Dialed},
    endpoint::{Endpoint, Route},
    error::{Error, ErrorKind, Stage},
    lease::Connection,
    pool::Pool,
    refusals::Refusal,
    retry::{Progress, backoff, lock},
    stats::{Reason, count},
    verdict::{self, Next},
    watch::Watch,
};

/// First wait between two attempts to wake a compute. Most faults of a cold start pass within it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// First wait after Neon's control plane has failed.
const FIRST_SLOW_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts, unless the server asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Wait before the second try with a credential that was refused: a rotation takes that long to get everywhere.
const SECOND_TRY_WAIT: Duration = Duration::from_secs(1);
/// Longest time for asking where a tenant lives now.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the other side to end a connection that we close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

impl Pool {
    /// Starts the attempts that are due. To be called after whatever may have made one due.
    pub(crate) fn pump(self: &Arc<Self>) {
        let mut state = self.state();
        let (due, reason) = state.dials_due(&self.shared.config);
        let waking = state.believes_asleep();
        let early_ends = state.early_ends;
        state.dialing += due;
        drop(state); // a runtime that has ended drops the task here and now, and the guard takes the lock
        for _ in 0..due {
            let attempt = Attempt {
                pool: Arc::clone(self),
                landed: false,
            };
            let life = Arc::clone(&self.shared.life);
            let task = async move {
                let dialed = tokio::select! {
                    biased;
                    () = life.ended() => Err(Error::closed()),
                    dialed = attempt.make(waking, reason, early_ends) => dialed,
                };
                attempt.land(waking, dialed);
            };
            self.shared.attempts.spawn_on(task, &self.shared.runtime);
        }
    }
}

/// One place among the attempts under way. Its drop frees the place, also by panic or because the runtime ends.
struct Attempt {
    pool: Arc<Pool>,
    landed: bool,
}

impl Attempt {
    async fn make(&self, waking: bool, reason: Reason, early_ends: u32) -> Result<Dialed, Error> {
        if waking {
            return self.wake(reason, early_ends).await;
        }
        let limit = self.pool.shared.config.wake_timeout;
        let progress = Progress::new(Stage::Checkout, limit);
        self.dial(&self.pool.endpoint(), &progress).await
    }

    /// Tries until the compute is up, says no, or the time is over.
    async fn wake(&self, reason: Reason, early_ends: u32) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &*self.pool;
        let progress = Progress::new(Stage::Wake, shared.config.wake_timeout);
        if early_ends > 0 {
            // The last ones were closed as soon as they were open: trying at once would only go round.
            sleep((FIRST_WAIT * 2_u32.saturating_pow(early_ends.min(6))).min(LONGEST_WAIT)).await;
        }
        if let Some(refusal) = shared.refusals.get(tenant, Route::Pooled) {
            self.outwait(&refusal, &progress).await?;
        }
        shared.stats.wake_started(reason);
        tracing::debug!(tenant = tenant.as_str(), ?reason, "wake");
        let began = Instant::now();
        let dialed = self.try_until_up(&progress).await;
        if dialed.is_ok() {
            let elapsed = began.elapsed();
            shared.stats.wake_succeeded(reason, elapsed);
            tracing::debug!(tenant = tenant.as_str(), ?reason, ?elapsed, "awake");
        }
        dialed
    }

    async fn try_until_up(&self, progress: &Progress) -> Result<Dialed, Error> {
        let mut tries = Tries::new(!mem::take(&mut self.pool.state().fresh));
        loop {
            let endpoint = self.pool.endpoint();
            let err = match self.dial(&endpoint, progress).await {
                Ok(dialed) => return Ok(dialed),
                Err(err) => err,
            };
            let next = verdict::next(err.kind());
            if tries.asks(next) && self.has_moved(&endpoint).await? {
                continue;
            }
            match tries.wait(next, &err) {
                Some(wait) => self.rest(wait, err, progress).await?,
                None => return Err(err),
            }
        }
    }

    /// Whether the catalog has the tenant elsewhere, or with another credential, than at `known`. An error if it does
    /// not have it at all any more.
    async fn has_moved(&self, known: &Endpoint) -> Result<bool, Error> {
        let Pool { tenant, shared, .. } = &*self.pool;
        let progress = Progress::new(Stage::Lookup, ASK_TIMEOUT);
        let asked = shared
            .source
            .relocate(tenant, known, &progress, &shared.stats);
        let asked = timeout(ASK_TIMEOUT, asked).await;
        match asked.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(endpoint) => Ok(endpoint.is_some_and(|it| self.pool.move_to(it, true))),
            Err(err) if err.kind() == ErrorKind::UnknownTenant => Err(err),
            Err(err) => {
                tracing::debug!(tenant = tenant.as_str(), %err, "cannot ask where the tenant lives now");
                Ok(false)
            }
        }
    }

    /// Waits before the next attempt. An error if that would come too late, or if nobody is left who waits for it.
    async fn rest(&self, wait: Duration, err: Error, progress: &Progress) -> Result<(), Error> {
        if wait > LONGEST_WAIT {
            let refusal = Refusal::new(err);
            self.pool.refuse(&refusal);
            return self.outwait(&refusal, progress).await;
        }
        progress.note(&err);
        if Instant::now() + wait >= progress.deadline() {
            return Err(progress.timed_out());
        }
        sleep(wait).await;
        Ok(())
    }

    /// Waits until `refusal` does not hold any more, or somebody has changed what it was about.
    async fn outwait(&self, refusal: &Refusal, progress: &Progress) -> Result<(), Error> {
        let Pool { tenant, shared, .. } = &*self.pool;
        loop {
            let changed = self.pool.changed.notified();
            if shared.refusals.get(tenant, Route::Pooled).is_none() {
                return Ok(());
            }
            if !self.pool.turn_away(refusal) || refusal.until() >= progress.deadline() {
                return Err(refusal.error());
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(refusal.until()) => {}
            }
        }
    }

    /// Tries once.
    async fn dial(&self, endpoint: &Arc<Endpoint>, progress: &Progress) -> Result<Dialed, Error> {
        let Pool { tenant, shared, .. } = &*self.pool;
        count(&shared.stats.dials);
        let (tenant, began) = (tenant.as_str(), Instant::now());
        let dialer = &shared.dialer;
        let dialed = dialer
            .dial(endpoint, Route::Pooled, progress.deadline())
            .await;
        let elapsed = began.elapsed();
        match dialed {
            Ok(dialed) => {
                tracing::debug!(tenant, ?elapsed, "connect");
                Ok(dialed)
            }
            Err(err) => {
                let err = self.pool.note(err.with_stage(progress.stage()));
                tracing::debug!(tenant, ?elapsed, kind = ?err.kind(), %err, "connect");
                Err(err)
            }
        }
    }

    /// Frees the place, and hands on what the attempt brought.
    fn land(mut self, waking: bool, dialed: Result<Dialed, Error>) {
        self.landed = true;
        let pool = &self.pool;
        let mut state = pool.state();
        state.dialing -= 1;
        match dialed {
            Ok(dialed) => {
                state.open.push(Arc::clone(&dialed.watch));
                state.last_failure = None;
                state.repeated_since = None;
                if Arc::ptr_eq(&dialed.endpoint, &state.endpoint) {
                    state.lost = false;
                }
                drop(state);
                pool.shared.refusals.clear_at(&pool.tenant, Route::Pooled);
                open(pool, dialed);
            }
            Err(err) if err.kind() == ErrorKind::Closed => {
                drop(state);
                pool.fail_all(&err);
            }
            // A wake sees to what is behind it.
            Err(err) if !waking || matches!(err.kind(), ErrorKind::Timeout(_)) => {
                state.lost = true;
                drop(state);
            }
            Err(err) => {
                let serves = !state.open.is_empty();
                drop(state);
                tracing::debug!(tenant = pool.tenant.as_str(), kind = ?err.kind(), %err, "refused");
                if serves {
                    pool.fail_one(&err); // the others may still be served by the connections that are open
                } else {
                    pool.refuse(&Refusal::new(err));
                }
            }
        }
        pool.pump();
    }
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

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        self.pool.state().dialing -= 1;
        if std::thread::panicking() {
            let err = Error::new(
                ErrorKind::Internal,
                "an attempt to connect panicked; this is a bug, please report it",
            );
            self.pool.fail_all(&err);
        } else {
            // Only the end of the runtime drops a task of ours.
            self.pool.shared.life.finish();
            self.pool.fail_all(&Error::closed());
        }
    }
}

/// Starts the task of a new connection, and gives the connection to whoever waits.
fn open(pool: &Arc<Pool>, dialed: Dialed) {
    let Dialed {
        client,
        watch,
        endpoint,
        task,
    } = dialed;
    count(&pool.shared.stats.opened);
    let ending = Ending {
        pool: Arc::downgrade(pool),
        watch: Arc::clone(&watch),
    };
    pool.shared
        .connections
        .spawn_on(tend(task, ending), &pool.shared.runtime);
    // deadpool's client aborts this handle when it is dropped; the real task still has to say goodbye.
    let stand_in = pool.shared.runtime.spawn(std::future::ready(()));
    match mint(client, stand_in) {
        Some(client) => pool.park(Connection::new(client, watch, endpoint)),
        None => watch.mark_closing(),
    }
}

/// Moves a connection's bytes until it ends, and looks after each turn whether something runs on it that should not.
async fn tend(mut task: ConnectionTask, ending: Ending) {
    let turns = poll_fn(|cx| {
        let polled = task.as_mut().poll(cx);
        if polled.is_pending()
            && ending.watch.is_stray()
            && let Some(pool) = ending.pool.upgrade()
        {
            pool.pull(&ending.watch);
        }
        polled
    });
    tokio::select! {
        biased;
        result = turns => if let Err(err) = result {
            tracing::debug!(%err, "connection ended");
        },
        () = ending.watch.overdue(FAREWELL_TIMEOUT) => {}
    }
}

/// Tells the pool, when it is dropped, that a connection's task has ended.
struct Ending {
    // Weak, because the pool owns the connection whose task this is.
    pool: Weak<Pool>,
    watch: Arc<Watch>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.ended(&self.watch);
        }
    }
}

/// Makes deadpool-postgres's client of a bare one.
///
/// Its `GenericClient` is implemented for pooled objects only, and only its own manager makes those. So a pool of one
/// makes the one object and is dropped; the object lives on by itself, and the pooling is ours.
fn mint(client: tokio_postgres::Client, stand_in: JoinHandle<()>) -> Option<Client> {
    let config = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_connect(
        tokio_postgres::Config::new(),
        HandOver(Mutex::new(Some((client, stand_in)))),
        config,
    );
    let pool = deadpool_postgres::Pool::builder(manager)
        .max_size(1)
        .build()
        .ok()?;
    pool.get().now_or_never()?.ok()
}

/// Takes what a finished dial has brought, once.
struct HandOver(Mutex<Option<(tokio_postgres::Client, JoinHandle<()>)>>);

type Connected<'a> = Pin<
    Box<
        dyn Future<Output = Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>>
            + Send
            + 'a,
    >,
>;

impl deadpool_postgres::Connect for HandOver {
    fn connect(&self, _: &tokio_postgres::Config) -> Connected<'_> {
        // The driver's errors cannot be made by hand; a setting that it refuses gives one.
        let empty = || {
            "port=none"
                .parse::<tokio_postgres::Config>()
                .map(|_| unreachable!("not a port"))
        };
        let taken = lock(&self.0).take().map_or_else(empty, Ok);
        Box::pin(std::future::ready(taken))
    }
}
