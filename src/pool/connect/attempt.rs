//! Opening connections, and waking a database with the first of them.
//!
//! An attempt belongs to the tenant, not to a caller: it runs in a task of its own on the router's runtime, with its
//! own deadline, and goes on when every caller has left. While the compute may be asleep there is one attempt at a
//! time, and it is repeated until it succeeds, is refused, or its time is over; while it is awake there are a few side
//! by side, and one that fails only says that the compute may be asleep.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use deadpool_postgres::{Client, Manager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use tokio::{task::JoinHandle, time::sleep};
use tracing::Instrument;

use super::{FIRST_WAIT, LONGEST_WAIT, Opening};
use crate::{
    connection::{
        dial::{ConnectionTask, Dialed},
        status::Watch,
    },
    model::{
        endpoint::Route,
        error::{Error, ErrorKind, Stage},
    },
    pool::{Pool, lease::Connection, refusals::Refusal},
    sync::retry::{Progress, lock},
    telemetry::{
        spans,
        stats::{Reason, count},
    },
};

/// Longest wait for the other side to end a connection that we close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

impl Pool {
    /// Starts the attempts that are due. To be called after whatever may have made one due.
    pub(crate) fn pump(self: &Arc<Self>) {
        let mut state = self.state();
        let (due, reason) = state.dials_due(&self.shared.config);
        let asleep = state.believes_asleep();
        let early_ends = state.early_ends;
        state.dialing += due;
        drop(state); // a runtime that has ended drops the task here and now, and the guard takes the lock
        for _ in 0..due {
            let mut attempt = Attempt {
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
                    () = life.ended() => Some(Err(Error::closed())),
                    () = pool.until_forbidden() => None,
                    dialed = attempt.make(asleep, reason, early_ends) => dialed,
                };
                match dialed {
                    Some(dialed) => attempt.land(dialed),
                    None => attempt.withdraw(),
                }
            };
            let task = task.instrument(span);
            self.shared.attempts.spawn_on(task, &self.shared.runtime);
        }
    }
}

/// One place among the attempts under way. Its drop frees the place, also by panic or because the runtime ends.
struct Attempt {
    pool: Arc<Pool>,
    /// Whether it is the one that wakes the tenant.
    waking: bool,
    /// Whether it has begun to log in.
    logging_in: bool,
    landed: bool,
}

impl Attempt {
    /// A connection; none if there was no need for one any more when its turn had come.
    async fn make(
        &mut self,
        asleep: bool,
        reason: Reason,
        early_ends: u32,
    ) -> Option<Result<Dialed, Error>> {
        let shared = Arc::clone(&self.pool.shared);
        let progress = Progress::new(Stage::Checkout, shared.config.wake_timeout);
        if asleep && let Err(err) = self.rest(&progress, early_ends).await {
            self.waking = true;
            return Some(Err(err));
        }
        let permit = self.opening(&progress).permit().await.ok()??;
        {
            // Only now, because it may have taken long: the compute may have fallen asleep, and gets one attempt then.
            let mut state = self.pool.state();
            self.waking = state.believes_asleep();
            if self.waking {
                let rests = !asleep
                    && shared
                        .refusals
                        .get(&self.pool.tenant, Route::Pooled)
                        .is_some();
                if state.logging_in > 0 || rests {
                    self.waking = false;
                    return None;
                }
            }
            state.logging_in += 1;
            self.logging_in = true;
        }
        if self.waking {
            let progress = Progress::new(Stage::Wake, shared.config.wake_timeout);
            return Some(self.opening(&progress).wake(permit, reason).await);
        }
        let (opening, endpoint) = (self.opening(&progress), self.pool.endpoint());
        tokio::select! {
            biased;
            dialed = opening.dial(&endpoint, permit) => Some(dialed),
            () = opening.outstay() => None,
        }
    }

    /// Waits until another attempt may be of use.
    async fn rest(&self, progress: &Progress, early_ends: u32) -> Result<(), Error> {
        if early_ends > 0 {
            // The last ones were closed as soon as they were open: trying at once would only go round.
            sleep((FIRST_WAIT * 2_u32.saturating_pow(early_ends.min(6))).min(LONGEST_WAIT)).await;
        }
        self.opening(progress).outwait().await
    }

