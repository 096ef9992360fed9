#![doc = include_str!("emulator/guide.md")]

mod api;
mod builder;
mod catalog_server;
mod compute;
mod error;
mod fault;
mod host;
mod names;
mod proxy;
mod reason;
mod witness;
mod world;

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::runtime::Runtime;

pub use api::fault::ApiFault;
pub use builder::EmulatorBuilder;
pub use catalog_server::CatalogServer;
pub use compute::stop::Stop;
pub use error::EmulatorError;
pub use fault::Fault;
pub use reason::Reason;
pub use witness::{Wake, Witness};
pub use world::usage::Usage;

use compute::Compute;
use host::scratch::Scratch;
use proxy::Proxy;
use world::World;

use crate::model::{resolve::Resolve, secret::Secret};

/// A running emulator. Dropping it ends everything it started and removes its folder.
///
/// It has threads of its own, so it works under a runtime whose clock is paused, and outlives any runtime.
#[must_use = "it ends if it is dropped at once"]
pub struct Emulator {
    world: Arc<World>,
    api: SocketAddr,
    proxy: Arc<Proxy>,
    proxy_address: SocketAddr,
    key: Secret,
    root: CertificateDer<'static>,
    root_pem: PathBuf,
    runtime: Option<Runtime>,
    // Declared after everything that uses the folder.
    scratch: Option<Scratch>,
}

impl Emulator {
    /// Starts an emulator with the default settings.
    ///
    /// # Errors
    /// As for [`EmulatorBuilder::start`].
    ///
    /// # Cancel safety
    /// Dropping it ends what was started.
    pub async fn start() -> Result<Self, EmulatorError> {
        Self::builder().start().await
    }

    /// Settings for an emulator.
    pub fn builder() -> EmulatorBuilder {
        EmulatorBuilder::new()
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
        self.proxy_address
    }

    /// Turns the emulator's host names into the proxy's address, for
    /// [`RouterBuilder::resolve`](crate::RouterBuilder::resolve). Knows no other names.
    pub fn resolver(&self) -> EmulatorResolver {
        EmulatorResolver {
            proxy: self.proxy_address,
        }
    }

    /// The root of the proxy's certificate (DER), for
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
    ///
    /// The proxy repeats a refusal of the control plane for 30 seconds, also after the fault was cleared, unless it is
    /// [restarted](Self::restart_proxy); and a router remembers it, unless the tenant is
    /// [evicted](crate::TenantRouter::evict).
    pub fn set_fault(&self, endpoint_id: &str, fault: impl Into<Option<Fault>>) -> bool {
        self.at(endpoint_id, |compute| compute.faults.set(fault.into()))
    }

    /// Makes the next `times` requests to the API that begin with `route`, such as `POST /projects`, meet `fault`.
    pub fn fail_api(&self, route: &str, fault: ApiFault, times: u32) {
        self.world.api_faults.add(route.to_owned(), fault, times);
    }

    /// How many requests to the API there were on routes that begin with `route`, such as `POST /projects` or
    /// `GET /projects/{id}/operations`, refused ones too.
    pub fn requests(&self, route: &str) -> u64 {
        self.world.requests.of(route)
    }

    /// How many requests were refused because of [`EmulatorBuilder::api_limits`].
    pub fn refused_requests(&self) -> u64 {
        let limit = self.world.api_limit.as_ref();
        limit.map_or(0, api::limit::ApiLimit::refused)
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

    /// Sessions open now at all computes together, those of deleted ones too.
    ///
    /// One counts from before its client hears that it is let in, on either host, until Postgres or the pooler in front of
    /// it has ended its side, and no longer when the client hears of that. If the client's side breaks off, or the proxy is
    /// restarted, it counts until the proxy has hung up on Postgres, as it does at once. Logins that are refused or wait for the compute, requests to
    /// cancel, and what the emulator or the pooler itself opens at Postgres are no sessions.
    pub fn open_sessions(&self) -> usize {
        self.world.sessions.open()
    }

    /// Most sessions that were open at the same time, each counted as for [`open_sessions`](Self::open_sessions).
    pub fn most_open_sessions(&self) -> usize {
        self.world.sessions.most_open()
    }

    /// Cuts all clients off without a word, and makes the proxy forget which errors it repeats: as when Neon restarts
    /// a proxy. New clients are let in at once.
    pub fn restart_proxy(&self) {
        self.proxy.restart();
    }

    /// Counts `usage` besides what the project really uses, so that a quota is reached without waiting for it. Says
    /// whether there is such a project. A compute that is awake is suspended within a second, if a quota is reached.
    pub fn add_usage(&self, project_id: &str, usage: Usage) -> bool {
        let project = self.world.project(project_id);
        project
            .inspect(|project| project.ledger.add(usage))
            .is_some()
    }

    /// Gives an endpoint's compute another endpoint in place of this one, which is gone: whoever knows only the old
    /// host is told that the password is wrong. Returns the new id, or `None` if there is no such endpoint.
    ///
    /// # Cancel safety
    /// Dropping it leaves the compute awake at worst.
    pub async fn move_endpoint(&self, endpoint_id: &str) -> Option<String> {
        let (compute, moved) = self.world.move_endpoint(endpoint_id)?;
        self.run(async move { compute.suspend(Stop::Neon).await })
            .await?;
        Some(moved)
    }

    /// Gives an endpoint's role another password, at once, and ends its sessions; wakes it for that. Returns the
    /// password, or `None` if there is no such endpoint or it does not start.
    ///
    /// # Cancel safety
    /// Dropping it lets the change be made.
    pub async fn rotate_password(&self, endpoint_id: &str) -> Option<Secret> {
        let (world, endpoint_id) = (Arc::clone(&self.world), endpoint_id.to_owned());
        self.run(async move { world.rotate_password(&endpoint_id).await })
            .await?
    }

    /// Suspends an endpoint as Neon does after its window: pooled clients see a bare close, direct ones `57P01`. Says
    /// whether it was awake. Returns when its Postgres has ended.
    ///
    /// # Cancel safety
    /// Dropping it lets the suspend run.
    pub async fn suspend(&self, endpoint_id: &str) -> bool {
        self.stop(endpoint_id, Stop::Neon).await
    }

    /// Suspends an endpoint in another of the ways that computes stop. Says whether it was awake. Returns when its
    /// Postgres has ended.
    ///
    /// # Cancel safety
    /// Dropping it lets the suspend run.
    pub async fn stop(&self, endpoint_id: &str, how: Stop) -> bool {
        let Some(compute) = self.world.compute(endpoint_id) else {
            return false;
        };
        let stopped = self.run(async move { compute.suspend(how).await });
        stopped.await.unwrap_or(false)
    }

    /// Runs `work` on the emulator's own threads; `None` if they are gone.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.runtime.as_ref()?.spawn(work).await.ok()
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
            .field("proxy", &self.proxy_address)
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
