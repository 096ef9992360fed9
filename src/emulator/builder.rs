//! The settings of an emulator, and its start.

use std::{
    fs, io,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::net::TcpListener;

use super::{
    Emulator, EmulatorError, api,
    compute::{Machine, template::Template},
    host::{account::Account, binaries::Binaries, scratch::Scratch},
    proxy::{Gate, Proxy, certificate::Certificates},
    world::{Settings, World},
};
use crate::model::secret::Secret;

/// Settings of an [`Emulator`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct EmulatorBuilder {
    settings: Settings,
    wake_delay: Duration,
    api_port: u16,
    proxy_port: u16,
    api_key: Option<Secret>,
}

impl EmulatorBuilder {
    pub(super) fn new() -> Self {
        let settings = Settings {
            operation_time: Duration::from_millis(50),
            suspend_after: Duration::from_secs(300),
            start_on_create: true,
            live_codes: false,
            api_limit: None,
        };
        Self {
            settings,
            wake_delay: Duration::ZERO,
            api_port: 0,
            proxy_port: 0,
            api_key: None,
        }
    }

    /// Sets the delay before each start of a compute. Defaults to none, so that tests are fast. A cold start at Neon
    /// takes some 350 milliseconds.
    pub fn wake_delay(mut self, delay: Duration) -> Self {
        self.wake_delay = delay;
        self
    }

    /// Sets the suspend window of endpoints that ask for the default, which is the time without activity after which a
    /// compute is suspended. Defaults to Neon's five minutes, and may be shorter than the minute that Neon's API
    /// accepts.
    pub fn suspend_after(mut self, window: Duration) -> Self {
        self.settings.suspend_after = window;
        self
    }

    /// Sets the duration of each operation, besides the start of a compute. Defaults to 50 milliseconds. The project is
    /// locked while an operation is in progress.
    pub fn operation_time(mut self, time: Duration) -> Self {
        self.settings.operation_time = time;
        self
    }

    /// Sets whether a new project's compute starts at once, as at Neon. Defaults to `true`; set it to `false` for
    /// thousands of projects.
    pub fn start_on_create(mut self, start: bool) -> Self {
        self.settings.start_on_create = start;
        self
    }

    /// Sets whether errors before a session exists carry the SQLSTATEs that Neon's live service has begun to send
    /// (2026), instead of `XX000` for all of them. Defaults to `false`.
    pub fn live_codes(mut self, live: bool) -> Self {
        self.settings.live_codes = live;
        self
    }

    /// Limits API requests per minute, and per second on one route. Requests above a limit are answered with 429.
    /// Neon's limits are 700 and 40. Defaults to no limit.
    pub fn api_limits(mut self, per_minute: u32, per_second_and_route: u32) -> Self {
        self.settings.api_limit = Some((per_minute, per_second_and_route));
        self
    }

    /// Sets the ports of the API and of the proxy on 127.0.0.1. Both default to a free port.
    pub fn ports(mut self, api: u16, proxy: u16) -> Self {
        (self.api_port, self.proxy_port) = (api, proxy);
        self
    }

    /// Sets the API key that is accepted. Defaults to a random one.
    pub fn api_key(mut self, key: impl Into<Secret>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Starts the emulator. The first start in a process takes about half a second.
    ///
    /// # Errors
    /// Returns an error if there is no Postgres server, no PgBouncer or no unprivileged account, or if a port is taken.
    /// The text says what to change.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything that was started.
    pub async fn start(self) -> Result<Emulator, EmulatorError> {
        let (done, started) = tokio::sync::oneshot::channel();
        // The start has its own thread: it blocks, and a runtime must not block or be dropped inside another one.
        std::thread::spawn(move || drop(done.send(self.start_blocking())));
        started.await.unwrap_or_else(|_| {
            Err(EmulatorError::new(
                "the emulator's first thread ended early",
            ))
        })
    }

    fn start_blocking(self) -> Result<Emulator, EmulatorError> {
        let (binaries, account) = (Binaries::find()?, Account::unprivileged()?);
        let scratch = Scratch::new(account)?;
        let template = Template::shared(&binaries, account)?;
        let folder = scratch.path().to_owned();
        let wake_delay = Mutex::new(self.wake_delay);
        let world = World::new(
            Machine {
                binaries,
                account,
                template,
                folder,
                wake_delay,
            },
            self.settings,
        );
        let certificates = Certificates::new(World::host_names())?;
        let root_pem = scratch.path().join("ca.pem");
        fs::write(&root_pem, &certificates.root_pem)
            .map_err(failed("write the root certificate"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tenantry-emulator")
            .enable_all()
            .build()
            .map_err(failed("start threads"))?;
        let key = self
            .api_key
            .unwrap_or_else(|| Secret::new(format!("napi_{}", uuid::Uuid::new_v4().simple())));
        let bind = |port| {
            runtime
                .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
                .map_err(failed("open a port"))
        };
        let (api_listener, proxy_listener) = (bind(self.api_port)?, bind(self.proxy_port)?);
        let address = |listener: &TcpListener| listener.local_addr().map_err(failed("open a port"));
        let (api, proxy_address) = (address(&api_listener)?, address(&proxy_listener)?);
        let gate = Gate::new(certificates.server, certificates.binding);
        let proxy = Proxy::new(Arc::clone(&world), gate);
        let routes = api::router(Arc::clone(&world), key.clone(), Arc::clone(&proxy));
        runtime.spawn(async move { axum::serve(api_listener, routes).await });
        runtime.spawn(Arc::clone(&proxy).serve(proxy_listener));
        let root = certificates.root;
        Ok(Emulator {
            world,
            api,
            proxy,
            proxy_address,
            key,
            root,
            root_pem,
            runtime: Some(runtime),
            scratch: Some(scratch),
        })
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> EmulatorError {
    move |err| EmulatorError::new(format!("cannot {what}")).because(err)
}
