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

/// A running emulator. Dropping it stops every process that it started and removes its folder.
///
/// It runs on its own threads, so it works under a runtime with a paused clock, and outlives any runtime.
#[must_use = "dropping this value stops everything that it started"]
pub struct Emulator {
    world: Arc<World>,
    api: SocketAddr,
    proxy: Arc<Proxy>,
    proxy_address: SocketAddr,
    key: Secret,
    root: CertificateDer<'static>,
    root_pem: PathBuf,
    runtime: Option<Runtime>,
    // Declared last, so that it is dropped after everything that uses the folder.
    scratch: Option<Scratch>,
}

impl Emulator {
    /// Starts an emulator with the default settings.
    ///
    /// # Errors
    /// The same as for [`EmulatorBuilder::start`].
    ///
    /// # Cancel safety
    /// Dropping the future stops everything that was started.
    pub async fn start() -> Result<Self, EmulatorError> {
        Self::builder().start().await
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> EmulatorBuilder {
        EmulatorBuilder::new()
    }

    /// Returns the base URL of the API, for [`NeonBuilder::base_url`](crate::neon::NeonBuilder::base_url).
    pub fn api_url(&self) -> String {
        format!("http://{}{}", self.api, api::BASE)
    }

    /// Returns the key that the API accepts.
    pub fn api_key(&self) -> Secret {
        self.key.clone()
    }

    /// Returns the address at which the proxy accepts Postgres clients, for every host name.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy_address
    }

    /// Returns a resolver that maps the emulator's host names to the proxy's address, for
    /// [`RouterBuilder::resolve`](crate::RouterBuilder::resolve). It knows no other names.
    pub fn resolver(&self) -> EmulatorResolver {
        EmulatorResolver {
            proxy: self.proxy_address,
        }
    }

    /// Returns the root of the proxy's certificate (DER), for
    /// [`RouterBuilder::root_certificate`](crate::RouterBuilder::root_certificate).
    pub fn root_certificate(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// Returns the path of the root certificate as a PEM file, for other clients. The file is removed with the
    /// emulator.
    pub fn root_certificate_file(&self) -> PathBuf {
        self.root_pem.clone()
    }

    /// Returns the folder that holds all of the emulator's files. It is removed with the emulator.
    pub fn folder(&self) -> PathBuf {
        self.world.folder().clone()
    }

    /// Sets the delay before each start of a compute, from now on.
    pub fn set_wake_delay(&self, delay: Duration) {
        *self
            .world
            .machine
            .wake_delay
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Sets the delay before each start of one endpoint's compute, from now on. Returns whether the endpoint exists.
    pub fn set_wake_delay_of(&self, endpoint_id: &str, delay: Duration) -> bool {
        self.at(endpoint_id, |compute| compute.set_wake_delay(delay))
    }

    /// Sets the fault that every client of an endpoint meets, until it is cleared with `None` or has happened as often
    /// as it says. Returns whether the endpoint exists.
    ///
    /// The proxy repeats a refusal of the control plane for 30 seconds, even after the fault was cleared, unless the
    /// proxy is [restarted](Self::restart_proxy). A router remembers the refusal too, unless the tenant is
    /// [evicted](crate::TenantRouter::evict).
    pub fn set_fault(&self, endpoint_id: &str, fault: impl Into<Option<Fault>>) -> bool {
        self.at(endpoint_id, |compute| compute.faults.set(fault.into()))
    }

    /// Makes the next `times` API requests that begin with `route`, such as `POST /projects`, meet `fault`.
    pub fn fail_api(&self, route: &str, fault: ApiFault, times: u32) {
        self.world.api_faults.add(route.to_owned(), fault, times);
    }

    /// Returns the number of API requests on routes that begin with `route`, such as `POST /projects` or
    /// `GET /projects/{id}/operations`. Refused requests count too.
    pub fn requests(&self, route: &str) -> u64 {
        self.world.requests.of(route)
    }

    /// Returns the number of API requests that were refused because of [`EmulatorBuilder::api_limits`].
    pub fn refused_requests(&self) -> u64 {
        let limit = self.world.api_limit.as_ref();
        limit.map_or(0, api::limit::ApiLimit::refused)
    }

    /// Sets the time for which the API's search misses a new project. Neon promises nothing about that time.
    pub fn set_search_lag(&self, lag: Duration) {
        self.world.set_search_lag(lag);
    }

    /// Freezes all processes of a compute (SIGSTOP). Clients that wait for them keep waiting. Returns whether the
    /// endpoint exists.
    pub fn freeze(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::freeze)
    }

    /// Resumes a frozen compute. Returns whether the endpoint exists.
    pub fn thaw(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::thaw)
    }

