//! One endpoint's compute: a real Postgres that starts when somebody comes and stops when nobody does.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::UnixStream,
    sync::Mutex,
    time::{Instant, sleep},
};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::{
    EmulatorError, account::Account, activity, binaries::Binaries, process::wait_for,
    template::Template, witness::Log,
};
use crate::secret::Secret;

/// Longest wait for Postgres to start or stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look whether Postgres is ready. It takes some 30 ms.
const LOOK: Duration = Duration::from_millis(1);
/// Port number in the name of the socket; nothing listens on TCP.
const PORT: u16 = 5432;

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

/// What is in a compute's database from its first start on.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub(super) database: String,
    pub(super) role: String,
    pub(super) password: Secret,
}

/// A Postgres that may or may not run.
#[derive(Debug)]
pub(super) struct Compute {
    machine: Arc<Machine>,
    folder: PathBuf,
    contents: Contents,
    /// Time without activity until it is stopped; `None` for never.
    suspend_window: Option<Duration>,
    pub(super) log: Log,
    // Held during a start or a stop, so that they never overlap.
    running: Mutex<Option<Running>>,
    awake: AtomicBool,
    gone: AtomicBool,
}

#[derive(Debug)]
struct Running {
    postgres: Child,
    /// Cancelled before Postgres is stopped: Neon kills its pooler first.
    pooler: CancellationToken,
}

/// Where a session connects to, and what cuts it if it is pooled.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    pub(super) socket: PathBuf,
    pub(super) pooler: CancellationToken,
}

impl Compute {
    pub(super) fn new(
        machine: Arc<Machine>,
        id: &str,
        contents: Contents,
        suspend_window: Option<Duration>,
    ) -> Arc<Self> {
        let folder = machine.folder.join(id);
        Arc::new(Self {
            machine,
            folder,
            contents,
            suspend_window,
            log: Log::default(),
            running: Mutex::new(None),
            awake: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    pub(super) fn is_awake(&self) -> bool {
        self.awake.load(Acquire)
    }

    /// Starts Postgres if it does not run, and says where it is.
    pub(super) async fn wake(self: &Arc<Self>) -> Result<Reached, EmulatorError> {
        let mut running = self.running.lock().await;
        if self.gone.load(Acquire) {
            return Err(EmulatorError::new("the endpoint has been deleted"));
        }
        if let Some(Running { postgres, pooler }) = running.as_mut() {
            if matches!(postgres.try_wait(), Ok(None)) {
                return Ok(Reached {
                    socket: self.socket(),
                    pooler: pooler.clone(),
                });
            }
        }
        let asked = Instant::now();
        let delay = *self
            .machine
            .wake_delay
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sleep(delay).await;
        let first = !self.data().exists();
        if first {
            let compute = Arc::clone(self);
            blocking(move || compute.fill_folder()).await?;
        }
        let began = Instant::now();
        let postgres = self.start().await?;
        let start = began.elapsed();
        let pooler = CancellationToken::new();
        *running = Some(Running {
            postgres,
            pooler: pooler.clone(),
        });
        if first {
            self.fill_database().await?;
        }
        self.awake.store(true, Release);
        self.log.woken(asked, start);
        drop(running);
        if let Some(window) = self.suspend_window {
            tokio::spawn(activity::suspend_when_idle(
                Arc::clone(self),
                window,
                pooler.clone(),
            ));
        }
        Ok(Reached {
            socket: self.socket(),
            pooler,
        })
    }

    /// Stops Postgres as Neon does: the pooler is killed, then Postgres gets its fast stop. Says whether it ran.
    pub(super) async fn suspend(self: &Arc<Self>) -> bool {
        let mut slot = self.running.lock().await;
        let Some(Running { postgres, pooler }) = slot.take() else {
            return false;
        };
        self.awake.store(false, Release);
        pooler.cancel();
        let stopped = blocking(move || {
            let mut postgres = postgres;
            stop(&mut postgres, Signal::INT);
            Ok(())
        });
        if let Err(err) = stopped.await {
            tracing::warn!(%err, "emulator: stopping a compute failed");
        }
        self.log.suspended();
        true
    }

    /// Stops Postgres for good and removes its data.
    pub(super) async fn delete(self: &Arc<Self>) {
        self.gone.store(true, Release);
        self.suspend().await;
        let folder = self.folder.clone();
        let removed = blocking(move || {
            fs::remove_dir_all(&folder)
                .or_else(missing_is_fine)
                .map_err(|err| EmulatorError::new("cannot remove").because(err))
        });
        if let Err(err) = removed.await {
            tracing::warn!(%err, "emulator: a deleted compute's data is still there");
        }
    }

    /// Reaps Postgres after the watchdog has stopped it. Blocks the thread.
    pub(super) fn reap(&self) {
        if let Ok(mut slot) = self.running.try_lock() {
            if let Some(Running { mut postgres, .. }) = slot.take() {
                stop(&mut postgres, Signal::KILL);
            }
        }
    }

    /// A session of the emulator's own, which does not count as activity.
    pub(super) async fn admin(&self, database: &str) -> Result<Client, EmulatorError> {
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
        self.machine.account.give(&self.folder).map_err(failed)?;
        self.machine
            .template
            .clone_to(&self.data(), self.machine.account)
    }

    /// Gives the role its password, and makes what the template does not have.
    async fn fill_database(&self) -> Result<(), EmulatorError> {
        let Contents {
            database,
            role,
            password,
        } = &self.contents;
        let admin = self.admin("postgres").await?;
        let mut sql = String::new();
        if role != "neondb_owner" {
            sql.push_str(&format!(
                "CREATE ROLE {} LOGIN CREATEDB CREATEROLE BYPASSRLS;",
                quoted(role, '"')
            ));
        }
        sql.push_str(&format!(
            "ALTER ROLE {} PASSWORD {}",
            quoted(role, '"'),
            quoted(password.expose(), '\'')
        ));
        let failed = |err| EmulatorError::new("cannot set up a compute's database").because(err);
        admin.batch_execute(&sql).await.map_err(failed)?;
        if database != "neondb" {
            let create = format!(
                "CREATE DATABASE {} OWNER {}",
                quoted(database, '"'),
                quoted(role, '"')
            );
            admin.batch_execute(&create).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Execs Postgres and waits until it takes connections.
    async fn start(&self) -> Result<Child, EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot start Postgres").because(err);
        let log = fs::File::create(self.folder.join("postgres.log")).map_err(failed)?;
        let mut command = self
            .machine
            .account
            .command(self.machine.binaries.program("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(&self.folder);
        let mut postgres = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        while !says_ready(&self.data(), postgres.id()) {
            let ended = postgres.try_wait().map_err(failed)?;
            if ended.is_some() || Instant::now() > deadline {
                stop(&mut postgres, Signal::KILL);
                let said = fs::read_to_string(self.folder.join("postgres.log")).unwrap_or_default();
                return Err(EmulatorError::new(format!(
                    "Postgres did not start: {}",
                    said.trim()
                )));
            }
            sleep(LOOK).await;
        }
        Ok(postgres)
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

/// Signals a process we started and waits for its end, with force at last. Blocks the thread.
fn stop(process: &mut Child, signal: Signal) {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Ok(None)) = (pid, process.try_wait()) {
        let _ = kill_process(pid, signal);
    }
    if !wait_for(process, PATIENCE) {
        let _ = process.kill();
        let _ = process.wait();
    }
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

fn quoted(text: &str, quote: char) -> String {
    format!(
        "{quote}{}{quote}",
        text.replace(quote, &format!("{quote}{quote}"))
    )
}

fn missing_is_fine(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(err)
    }
}
