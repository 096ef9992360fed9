//! A standalone Postgres server for a catalog.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustix::process::Signal;

use super::{
    EmulatorError,
    compute::{Machine, pooler::Pooler, postgres::Postgres, template::Template},
    host::{
        account::Account,
        binaries::Binaries,
        process::{blocking, signal_all},
        scratch::Scratch,
    },
};

/// A Postgres server that holds a catalog, for [`catalog::Postgres`](crate::catalog::Postgres). It is a real server
/// that never sleeps, and is independent of the computes of an [`Emulator`](super::Emulator). Dropping it stops the
/// server and removes its folder. That also happens if the process is killed.
///
/// Clients reach it through a socket in its folder, as the user that runs it. The database is `neondb`. Its owner is
/// the role `neondb_owner`, which needs no password.
#[must_use = "dropping this value stops everything that it started"]
pub struct CatalogServer {
    running: Arc<Running>,
    // Declared last, so that it is dropped after everything that uses the folder.
    scratch: Option<Scratch>,
}

struct Running {
    postgres: Postgres,
    pooler: Pooler,
    account: Account,
    folder: PathBuf,
}

impl CatalogServer {
    /// Starts a server with an empty database. The first start in a process takes about half a second.
    ///
    /// # Errors
    /// Returns an error if there is no Postgres server, no PgBouncer or no unprivileged account. The text says what to
    /// change.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything that was started.
    pub async fn start() -> Result<Self, EmulatorError> {
        apart(async {
            let server = blocking(Self::prepare).await?;
            server.running.postgres.start().await?;
            Ok(server)
        })
        .await?
    }

    fn prepare() -> Result<Self, EmulatorError> {
        let (binaries, account) = (Binaries::find()?, Account::unprivileged()?);
        let scratch = Scratch::new(account)?;
        let template = Template::shared(&binaries, account)?;
        let folder = scratch.path().join("catalog");
        let pooler = Pooler::new(template.pgbouncer(), &folder);
        let machine = Machine {
            binaries,
            account,
            template,
            folder: scratch.path().to_owned(),
            wake_delay: Mutex::default(),
        };
        let postgres = Postgres::new(Arc::new(machine), &folder);
        postgres.make_data(None)?;
        let running = Running {
            postgres,
            pooler,
            account,
            folder,
        };
        Ok(Self {
            running: Arc::new(running),
            scratch: Some(scratch),
        })
    }

    /// Returns the connection string, a URL. It stays the same over [`stop`](Self::stop) and [`resume`](Self::resume).
    pub fn url(&self) -> String {
        self.url_at(5432)
    }

    /// Returns the URL of a PgBouncer in transaction mode in front of the server. Starts the PgBouncer if it does not
    /// run.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the start.
    pub async fn pooled_url(&self) -> Result<String, EmulatorError> {
        let running = Arc::clone(&self.running);
        apart(async move {
            if running.pooler.runs() {
                return Ok(());
            }
            running.pooler.start(running.account).await
        })
        .await??;
        Ok(self.url_at(6432))
    }

    /// Returns the URL of a PgBouncer with settings other than Neon's: `[databases]` and all settings except the
    /// socket's. For tests.
    #[doc(hidden)]
    pub async fn pooled_url_with(&self, settings: &str) -> Result<String, EmulatorError> {
        let running = Arc::clone(&self.running);
        let text = format!("{settings}\nlisten_port = 6432\nunix_socket_dir = .\n");
        apart(async move { running.pooler.start_with(running.account, &text).await }).await??;
        Ok(self.url_at(6432))
    }

    fn url_at(&self, port: u16) -> String {
        let folder = self.running.folder.as_os_str().as_encoded_bytes();
        let host = percent_encode(folder, NON_ALPHANUMERIC);
        format!("postgres://neondb_owner@{host}:{port}/neondb")
    }

    /// Shuts the server down as an operator would: sessions end with `57P01`. Returns when the server has ended.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn stop(&self) {
        self.end(Signal::INT).await;
    }

    /// Ends the server at once, as a failure of the machine would. It recovers when it is resumed. Returns when it has
    /// ended.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn crash(&self) {
        self.end(Signal::QUIT).await;
    }

    async fn end(&self, signal: Signal) {
        let running = Arc::clone(&self.running);
        let _ = apart(async move { running.postgres.stop(signal).await }).await;
    }

    /// Starts the server again, with everything that was committed.
    ///
    /// # Errors
    /// Returns an error if the server does not start.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the start.
    pub async fn resume(&self) -> Result<(), EmulatorError> {
        let running = Arc::clone(&self.running);
        apart(async move { running.postgres.start().await }).await?
    }

    /// Freezes all processes of the server (SIGSTOP). Clients that wait for them keep waiting.
    pub fn freeze(&self) {
        signal_all(&self.running.folder, Signal::STOP);
    }

    /// Resumes a frozen server.
    pub fn thaw(&self) {
        signal_all(&self.running.folder, Signal::CONT);
    }
}

/// Runs `work` to its end on its own thread, with a clock that the caller cannot pause.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, EmulatorError> {
    let (done, finished) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let _ = done.send(runtime.map(|runtime| runtime.block_on(work)));
    });
    let failed = |err: std::io::Error| EmulatorError::new("cannot start a thread").because(err);
    let ended = |err| EmulatorError::new("the catalog server's thread ended early").because(err);
    finished.await.map_err(ended)?.map_err(failed)
}

impl Drop for CatalogServer {
    fn drop(&mut self) {
        drop(self.scratch.take()); // the watchdog stops all processes
        self.running.postgres.reap();
        self.running.pooler.reap();
    }
}

impl fmt::Debug for CatalogServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogServer")
            .field("folder", &self.running.folder)
            .finish_non_exhaustive()
    }
}
