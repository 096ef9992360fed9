//! A compute's Postgres: its data folder, its process, and the emulator's own sessions.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::Machine;
use crate::emulator::{
    EmulatorError,
    host::{
        daemon::Daemon,
        process::{self, blocking, connect, missing_is_fine},
    },
};

/// Longest wait for it to start or stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between checks that it is ready. A start takes some 30 ms.
const LOOK: Duration = Duration::from_millis(1);
/// Port number in the name of the socket; nothing listens on TCP.
const PORT: &str = "5432";
/// A file that Postgres reads at each start before it recovers anything, and rewrites afterwards.
const READ_FIRST: &str = "pg_logical/replorigin_checkpoint";

/// Contents of that file if nothing is replicated: a magic number and a checksum.
const NO_ORIGINS: &[u8] = b"\xde\xda\x57\x12\x36\xb2\x00\x6a";

/// The Postgres of one compute.
#[derive(Debug)]
pub(in crate::emulator) struct Postgres {
    machine: Arc<Machine>,
    folder: PathBuf,
    process: Daemon,
    // Cancelled to end the delay of a recovery. Held only for short reads and writes.
    held: Mutex<CancellationToken>,
}

impl Postgres {
    /// Creates a Postgres, not yet started, that has its data and its socket in `folder`.
    pub(in crate::emulator) fn new(machine: Arc<Machine>, folder: &Path) -> Self {
        Self {
            machine,
            folder: folder.to_owned(),
            process: Daemon::default(),
            held: Mutex::default(),
        }
    }

    pub(in crate::emulator) fn runs(&self) -> bool {
        self.process.runs()
    }

