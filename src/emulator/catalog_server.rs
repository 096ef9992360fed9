//! A Postgres of its own for a catalog.

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

/// A Postgres server that keeps a catalog, for [`catalog::Postgres`](crate::catalog::Postgres): a real one, which never
/// sleeps, and has nothing to do with the computes of an [`Emulator`](super::Emulator). Dropping it ends it and removes
/// its folder, also when the process is killed.
///
/// It is reached through a socket in its folder, by whoever runs it: `neondb` is the database, and `neondb_owner` its
/// owner, who needs no password.
#[must_use = "it ends if it is dropped at once"]
pub struct CatalogServer {
    running: Arc<Running>,
    // Declared after what uses the folder.
    scratch: Option<Scratch>,
}

struct Running {
    postgres: Postgres,
    pooler: Pooler,
    account: Account,
    folder: PathBuf,
}

impl CatalogServer {
    /// Starts a server with an empty database. Takes about half a second, the first time in a process.
    ///
    /// # Errors
    /// If there is no Postgres server, or no unprivileged account. The text says what to change.
    ///
    /// # Cancel safety
    /// Dropping it ends what was started.
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

    /// The connection string, a URL. It stays the same over [`stop`](Self::stop) and [`resume`](Self::resume).
    pub fn url(&self) -> String {
        self.url_at(5432)
    }

    /// The URL through a PgBouncer in transaction mode, which is started now if it does not run.
    ///
    /// # Cancel safety
    /// Dropping it lets it start.
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

    /// The same through a PgBouncer with other settings than Neon's: `[databases]` and all that is not about its socket.
    /// For tests.
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

    /// Shuts it down as an operator would: sessions are ended with `57P01`. Returns when it has ended.
    ///
    /// # Cancel safety
    /// Dropping it lets it stop.
    pub async fn stop(&self) {
        self.end(Signal::INT).await;
    }

    /// Makes it end at once, as when the machine fails: it recovers when it is resumed. Returns when it has ended.
    ///
    /// # Cancel safety
    /// Dropping it lets it stop.
    pub async fn crash(&self) {
        self.end(Signal::QUIT).await;
    }

    async fn end(&self, signal: Signal) {
        let running = Arc::clone(&self.running);
        let _ = apart(async move { running.postgres.stop(signal).await }).await;
    }

    /// Starts it again, with everything that was committed.
    ///
    /// # Errors
    /// If it does not start.
    ///
    /// # Cancel safety
    /// Dropping it lets it start.
    pub async fn resume(&self) -> Result<(), EmulatorError> {
        let running = Arc::clone(&self.running);
        apart(async move { running.postgres.start().await }).await?
    }

    /// Stops all its processes in their tracks: whoever waits for them waits on.
    pub fn freeze(&self) {
        signal_all(&self.running.folder, Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        signal_all(&self.running.folder, Signal::CONT);
    }
}

/// Runs work to its end in a thread of its own, with a clock that nobody pauses.
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
        drop(self.scratch.take()); // the watchdog stops what runs
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
