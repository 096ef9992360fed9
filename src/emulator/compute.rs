//! One endpoint's compute: a real Postgres that starts when somebody comes and stops when nobody does.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    net::UnixStream,
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::{
    EmulatorError, account::Account, activity, binaries::Binaries, contents::Contents,
    daemon::Daemon, fault::Faults, pooler::Pooler, process::signal_all, template::Template,
    witness::Log,
};

/// Longest wait for Postgres to start or stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look whether Postgres is ready. It takes some 30 ms.
const LOOK: Duration = Duration::from_millis(1);
/// Port number in the name of the socket; nothing listens on TCP.
const PORT: &str = "5432";

/// What all computes of an emulator share.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) binaries: Binaries,
    pub(super) account: Account,
    pub(super) template: Arc<Template>,
    pub(super) folder: PathBuf,
    /// Time before each start, to be as slow as a real cold start.
    pub(super) wake_delay: StdMutex<Duration>,
}

/// A Postgres that may or may not run.
#[derive(Debug)]
pub(super) struct Compute {
    machine: Arc<Machine>,
    folder: PathBuf,
    pub(super) contents: Contents,
    /// Time without activity until it is stopped; `None` for never.
    suspend_window: Option<Duration>,
    pub(super) log: Log,
    pub(super) faults: Faults,
    /// Time before each start, in place of the machine's.
    wake_delay: StdMutex<Option<Duration>>,
    // Held during a start or a stop, so that they never overlap.
    state: Mutex<State>,
    postgres: Daemon,
    pooler: Pooler,
    awake: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// The present run, until it is suspended.
    run: Option<CancellationToken>,
    /// Whether role, password and database are there.
    filled: bool,
    gone: bool,
}

/// Where a session connects to, and the run it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// Postgres's own socket.
    pub(super) direct: PathBuf,
    /// PgBouncer's.
    pub(super) pooled: PathBuf,
    /// Cancelled before either is stopped.
    pub(super) run: CancellationToken,
}

impl Compute {
    pub(super) fn new(
        machine: Arc<Machine>,
        id: &str,
        contents: Contents,
        suspend_window: Option<Duration>,
    ) -> Arc<Self> {
        let folder = machine.folder.join(id);
        let pooler = Pooler::new(machine.template.pgbouncer(), &folder);
        Arc::new(Self {
            machine,
            folder,
            contents,
            suspend_window,
            log: Log::default(),
            faults: Faults::default(),
            wake_delay: StdMutex::default(),
            state: Mutex::default(),
            postgres: Daemon::default(),
            pooler,
            awake: AtomicBool::new(false),
        })
    }

    pub(super) fn is_awake(&self) -> bool {
        self.awake.load(Acquire)
    }

    /// Starts Postgres if it does not run, and says where it is.
    pub(super) async fn wake(self: &Arc<Self>) -> Result<Reached, EmulatorError> {
        let mut state = self.state.lock().await;
        if state.gone {
            return Err(EmulatorError::new("the endpoint has been deleted"));
        }
        if let Some(run) = state.run.clone().filter(|_| self.postgres.runs()) {
            if !self.pooler.runs() {
                self.pooler.start(self.machine.account).await?;
            }
            return Ok(self.reached(run));
        }
        if let Some(crashed) = state.run.take() {
            crashed.cancel();
        }
        let asked = Instant::now();
        let delay = lock(&self.wake_delay).unwrap_or(*lock(&self.machine.wake_delay));
        sleep(delay).await;
        if !self.data().exists() {
            let compute = Arc::clone(self);
            blocking(move || compute.fill_folder()).await?;
        }
        let began = Instant::now();
        let (pooler, postgres) =
            tokio::join!(self.pooler.start(self.machine.account), self.start());
        if let Err(err) = pooler.and(postgres) {
            self.halt().await;
            return Err(err);
        }
        let start = began.elapsed();
        if !state.filled {
            let filled = timeout(PATIENCE, self.fill_database()).await;
            let late = |_| EmulatorError::new("setting up a compute's database took too long");
            if let Err(err) = filled.map_err(late).flatten() {
                self.halt().await;
                return Err(err);
            }
            state.filled = true;
        }
        let run = CancellationToken::new();
        state.run = Some(run.clone());
        self.awake.store(true, Release);
        self.log.woken(asked, start);
        if let Some(window) = self.suspend_window {
            tokio::spawn(activity::suspend_when_idle(
                Arc::clone(self),
                window,
                run.clone(),
            ));
        }
        Ok(self.reached(run))
    }

    fn reached(&self, run: CancellationToken) -> Reached {
        Reached {
            direct: self.socket(),
            pooled: self.pooler.socket(),
            run,
        }
    }

    /// Stops Postgres as Neon does: the pooler is killed, then Postgres gets its fast stop. Says whether it ran.
    pub(super) async fn suspend(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock().await;
        self.end_run(&mut state).await
    }

    /// The same, unless the run has ended already and another one may have begun.
    pub(super) async fn suspend_run(self: &Arc<Self>, run: &CancellationToken) -> bool {
        let mut state = self.state.lock().await;
        !run.is_cancelled() && self.end_run(&mut state).await
    }

