//! An emulator, and routers that use it.

use std::{future::Future, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use tokio::time::Instant;

use tenantry::{
    Endpoint, Error, ErrorKind, Neon, Provisioner, RouterBuilder, TenantClient, TenantRouter,
    catalog::Memory,
    emulator::{Emulator, EmulatorBuilder, Witness},
    neon::{CreateProject, CreatedProject, NeonBuilder},
    tokio_postgres::Config,
};

use super::LONG;

/// An emulator of a test's own.
pub(crate) struct TestEnv {
    pub(crate) emulator: Emulator,
}

impl TestEnv {
    /// An environment with an emulator of default settings.
    pub(crate) async fn new() -> Self {
        Self::with(|emulator| emulator).await
    }

    /// An environment with an emulator that `set_up` changes first.
    pub(crate) async fn with(set_up: impl FnOnce(EmulatorBuilder) -> EmulatorBuilder) -> Self {
        let quick = Emulator::builder().operation_time(Duration::from_millis(5));
        Self {
            emulator: set_up(quick).start().await.expect("emulator"),
        }
    }

    /// A project whose compute is awake.
    pub(crate) async fn project(&self) -> CreatedProject {
        let created = self
            .neon()
            .create_project(&CreateProject::new("p"))
            .await
            .unwrap();
        self.neon()
            .wait_for_operations(&created.project.id)
            .await
            .unwrap();
        created
    }

    /// A second project of `tenant`, as a creation by `attempt` with a lost answer would leave it. Its id.
    pub(crate) async fn second_project(&self, tenant: &str, attempt: &str) -> String {
        let first = self.projects(tenant).swap_remove(0);
        let mut project = CreateProject::new(first.project_name);
        project.annotations = first.annotations;
        let attempt = attempt.to_owned();
        project
            .annotations
            .insert("tenantry-attempt".to_owned(), attempt);
        self.neon()
            .create_project(&project)
            .await
            .unwrap()
            .project
            .id
    }

    /// A client of the emulator's API.
    pub(crate) fn neon(&self) -> Neon {
        self.neon_with_rate(100_000)
    }

    /// The same with another rate.
    pub(crate) fn neon_with_rate(&self, requests_per_minute: u32) -> Neon {
        let neon = self.neon_builder().requests_per_minute(requests_per_minute);
        neon.build().expect("neon client")
    }

    /// The same for an organization.
    pub(crate) fn neon_with_org(&self, org_id: &str) -> Neon {
        let neon = self.neon_builder().requests_per_minute(100_000);
        neon.org_id(org_id).build().expect("neon client")
    }

    fn neon_builder(&self) -> NeonBuilder {
        Neon::builder(self.emulator.api_key()).base_url(self.emulator.api_url())
    }

    /// A router that provisions in `namespace`, with an empty catalog, to be set up further.
    pub(crate) fn builder(&self, namespace: &str) -> RouterBuilder {
        let provisioner = Provisioner::new(Memory::new(), self.neon(), namespace).on_first_access();
        self.configure(TenantRouter::provisioning(provisioner))
    }

    /// A router whose provisioner is set up first.
    pub(crate) fn provisioning(
        &self,
        set_up: impl FnOnce(Provisioner) -> Provisioner,
    ) -> RouterBuilder {
        let provisioner = Provisioner::new(Memory::new(), self.neon(), "test").on_first_access();
        self.configure(TenantRouter::provisioning(set_up(provisioner)))
    }

    /// `builder`, pointed at the emulator.
    pub(crate) fn configure(&self, builder: RouterBuilder) -> RouterBuilder {
        builder
            .resolve(self.emulator.resolver())
            .root_certificate(self.emulator.root_certificate())
    }

    /// A router that provisions, as it comes.
    pub(crate) fn router(&self) -> TenantRouter {
        self.builder("test").build().expect("router")
    }

    /// Returns what happened at the endpoint of `tenant`, which must have exactly one.
    pub(crate) fn witness(&self, tenant: &str) -> Witness {
        let mut found = self.projects(tenant);
        assert_eq!(found.len(), 1, "projects of {tenant:?}");
        found.remove(0)
    }

    /// The same of each project of `tenant`.
    pub(crate) fn projects(&self, tenant: &str) -> Vec<Witness> {
        let is_its = |it: &Witness| {
            it.annotations
                .get("tenantry-tenant")
                .is_some_and(|id| id == tenant)
        };
        let all = self.emulator.witnesses().into_iter();
        all.filter(is_its).collect()
    }

    /// Returns the endpoint of `it`, as an application's own table would have it.
    pub(crate) async fn endpoint(&self, it: &Witness) -> Endpoint {
        let neon = self.neon();
        let uri = neon.get_connection_uri(
            &it.project_id,
            &it.endpoint_id,
            "neondb",
            "neondb_owner",
            true,
        );
        let config: Config = uri.await.unwrap().expose().parse().unwrap();
        let password = String::from_utf8(config.get_password().unwrap().to_vec()).unwrap();
        let pooled = it.host.replacen('.', "-pooler.", 1);
        Endpoint::neon(&it.host, pooled, "neondb", "neondb_owner", password)
    }

    /// TLS that trusts the emulator, for clients that are not the router.
    pub(crate) fn tls_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.emulator.root_certificate()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Arc::new(config)
    }

    /// Suspends the compute of `tenant`.
    pub(crate) async fn suspend(&self, tenant: &str) {
        assert!(
            self.emulator
                .suspend(&self.witness(tenant).endpoint_id)
                .await,
            "{tenant:?} was asleep already"
        );
    }

    /// Creates `tenant` and suspends its compute. Returns once `router` has noticed that its connections are closed.
    pub(crate) async fn create_suspended(&self, router: &TenantRouter, tenant: &str) {
        drop(retry_timeouts(|| router.get(tenant)).await);
        self.suspend(tenant).await;
        eventually("the router notices the suspension", || {
            let pool = router.explain(tenant).unwrap().pool;
            pool.is_none_or(|pool| pool.open == 0)
        })
        .await;
    }
}

/// Waits until `condition` holds; the test has failed if it does not in a long time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < 4 * LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes a call of a router until its time is enough, which it may not be at once on a busy machine.
pub(crate) async fn retry_timeouts<T, F>(call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, Error>>,
{
    let start = Instant::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(err) => {
                let is_over = matches!(err.kind(), ErrorKind::Timeout(_) | ErrorKind::Provisioning);
                assert!(is_over && start.elapsed() < 4 * LONG, "{err:?}");
            }
        }
    }
}

/// Runs `sql` on `client` and returns the first column of the first row as text.
pub(crate) async fn query_text(client: &TenantClient, sql: &str) -> String {
    let answer = with_timeout(client.simple_query(sql)).await.expect("query");
    let row = answer.iter().find_map(|message| match message {
        tenantry::tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap_or_default().to_owned()
}

/// `future`, which has failed if it takes long.
async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("too long")
}
