#![doc = include_str!("emulator/guide.md")]

mod account;
mod activity;
mod answers;
mod api;
mod api_fault;
mod binaries;
mod certificate;
mod compute;
mod contents;
mod control;
mod create;
mod daemon;
mod error;
mod fault;
mod login;
mod message;
mod names;
mod pooler;
mod process;
mod proxy;
mod scram;
mod scratch;
mod session;
mod startup;
mod template;
mod witness;
mod world;

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::{net::TcpListener, runtime::Runtime};

pub use api_fault::ApiFault;
pub use error::EmulatorError;
pub use fault::Fault;
pub use witness::{Wake, Witness};

use account::Account;
use binaries::Binaries;
use certificate::Certificates;
use compute::{Compute, Machine};
use proxy::{Gate, Proxy};
use scratch::Scratch;
use template::Template;
use world::{Settings, World};

use crate::{resolve::Resolve, secret::Secret};

/// A running emulator. Dropping it ends everything it started and removes its folder.
///
/// It has threads of its own, so it works under a runtime whose clock is paused, and outlives any runtime.
pub struct Emulator {
    world: Arc<World>,
    api: SocketAddr,
    proxy: SocketAddr,
    key: Secret,
    root: CertificateDer<'static>,
    root_pem: PathBuf,
    runtime: Option<Runtime>,
    // Declared after everything that uses the folder.
    scratch: Option<Scratch>,
}

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
    /// Time before each start of a compute. Defaults to none, so that tests are quick; a cold start at Neon takes some
    /// 350 milliseconds.
    pub fn wake_delay(mut self, delay: Duration) -> Self {
        self.wake_delay = delay;
        self
    }

    /// Time without activity after which a compute sleeps, for endpoints that ask for the default. Defaults to Neon's
    /// five minutes, and may be shorter than the minute that Neon's API takes.
    pub fn suspend_after(mut self, window: Duration) -> Self {
        self.settings.suspend_after = window;
        self
    }

    /// How long each operation takes, besides the start of a compute. Defaults to 50 milliseconds. As long as one goes
    /// on, the project is locked.
    pub fn operation_time(mut self, time: Duration) -> Self {
        self.settings.operation_time = time;
        self
    }

    /// Whether a new project's compute starts at once, as at Neon. Defaults to yes; turn it off for thousands of
    /// projects.
    pub fn start_on_create(mut self, start: bool) -> Self {
        self.settings.start_on_create = start;
        self
    }

    /// Whether errors before a session exists carry the SQLSTATEs that Neon's live service has begun to send (2026) in
    /// place of `XX000` for all of them. Defaults to no.
    pub fn live_codes(mut self, live: bool) -> Self {
        self.settings.live_codes = live;
        self
    }

    /// Ports of the API and of the proxy on 127.0.0.1. Default to whatever is free.
    pub fn ports(mut self, api: u16, proxy: u16) -> Self {
        (self.api_port, self.proxy_port) = (api, proxy);
        self
    }

    /// The API key that is taken. Defaults to a random one.
    pub fn api_key(mut self, key: impl Into<Secret>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Starts the emulator. Takes about half a second, the first time in a process.
    ///
    /// # Errors
    /// If there is no Postgres server, no unprivileged account, or a port is taken. The text says what to change.
    ///
    /// # Cancel safety
    /// Dropping it ends what was started.
    pub async fn start(self) -> Result<Emulator, EmulatorError> {
        let (done, started) = tokio::sync::oneshot::channel();
        // A thread of its own: this blocks, and a runtime cannot be made or dropped inside another one.
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
        let (api, proxy) = (address(&api_listener)?, address(&proxy_listener)?);
        let routes = api::router(Arc::clone(&world), key.clone());
        runtime.spawn(async move { axum::serve(api_listener, routes).await });
        let gate = Gate::new(certificates.server, certificates.binding);
        runtime.spawn(Proxy::new(Arc::clone(&world), gate).serve(proxy_listener));
        let root = certificates.root;
        Ok(Emulator {
            world,
            api,
            proxy,
            key,
            root,
            root_pem,
            runtime: Some(runtime),
            scratch: Some(scratch),
        })
    }
}

impl Emulator {
    /// Starts an emulator with the default settings.
    ///
    /// # Errors
    /// As [`EmulatorBuilder::start`].
    pub async fn start() -> Result<Self, EmulatorError> {
        Self::builder().start().await
    }

    /// Settings for an emulator.
    pub fn builder() -> EmulatorBuilder {
        let settings = Settings {
            operation_time: Duration::from_millis(50),
            suspend_after: Duration::from_secs(300),
            start_on_create: true,
            live_codes: false,
        };
        EmulatorBuilder {
            settings,
            wake_delay: Duration::ZERO,
            api_port: 0,
            proxy_port: 0,
            api_key: None,
        }
    }

