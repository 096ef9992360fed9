//! One branch's compute: a real Postgres that starts on demand and stops when it is idle.

pub(in crate::emulator) mod activity;
mod changes;
pub(in crate::emulator) mod contents;
pub(in crate::emulator) mod pooler;
pub(in crate::emulator) mod postgres;
pub(in crate::emulator) mod stop;
pub(in crate::emulator) mod template;

pub(super) use changes::Unborn;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::{
    contents::Contents, pooler::Pooler, postgres::Postgres, stop::Stop, template::Template,
};
use super::{
    EmulatorError,
    fault::Faults,
    host::{
        account::Account,
        binaries::Binaries,
        process::{blocking, detached, signal_all},
    },
    reason::Reason,
    witness::Log,
    world::usage::{Ledger, Meter},
};

/// Time for the pooler to pass on Postgres's last messages, in stops that end the pooler after Postgres.
const POOLER_OUTLIVES: Duration = Duration::from_millis(50);

/// The resources that all computes of an emulator share.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) binaries: Binaries,
    pub(super) account: Account,
    pub(super) template: Arc<Template>,
    pub(super) folder: PathBuf,
    /// Delay before each start, to imitate a real cold start.
    pub(super) wake_delay: StdMutex<Duration>,
}

/// The settings of a compute that its owner may change while it exists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Time without activity after which the compute is suspended; `None` for never.
    pub(super) suspend_window: Option<Duration>,
    /// Smallest number of compute units.
    pub(super) units: f64,
    /// `true` if the compute may not be woken.
    pub(super) disabled: bool,
}

/// A Postgres that may or may not run.
#[derive(Debug)]
pub(super) struct Compute {
    machine: Arc<Machine>,
    folder: PathBuf,
    // These three are held only for short reads and writes.
    contents: StdMutex<Contents>,
    terms: StdMutex<Terms>,
    /// Delay before each start, in place of the machine's.
    wake_delay: StdMutex<Option<Duration>>,
    pub(super) log: Log,
    pub(super) faults: Faults,
    pub(super) meter: Arc<Meter>,
    ledger: Arc<Ledger>,
    // Held during a start or a stop, so that starts and stops never overlap.
    state: Arc<Mutex<State>>,
    /// `true` if its branch or its project is deleted.
    gone: AtomicBool,
    frozen: AtomicBool,
    pub(super) postgres: Postgres,
    pooler: Pooler,
    awake: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The current run, until it is suspended.
    run: Option<CancellationToken>,
    /// `true` once the role, its password and the database exist.
    filled: bool,
}

/// The sockets that a session may connect to, and the run that it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// Postgres's own socket.
    pub(super) direct: PathBuf,
    /// PgBouncer's socket.
    pub(super) pooled: PathBuf,
    /// Cancelled before Postgres or PgBouncer is stopped.
    pub(super) run: CancellationToken,
}

impl Compute {
    pub(super) fn new(
        machine: Arc<Machine>,
        id: &str,
        contents: Contents,
        terms: Terms,
        ledger: Arc<Ledger>,
        log: Log,
    ) -> Arc<Self> {
        let folder = machine.folder.join(id);
        let pooler = Pooler::new(machine.template.pgbouncer(), &folder);
        Arc::new(Self {
            postgres: Postgres::new(Arc::clone(&machine), &folder),
            machine,
            folder,
            contents: StdMutex::new(contents),
            terms: StdMutex::new(terms),
            wake_delay: StdMutex::default(),
            log,
            faults: Faults::default(),
            meter: ledger.meter(),
            ledger,
            state: Arc::default(),
            gone: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            pooler,
            awake: AtomicBool::new(false),
        })
    }

    pub(super) fn is_awake(&self) -> bool {
        self.awake.load(Acquire)
    }

    pub(super) fn contents(&self) -> Contents {
        lock(&self.contents).clone()
    }

    pub(super) fn terms(&self) -> Terms {
        *lock(&self.terms)
    }

    pub(super) fn set_terms(&self, terms: Terms) {
        *lock(&self.terms) = terms;
    }

    /// Returns the reason for which the control plane does not wake it; `None` if it does.
    pub(super) fn refusal(&self) -> Option<Reason> {
        let disabled = self.terms().disabled.then_some(Reason::EndpointDisabled);
        disabled.or_else(|| self.ledger.exceeded())
    }

    /// Starts Postgres if it does not run, and returns its sockets. The start continues if the caller is dropped.
    pub(super) async fn wake(self: &Arc<Self>) -> Result<Reached, EmulatorError> {
        let compute = Arc::clone(self);
        detached(async move {
            let mut state = compute.state.lock().await;
            compute.ensure_awake(&mut state).await
        })
        .await?
    }