    /// Kills all processes of a compute. Clients get no last message, and Postgres recovers at its next start. Returns
    /// whether the endpoint exists.
    pub fn crash(&self, endpoint_id: &str) -> bool {
        self.at(endpoint_id, Compute::crash)
    }

    fn at(&self, endpoint_id: &str, act: impl FnOnce(&Compute)) -> bool {
        self.world
            .compute(endpoint_id)
            .map(|compute| act(&compute))
            .is_some()
    }

    /// Returns what happened at each endpoint, oldest endpoint first. Deleted endpoints are left out.
    pub fn witnesses(&self) -> Vec<Witness> {
        self.world.witnesses()
    }

    /// Returns the number of sessions open now at all computes together, including deleted ones.
    ///
    /// A session counts from just before its client learns that it is let in, on either host, until Postgres or the
    /// pooler in front of it has closed its side. It no longer counts once the client sees that close. If the client
    /// disconnects or the proxy is restarted, the proxy disconnects from Postgres at once, and the session counts until
    /// then. The count excludes logins that are refused or wait for the compute, cancel requests, and connections that
    /// the emulator or the pooler itself opens to Postgres.
    pub fn open_sessions(&self) -> usize {
        self.world.sessions.open()
    }

    /// Returns the largest number of sessions that were open at the same time, counted as for
    /// [`open_sessions`](Self::open_sessions).
    pub fn most_open_sessions(&self) -> usize {
        self.world.sessions.most_open()
    }

    /// Restarts the proxy as Neon does: it drops all client connections without a message, and forgets which errors it
    /// repeats. It accepts new clients at once.
    pub fn restart_proxy(&self) {
        self.proxy.restart();
    }

    /// Adds `usage` to what the project really uses, so that a quota is reached without waiting for it. Returns whether
    /// the project exists. If a quota is reached, an awake compute is suspended within a second.
    pub fn add_usage(&self, project_id: &str, usage: Usage) -> bool {
        let project = self.world.project(project_id);
        project
            .inspect(|project| project.ledger.add(usage))
            .is_some()
    }

    /// Moves an endpoint's compute to a new endpoint and suspends it. The old endpoint is gone: a client that connects
    /// to its host is told that the password is wrong. Returns the new id, or `None` if the endpoint does not exist.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the compute awake at worst.
    pub async fn move_endpoint(&self, endpoint_id: &str) -> Option<String> {
        let (compute, moved) = self.world.move_endpoint(endpoint_id)?;
        self.run(async move { compute.suspend(Stop::Neon).await })
            .await?;
        Some(moved)
    }

    /// Changes the password of an endpoint's role at once, and ends its sessions. Wakes the compute for that. Returns
    /// the new password, or `None` if the endpoint does not exist or does not start.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the change.
    pub async fn rotate_password(&self, endpoint_id: &str) -> Option<Secret> {
        let (world, endpoint_id) = (Arc::clone(&self.world), endpoint_id.to_owned());
        self.run(async move { world.rotate_password(&endpoint_id).await })
            .await?
    }

    /// Suspends an endpoint as Neon does after its suspend window: pooled clients see a bare close, direct ones
    /// `57P01`. Returns whether it was awake, once its Postgres has ended.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the suspend.
    pub async fn suspend(&self, endpoint_id: &str) -> bool {
        self.stop(endpoint_id, Stop::Neon).await
    }

    /// Stops an endpoint's compute in the given way. Returns whether it was awake, once its Postgres has ended.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the suspend.
    pub async fn stop(&self, endpoint_id: &str, how: Stop) -> bool {
        let Some(compute) = self.world.compute(endpoint_id) else {
            return false;
        };
        let stopped = self.run(async move { compute.suspend(how).await });
        stopped.await.unwrap_or(false)
    }

    /// Runs `work` on the emulator's own threads. Returns `None` if they are gone.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.runtime.as_ref()?.spawn(work).await.ok()
    }

    /// Suspends every endpoint that is awake.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some endpoints awake. The others stay suspended.
    pub async fn suspend_all(&self) {
        for witness in self.witnesses() {
            self.suspend(&witness.endpoint_id).await;
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // From here on no compute starts. The runtime ends on its own thread, because it must not end inside
            // another runtime.
            let ending =
                std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)));
            drop(ending.join());
        }
        drop(self.scratch.take()); // the watchdog stops all processes
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

/// A resolver of the emulator's host names, and of no others.
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