    async fn end_run(&self, state: &mut State) -> bool {
        let Some(run) = state.run.take() else {
            return false;
        };
        self.awake.store(false, Release);
        run.cancel();
        self.halt().await;
        self.log.suspended();
        true
    }

    /// The pooler first, without a word; then Postgres gets its fast stop.
    async fn halt(&self) {
        self.thaw(); // a frozen process hears no signal
        self.pooler.kill().await;
        self.postgres.stop(Signal::INT).await;
    }

    /// Stops Postgres for good and removes its data.
    pub(super) async fn delete(self: &Arc<Self>) {
        let mut state = self.state.lock().await;
        state.gone = true;
        self.end_run(&mut state).await;
        let folder = self.folder.clone();
        let removed = blocking(move || {
            let removed = fs::remove_dir_all(&folder).or_else(missing_is_fine);
            removed.map_err(|err| EmulatorError::new("cannot remove a folder").because(err))
        });
        if let Err(err) = removed.await {
            tracing::warn!(%err, "emulator: a deleted compute's data is still there");
        }
    }

    /// Sets the time before each start of this compute, from now on.
    pub(super) fn set_wake_delay(&self, delay: Duration) {
        *lock(&self.wake_delay) = Some(delay);
    }

    /// Stops all its processes in their tracks: whoever waits for them waits on.
    pub(super) fn freeze(&self) {
        signal_all(&self.folder, Signal::STOP);
    }

    /// Lets them go on.
    pub(super) fn thaw(&self) {
        signal_all(&self.folder, Signal::CONT);
    }

    /// Kills all its processes: no goodbye to anybody, and recovery at the next start.
    pub(super) fn crash(&self) {
        self.awake.store(false, Release);
        self.freeze(); // so that none of them can tell of the others' end
        signal_all(&self.folder, Signal::KILL);
    }

    /// Kills the pooler only; it is started again for the next client.
    pub(super) async fn kill_pooler(&self) {
        self.pooler.kill().await;
    }

    /// Reaps what the watchdog has stopped. Blocks the thread.
    pub(super) fn reap(&self) {
        self.pooler.reap();
        self.postgres.end(Signal::KILL);
    }

    /// A session of the emulator's own, which does not count as activity.
    pub(super) async fn admin(&self, database: &str) -> Result<Client, EmulatorError> {
        let late = |_| EmulatorError::new("a compute does not take the emulator's login");
        timeout(PATIENCE, self.log_in(database))
            .await
            .map_err(late)?
    }

    async fn log_in(&self, database: &str) -> Result<Client, EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot reach a compute").because(err);
        let stream = UnixStream::connect(self.socket()).await.map_err(failed)?;
        let login = tokio_postgres::Config::new()
            .user("cloud_admin")
            .dbname(database)
            .connect_raw(stream, NoTls)
            .await;
        let (client, connection) =
            login.map_err(|err| EmulatorError::new("cannot log in at a compute").because(err))?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{PORT}"))
    }

    fn fill_folder(&self) -> Result<(), EmulatorError> {
        let failed = |err| EmulatorError::new("cannot create a compute's folder").because(err);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        self.machine.account.give(&self.folder).map_err(failed)?;
        // Under another name until it is whole.
        let part = self.folder.join("data.part");
        fs::remove_dir_all(&part)
            .or_else(missing_is_fine)
            .map_err(failed)?;
        self.machine
            .template
            .clone_to(&part, self.machine.account)?;
        fs::rename(&part, self.data()).map_err(failed)
    }

    /// Gives the role its password, and makes what the template does not have.
    async fn fill_database(&self) -> Result<(), EmulatorError> {
        let admin = self.admin("postgres").await?;
        for statement in self.contents.statements() {
            let done = admin.batch_execute(&statement).await;
            done.map_err(|err| {
                EmulatorError::new("cannot set up a compute's database").because(err)
            })?;
        }
        Ok(())
    }

    /// Execs Postgres and waits until it takes connections.
    async fn start(&self) -> Result<(), EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot start Postgres").because(err);
        let said = self.folder.join("postgres.log");
        let log = fs::File::create(&said).map_err(failed)?;
        let mut command = self
            .machine
            .account
            .command(self.machine.binaries.program("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(&self.folder)
            .args(["-p", PORT]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let pid = self.postgres.start(&mut command).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        while !says_ready(&self.data(), pid) {
            if !self.postgres.runs() || Instant::now() > deadline {
                self.postgres.stop(Signal::INT).await;
                let said = fs::read_to_string(&said).unwrap_or_default();
                return Err(EmulatorError::new(format!(
                    "Postgres did not start: {}",
                    said.trim()
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Whether Postgres has written into its own file that it takes connections. Asking it would be a session.
fn says_ready(data: &Path, pid: u32) -> bool {
    let mut text = String::new();
    let read = fs::File::open(data.join("postmaster.pid"))
        .and_then(|mut file| file.read_to_string(&mut text));
    let mut lines = text.lines();
    read.is_ok()
        && lines.next() == Some(pid.to_string().as_str())
        && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what blocks apart from the emulator's own tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EmulatorError> + Send + 'static,
) -> Result<T, EmulatorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) => Err(EmulatorError::new("the emulator is ending").because(err)),
    }
}

fn missing_is_fine(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(err)
    }
}