    pub(in crate::emulator) fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{PORT}"))
    }

    pub(in crate::emulator) fn has_data(&self) -> bool {
        self.data().exists()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes the data folder, from the template or from the data of another Postgres. Blocks the thread.
    pub(in crate::emulator) fn make_data(&self, of: Option<&Self>) -> Result<(), EmulatorError> {
        let account = self.machine.account;
        let failed = |err| EmulatorError::new("cannot create a compute's folder").because(err);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        account.give(&self.folder).map_err(failed)?;
        // The copy has another name until it is complete.
        let part = self.folder.join("data.part");
        fs::remove_dir_all(&part)
            .or_else(missing_is_fine)
            .map_err(failed)?;
        match of {
            Some(other) => process::copy(account, &other.data(), &part)?,
            None => self.machine.template.clone_to(&part, account)?,
        }
        fs::remove_file(part.join("postmaster.pid"))
            .or_else(missing_is_fine)
            .map_err(failed)?;
        fs::rename(&part, self.data()).map_err(failed)
    }

    /// Starts the process and waits until it accepts connections.
    pub(in crate::emulator) async fn start(&self) -> Result<(), EmulatorError> {
        let failed = |err| EmulatorError::new("cannot start Postgres").because(err);
        self.clear_pipe().map_err(failed)?;
        let pid = self.exec()?;
        self.until("take connections", || says_ready(&self.data(), pid))
            .await
    }

    /// Starts the process and delays its recovery for `time`. Returns once it listens, and answers that it is not
    /// ready.
    pub(in crate::emulator) async fn start_recovering(
        &self,
        time: Duration,
    ) -> Result<(), EmulatorError> {
        let failed = |err| EmulatorError::new("cannot delay a recovery").because(err);
        // Postgres blocks on this pipe until the emulator writes to it.
        let gate = self.data().join(READ_FIRST);
        fs::remove_file(&gate)
            .or_else(missing_is_fine)
            .map_err(failed)?;
        let mut mkfifo = self.machine.account.command("mkfifo");
        let made = gate.clone();
        blocking(move || process::run(mkfifo.arg(&made), None)).await?;
        // Opened for reading and writing, so that neither side blocks when it opens the pipe.
        let pipe = fs::OpenOptions::new().read(true).write(true).open(&gate);
        let mut pipe = pipe.map_err(failed)?;
        let pid = self.exec()?;
        self.until("listen", || self.socket().exists()).await?;
        let held = CancellationToken::new();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held.clone();
        let (process, data) = (self.process.clone(), self.data());
        tokio::spawn(async move {
            let _ = timeout(time, held.cancelled()).await;
            if let Err(err) = pipe.write_all(NO_ORIGINS) {
                tracing::warn!(%err, "emulator: cannot end the delay of a recovery");
            }
            while process.is(pid) && !says_ready(&data, pid) {
                sleep(LOOK).await; // keeps the pipe open until Postgres has read it
            }
        });
        Ok(())
    }

    /// Removes the pipe that delayed an earlier start, because nothing writes to it any more. Postgres does not need
    /// the file that the pipe replaced.
    fn clear_pipe(&self) -> io::Result<()> {
        let gate = self.data().join(READ_FIRST);
        match fs::symlink_metadata(&gate) {
            Ok(it) if it.file_type().is_fifo() => fs::remove_file(gate),
            Ok(_) => Ok(()),
            Err(err) => missing_is_fine(err),
        }
    }

    fn exec(&self) -> Result<u32, EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot start Postgres").because(err);
        // A socket that an earlier run left would look like a Postgres that listens.
        fs::remove_file(self.socket())
            .or_else(missing_is_fine)
            .map_err(failed)?;
        let log = fs::File::create(self.said()).map_err(failed)?;
        let mut command = self
            .machine
            .account
            .command(self.machine.binaries.program("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            // The socket's folder is relative to the data folder: an absolute path may be too long for a socket, or may
            // contain a separator of this list of paths.
            .args(["-k", "..", "-p", PORT]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process.start(&mut command).map_err(failed)
    }

    /// Waits until `done` returns `true`. Stops Postgres and fails if it ends first or takes longer than `PATIENCE`.
    async fn until(&self, what: &str, done: impl Fn() -> bool) -> Result<(), EmulatorError> {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            if !self.runs() || Instant::now() > deadline {
                self.stop(Signal::INT).await;
                let said = fs::read_to_string(self.said()).unwrap_or_default();
                let said = said.trim();
                return Err(EmulatorError::new(format!(
                    "Postgres does not {what}: {said}"
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn said(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    /// Sends the signal and waits until the process has ended.
    pub(in crate::emulator) async fn stop(&self, signal: Signal) {
        self.let_go();
        self.process.stop(signal).await;
    }

    /// Ends the delay of a recovery. Postgres handles no signals during the delay.
    fn let_go(&self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.cancel();
    }

    /// Reaps it after the watchdog has stopped it. Blocks the thread.
    pub(in crate::emulator) fn reap(&self) {
        self.process.end(Signal::KILL);
    }

    /// Opens a session of the emulator's own, which does not count as activity.
    pub(in crate::emulator) async fn admin(&self, database: &str) -> Result<Client, EmulatorError> {
        let late = |_| EmulatorError::new("a compute does not answer the emulator's login");
        timeout(PATIENCE, self.log_in(database))
            .await
            .map_err(late)?
    }

    async fn log_in(&self, database: &str) -> Result<Client, EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot reach a compute").because(err);
        let stream = connect(&self.socket()).await.map_err(failed)?;
        let login = tokio_postgres::Config::new()
            .user("cloud_admin")
            .dbname(database)
            .connect_raw(stream, NoTls)
            .await;
        let (client, connection) =
            login.map_err(|err| EmulatorError::new("cannot log in to a compute").because(err))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements in a session of the emulator's own.
    pub(in crate::emulator) async fn execute(
        &self,
        database: &str,
        statements: &[String],
    ) -> Result<(), EmulatorError> {
        let work = async {
            let admin = self.admin(database).await?;
            for statement in statements {
                let done = admin.batch_execute(statement).await;
                done.map_err(|err| {
                    EmulatorError::new("a compute rejects the emulator's statement").because(err)
                })?;
            }
            Ok(())
        };
        let late = |_| EmulatorError::new("a compute does not answer the emulator");
        timeout(PATIENCE, work).await.map_err(late)?
    }
}

/// Returns whether Postgres has written to its pid file that it accepts connections. A connection would count as a
/// session.
fn says_ready(data: &Path, pid: u32) -> bool {
    let mut text = String::new();
    let read = fs::File::open(data.join("postmaster.pid"))
        .and_then(|mut file| file.read_to_string(&mut text));
    let mut lines = text.lines();
    read.is_ok()
        && lines.next() == Some(pid.to_string().as_str())
        && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}