    /// Where the API answers, for [`NeonBuilder::base_url`](crate::neon::NeonBuilder::base_url).
    pub fn api_url(&self) -> String {
        format!("http://{}{}", self.api, api::BASE)
    }

    /// The key that the API takes.
    pub fn api_key(&self) -> Secret {
        self.key.clone()
    }

    /// Where the proxy takes Postgres clients, whatever the host.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy
    }

    /// Turns the emulator's host names into the proxy's address, for
    /// [`RouterBuilder::resolve`](crate::RouterBuilder::resolve). Knows no other names.
    pub fn resolver(&self) -> EmulatorResolver {
        EmulatorResolver { proxy: self.proxy }
    }

    /// The root of the proxy's certificate, for
    /// [`RouterBuilder::root_certificate`](crate::RouterBuilder::root_certificate).
    pub fn root_certificate(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// The same as a PEM file, for other clients. It goes with the emulator.
    pub fn root_certificate_file(&self) -> PathBuf {
        self.root_pem.clone()
    }

    /// The folder that everything is in. It goes with the emulator.
    pub fn folder(&self) -> PathBuf {
        self.world.folder().clone()
    }

    /// Sets the time before each start of a compute, from now on.
    pub fn set_wake_delay(&self, delay: Duration) {
        *self
            .world
            .machine
            .wake_delay
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Sets the time before each start of one endpoint's compute, from now on. Says whether there is such an endpoint.
    pub fn set_wake_delay_of(&self, endpoint_id: &str, delay: Duration) -> bool {
        self.at(endpoint_id, |compute| compute.set_wake_delay(delay))
    }

    /// Makes something go wrong at an endpoint, for whoever connects, until it is cleared with `None`. Says whether
    /// there is such an endpoint.
    pub fn set_fault(&self, endpoint_id: &str, fault: impl Into<Option<Fault>>) -> bool {
        self.at(endpoint_id, |compute| compute.faults.set(fault.into()))
    }

    /// Makes the next `times` requests to the API that begin with `route`, such as `POST /projects`, meet `fault`.
    pub fn fail_api(&self, route: &str, fault: ApiFault, times: u32) {
        self.world.api_faults.add(route.to_owned(), fault, times);
    }

    /// Makes the API's search miss a project for so long after its creation. Neon promises nothing about that.
    pub fn set_search_lag(&self, lag: Duration) {
        self.world.set_search_lag(lag);
    }

    /// Stops all processes of a compute in their tracks: whoever waits for them waits on. Says whether there is such an
    /// endpoint.
    pub fn freeze(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::freeze)
    }

    /// Lets a frozen compute go on. Says whether there is such an endpoint.
    pub fn thaw(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::thaw)
    }

    /// Kills all processes of a compute: no goodbye to anybody, and recovery at the next start. Says whether there is
    /// such an endpoint.
    pub fn crash(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::crash)
    }

    fn at(&self, endpoint_id: &str, act: impl FnOnce(&Compute)) -> bool {
        self.world
            .compute(endpoint_id)
            .map(|compute| act(&compute))
            .is_some()
    }

    /// What happened at each endpoint, oldest first. Deleted ones are gone from it.
    pub fn witnesses(&self) -> Vec<Witness> {
        self.world.witnesses()
    }

    /// Suspends an endpoint as Neon does after its window: pooled clients see a bare close, direct ones `57P01`. Says
    /// whether it was awake. Returns when its Postgres has ended.
    ///
    /// # Cancel safety
    /// Dropping it lets the suspend run.
    pub async fn suspend(&self, endpoint_id: &str) -> bool {
        let (Some(compute), Some(runtime)) = (self.world.compute(endpoint_id), &self.runtime)
        else {
            return false;
        };
        runtime
            .spawn(async move { compute.suspend().await })
            .await
            .unwrap_or(false)
    }

    /// Suspends every endpoint that is awake.
    ///
    /// # Cancel safety
    /// Dropping it leaves those asleep that were reached.
    pub async fn suspend_all(&self) {
        for witness in self.witnesses() {
            self.suspend(&witness.endpoint_id).await;
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // No new starts from here on. In a thread of its own, because a runtime may not end inside another one.
            let ending =
                std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)));
            drop(ending.join());
        }
        drop(self.scratch.take()); // the watchdog stops what runs
        self.world.reap();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("api", &self.api)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

/// Knows the emulator's host names, and no others.
#[derive(Clone, Copy, Debug)]
pub struct EmulatorResolver {
    proxy: SocketAddr,
}

impl Resolve for EmulatorResolver {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        if names::is_own_host(host) {
            Ok(vec![self.proxy])
        } else {
            Err(io::Error::new(
                io::ErrorKind::NotFound,
                "not a host of the emulator",
            ))
        }
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> EmulatorError {
    move |err| EmulatorError::new(format!("cannot {what}")).because(err)
}