    async fn ensure_awake(self: &Arc<Self>, state: &mut State) -> Result<Reached, EmulatorError> {
        if self.gone.load(Acquire) {
            return Err(EmulatorError::new("the endpoint has been deleted"));
        }
        if let Some(run) = state.run.clone().filter(|_| self.postgres.runs()) {
            if !self.pooler.runs() {
                self.pooler.start(self.machine.account).await?;
            }
            return Ok(self.reached(run));
        }
        if let Some(reason) = self.refusal() {
            return Err(EmulatorError::new(reason.text()));
        }
        if let Some(crashed) = state.run.take() {
            self.clear_away(&crashed).await;
        }
        let asked = Instant::now();
        let delay = lock(&self.wake_delay).unwrap_or(*lock(&self.machine.wake_delay));
        sleep(delay).await;
        if !self.postgres.has_data() {
            let compute = Arc::clone(self);
            blocking(move || compute.postgres.make_data(None)).await?;
        }
        let start = match self.start(state).await {
            Ok(start) => start,
            Err(err) => {
                self.halt(Stop::Neon).await;
                return Err(err);
            }
        };
        let run = CancellationToken::new();
        state.run = Some(run.clone());
        self.awake.store(true, Release);
        self.meter.woken(self.terms().units);
        self.log.woken(asked, start);
        tokio::spawn(activity::suspend_when_idle(Arc::clone(self), run.clone()));
        Ok(self.reached(run))
    }

    /// Cleans up after a run that ended by itself.
    async fn clear_away(&self, crashed: &CancellationToken) {
        crashed.cancel();
        self.awake.store(false, Release);
        self.meter.suspended();
        self.pooler.kill().await;
        self.postgres.stop(Signal::KILL).await;
    }

    /// Starts both processes. Returns the time that this took.
    async fn start(&self, state: &mut State) -> Result<Duration, EmulatorError> {
        let began = Instant::now();
        let recovering = self.faults.recovery().filter(|_| state.filled);
        let postgres = async {
            match recovering {
                Some(time) => self.postgres.start_recovering(time).await,
                None => self.postgres.start().await,
            }
        };
        let (pooler, postgres) = tokio::join!(self.pooler.start(self.machine.account), postgres);
        pooler.and(postgres)?;
        let start = began.elapsed();
        if !state.filled {
            // Sets the role's password, and creates what the template does not have.
            let statements = self.contents().statements();
            self.postgres.execute("postgres", &statements).await?;
            state.filled = true;
        }
        Ok(start)
    }

    fn reached(&self, run: CancellationToken) -> Reached {
        Reached {
            direct: self.postgres.socket(),
            pooled: self.pooler.socket(),
            run,
        }
    }

    /// Stops it in the given way. Returns whether it ran. The stop continues if the caller is dropped.
    pub(super) async fn suspend(self: &Arc<Self>, how: Stop) -> bool {
        let compute = Arc::clone(self);
        let stopped = detached(async move {
            let mut state = compute.state.lock().await;
            compute.end_run(&mut state, how).await
        });
        stopped.await.unwrap_or(false)
    }

    /// Suspends `run` as Neon does. Does nothing if that run has already ended, because another one may have begun.
    pub(super) async fn suspend_run(self: &Arc<Self>, run: &CancellationToken) -> bool {
        let mut state = self.state.lock().await;
        !run.is_cancelled() && self.end_run(&mut state, Stop::Neon).await
    }

    async fn end_run(&self, state: &mut State, how: Stop) -> bool {
        let Some(run) = state.run.take() else {
            return false;
        };
        self.awake.store(false, Release);
        run.cancel();
        self.halt(how).await;
        self.meter.suspended();
        self.log.suspended();
        true
    }

    async fn halt(&self, how: Stop) {
        self.thaw(); // a frozen process handles no signal
        match how {
            Stop::Neon => {
                self.pooler.kill().await;
                self.postgres.stop(Signal::INT).await;
            }
            Stop::Fast => {
                self.postgres.stop(Signal::INT).await;
                sleep(POOLER_OUTLIVES).await;
                self.pooler.kill().await;
            }
            Stop::Immediate => {
                self.postgres.stop(Signal::QUIT).await;
                sleep(POOLER_OUTLIVES).await;
                self.pooler.kill().await;
            }
            Stop::Kill => {
                self.kill_all();
                self.pooler.kill().await;
                self.postgres.stop(Signal::KILL).await;
            }
        }
    }

    /// Reads the counters that only Postgres knows, if it is awake.
    pub(super) async fn read_meter(&self) {
        if self.is_awake()
            && let Err(err) = activity::read_meter(self).await
        {
            tracing::debug!(%err, "emulator: counters of a compute are not up to date");
        }
    }

    /// Sets the delay before each start of this compute, from now on.
    pub(super) fn set_wake_delay(&self, delay: Duration) {
        *lock(&self.wake_delay) = Some(delay);
    }

    /// Freezes all its processes (SIGSTOP). Clients that wait for them keep waiting.
    pub(super) fn freeze(&self) {
        self.frozen.store(true, Release);
        signal_all(&self.folder, Signal::STOP);
    }

    /// Resumes its frozen processes.
    pub(super) fn thaw(&self) {
        if self.frozen.swap(false, AcqRel) {
            signal_all(&self.folder, Signal::CONT);
        }
    }

    /// Kills all its processes. Clients get no last message, and Postgres recovers at its next start.
    pub(super) fn crash(&self) {
        self.awake.store(false, Release);
        self.meter.suspended();
        self.kill_all();
    }

    fn kill_all(&self) {
        self.freeze(); // so that no process can report the end of another
        signal_all(&self.folder, Signal::KILL);
        self.frozen.store(false, Release);
    }

    /// Kills only the pooler, which is started again for the next client.
    pub(super) async fn kill_pooler(&self) {
        self.pooler.kill().await;
    }

    /// Reaps the processes that the watchdog has stopped. Blocks the thread.
    pub(super) fn reap(&self) {
        self.pooler.reap();
        self.postgres.reap();
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
