//! Opening connections, and waking a database with the first of them.
//!
//! An attempt belongs to the tenant, not to a caller: it runs in a task of its own on the router's runtime, with its
//! own deadline, and goes on when every caller has left. While the compute may be asleep there is one attempt at a
//! time, and it is repeated until it succeeds, is refused, or its time is over; while it is awake there are a few side
//! by side, and one that fails only says that the compute may be asleep.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use deadpool_postgres::{Client, Manager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    dial::{ConnectionTask, Dialed},
    error::{Error, ErrorKind, Stage},
    lease::Connection,
    pool::Pool,
    retry::{Progress, backoff, lock, retry},
    stats::count,
    watch::Watch,
};

/// First wait between two attempts to wake a compute. Most faults of a cold start pass within it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the other side to end a connection that we close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// On whose account a database is woken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// A caller wants a connection.
    Request,
    /// The application expects one to be wanted.
    Warm,
}

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
                attempt.land(dialed);
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
        self.dial(&Progress::new(Stage::Checkout, limit)).await
    }

    /// Tries until the compute is up, says no, or the time is over.
    async fn wake(&self, reason: Reason, early_ends: u32) -> Result<Dialed, Error> {
        let stats = &self.pool.shared.stats;
        match reason {
            Reason::Request => count(&stats.wakes_by_request),
            Reason::Warm => count(&stats.wakes_by_warm),
        }
        tracing::debug!(tenant = self.pool.tenant.as_str(), ?reason, "wake");
        let progress = Progress::new(Stage::Wake, self.pool.shared.config.wake_timeout);
        if early_ends > 0 {
            // The last ones were closed as soon as they were open: trying at once would only go round.
            sleep((FIRST_WAIT * 2_u32.saturating_pow(early_ends.min(6))).min(LONGEST_WAIT)).await;
        }
        retry(&progress, backoff(FIRST_WAIT, LONGEST_WAIT), || {
            self.dial(&progress)
        })
        .await
    }

    /// Tries once.
    async fn dial(&self, progress: &Progress) -> Result<Dialed, Error> {
        let Pool {
            tenant,
            endpoint,
            shared,
            ..
        } = &*self.pool;
        count(&shared.stats.dials);
        let (tenant, began) = (tenant.as_str(), Instant::now());
        let dialed = shared
            .dialer
            .dial(endpoint, &endpoint.pooled_host, progress.deadline())
            .await;
        let elapsed = began.elapsed();
        match &dialed {
            Ok(_) => tracing::debug!(tenant, ?elapsed, "connect"),
            Err(err) => {
                tracing::debug!(tenant, ?elapsed, kind = ?err.kind(), %err, "connect");
                self.pool.note(err);
            }
        }
        dialed
    }

    /// Frees the place, and hands on what the attempt brought.
    fn land(mut self, dialed: Result<Dialed, Error>) {
        self.landed = true;
        let pool = &self.pool;
        let mut state = pool.state();
        state.dialing -= 1;
        match dialed {
            Ok(dialed) => {
                state.open += 1;
                state.lost = false;
                state.last_failure = None;
                drop(state);
                open(pool, dialed);
            }
            Err(err)
                if err.kind().is_transient() || matches!(err.kind(), ErrorKind::Timeout(_)) =>
            {
                state.lost = true;
                drop(state);
            }
            Err(err) => {
                let everyone = state.open == 0;
                drop(state);
                tracing::debug!(tenant = pool.tenant.as_str(), kind = ?err.kind(), %err, "refused");
                pool.fail(&err, everyone);
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
        self.pool.state().dialing -= 1;
        if std::thread::panicking() {
            let err = Error::new(
                ErrorKind::Internal,
                "an attempt to connect panicked; this is a bug, please report it",
            );
            self.pool.fail(&err, true);
        } else {
            // Only the end of the runtime drops a task of ours.
            self.pool.shared.life.finish();
            self.pool.fail(&Error::closed(), true);
        }
    }
}

/// Starts the task of a new connection, and gives the connection to whoever waits.
fn open(pool: &Arc<Pool>, dialed: Dialed) {
    let Dialed {
        client,
        watch,
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
        Some(client) => pool.park(Connection::new(client, watch)),
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
