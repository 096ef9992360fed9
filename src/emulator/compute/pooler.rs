//! A compute's PgBouncer, with Neon's settings.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::emulator::{
    EmulatorError,
    host::{account::Account, daemon::Daemon, process::connect},
};

/// Longest wait for it to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between checks that it accepts connections. A start takes some 4 ms.
const LOOK: Duration = Duration::from_millis(1);
/// Port number in the name of the socket; nothing listens on TCP.
const PORT: u16 = 6432;

/// The pooler of one compute, in the same folder as its Postgres.
#[derive(Debug)]
pub(in crate::emulator) struct Pooler {
    program: PathBuf,
    folder: PathBuf,
    process: Daemon,
}

impl Pooler {
    /// Creates the pooler for the Postgres that has its socket in `folder`.
    pub(in crate::emulator) fn new(program: &Path, folder: &Path) -> Self {
        Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            process: Daemon::default(),
        }
    }

    pub(in crate::emulator) fn runs(&self) -> bool {
        self.process.runs()
    }

    pub(in crate::emulator) fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{PORT}"))
    }

    /// Starts it and waits until it accepts connections. It needs no Postgres for that.
    pub(in crate::emulator) async fn start(&self, account: Account) -> Result<(), EmulatorError> {
        self.start_with(account, &Self::settings()).await
    }

    /// Starts it with other settings, which must leave its socket unchanged.
    pub(in crate::emulator) async fn start_with(
        &self,
        account: Account,
        text: &str,
    ) -> Result<(), EmulatorError> {
        let failed = |err: io::Error| EmulatorError::new("cannot start PgBouncer").because(err);
        let settings = self.folder.join("pgbouncer.ini");
        fs::write(&settings, text).map_err(failed)?;
        let said = self.folder.join("pgbouncer.log");
        let log = fs::File::create(&said).map_err(failed)?;
        let mut command = account.command(&self.program);
        command.current_dir(&self.folder); // so that `signal_all` finds it with the compute's other processes
        command
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process.start(&mut command).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        while connect(&self.socket()).await.is_err() {
            if !self.runs() || Instant::now() > deadline {
                self.kill().await;
                let said = fs::read_to_string(&said).unwrap_or_default();
                return Err(EmulatorError::new(format!(
                    "PgBouncer did not start: {}",
                    said.trim()
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Kills it without a message to its clients, as Neon does before it stops Postgres.
    pub(in crate::emulator) async fn kill(&self) {
        self.process.stop(Signal::KILL).await;
    }

    /// Reaps it after the watchdog has stopped it. Blocks the thread.
    pub(in crate::emulator) fn reap(&self) {
        self.process.end(Signal::KILL);
    }

    /// Returns Neon's documented settings for a compute of 0.25 units. The rest is PgBouncer's default, as at Neon.
    /// Every role is trusted, because the proxy has checked the password, and only the proxy can reach the socket.
    fn settings() -> String {
        // All sockets are in the folder that PgBouncer runs in. Without a host it looks there, so the folder's name
        // does not matter.
        format!(
            "[databases]
* = port=5432
pgbouncer_auth = port=5432 dbname=postgres pool_size=1
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = .
unix_socket_mode = 0700
auth_type = trust
auth_user = cloud_admin
auth_dbname = pgbouncer_auth
auth_query = SELECT rolname::text, ''::text FROM pg_roles WHERE rolname = $1
pool_mode = transaction
max_client_conn = 10000
default_pool_size = 93
max_prepared_statements = 1000
query_wait_timeout = 120
ignore_startup_parameters = extra_float_digits
"
        )
    }
}