    fn opening<'a>(&'a self, progress: &'a Progress) -> Opening<'a> {
        Opening {
            pool: &self.pool,
            route: Route::Pooled,
            progress,
        }
    }

    /// Frees the place, for others that may be due in its stead.
    fn withdraw(mut self) {
        self.landed = true;
        let mut state = self.pool.state();
        state.dialing -= 1;
        state.logging_in -= usize::from(self.logging_in);
        drop(state);
        self.pool.pump();
    }

    /// Frees the place, and hands on what the attempt brought.
    fn land(mut self, dialed: Result<Dialed, Error>) {
        self.landed = true;
        let (pool, waking) = (&self.pool, self.waking);
        let mut state = pool.state();
        state.dialing -= 1;
        state.logging_in -= usize::from(self.logging_in);
        match dialed {
            Ok(dialed) => {
                state.open.push(Arc::clone(&dialed.watch));
                state.last_failure = None;
                state.repeated_since = None;
                if Arc::ptr_eq(&dialed.endpoint, &state.endpoint) {
                    state.lost = None;
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
                state.note_asleep();
                drop(state);
            }
            Err(err) => {
                let serves = !state.open.is_empty();
                drop(state);
                tell_refusal(pool, &err);
                if serves {
                    pool.fail_one(&err); // the others may still be served by the connections that are open
                }
                pool.refuse(Route::Pooled, &Refusal::new(err));
            }
        }
        pool.pump();
    }
}

impl Drop for Attempt {
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
            // Only the end of the runtime drops a task of ours.
            self.pool.shared.life.finish();
            self.pool.fail_all(&Error::closed());
        }
    }
}

/// Says so aloud if it lasts until somebody changes something.
fn tell_refusal(pool: &Pool, err: &Error) {
    let (tenant, code) = (pool.tenant.as_str(), err.kind().code());
    if err.kind().is_transient() {
        tracing::debug!(tenant, code, %err, "refused");
    } else {
        tracing::warn!(tenant, code, %err, "refused");
    }
}

/// Starts the task of a new connection, and gives the connection to whoever waits.
fn open(pool: &Arc<Pool>, dialed: Dialed) {
    let Dialed {
        client,
        watch,
        seat,
        endpoint,
        task,
        ..
    } = dialed;
    count(&pool.shared.stats.opened);
    let ending = Ending::new(pool, &watch);
    pool.shared
        .connections
        .spawn_on(tend(task, ending), &pool.shared.runtime);
    // deadpool's client aborts this handle when it is dropped; the real task still has to say goodbye.
    let stand_in = pool.shared.runtime.spawn(std::future::ready(()));
    match mint(client, stand_in) {
        Some(client) => pool.park(Connection::new(client, watch, seat, endpoint)),
        None => watch.mark_closing(),
    }
}

/// Moves a connection's bytes until it ends, and looks after each turn whether something runs on it that should not.
pub(crate) async fn tend(mut task: ConnectionTask, ending: Ending) {
    let turns = poll_fn(|cx| {
        let polled = task.as_mut().poll(cx);
        if polled.is_pending() && ending.watch.is_stray() {
            ending.pool.pull(&ending.watch);
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
    drop(task); // and with it the socket: before the pool counts it as ended
    drop(ending);
}

/// Tells the pool, when it is dropped, that a connection's task has ended.
pub(crate) struct Ending {
    // A pool that has left the cache closes its idle connections, so this is no circle that lasts. And as long as one
    // has not ended, a tenant that comes back finds the pool, which counts it.
    pool: Arc<Pool>,
    watch: Arc<Watch>,
}

impl Ending {
    pub(crate) fn new(pool: &Arc<Pool>, watch: &Arc<Watch>) -> Self {
        Self {
            pool: Arc::clone(pool),
            watch: Arc::clone(watch),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.watch.mark_ended(); // also where the task was dropped half-way
        self.pool.ended(&self.watch);
    }
}

/// Makes deadpool-postgres's client of a bare one.
///
/// Its `GenericClient` is implemented for pooled objects only, and only its own manager makes those. So a pool of one
/// makes the one object and is dropped; the object lives on by itself, and the pooling is ours.
pub(crate) fn mint(client: tokio_postgres::Client, stand_in: JoinHandle<()>) -> Option<Client> {
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
