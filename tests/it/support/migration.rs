//! Databases of tenants on one plain Postgres, which an application's own look-up or a catalog names, and processes
//! that migrate them.

use std::{env, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tenantry::{
    Catalog, Endpoint, Moment, RouterBuilder, Schema, TenantId, TenantRouter,
    catalog::{AfterWrite, Leased, Placement, Postgres, Record, State},
    emulator::CatalogServer,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use url::Url;

use super::{
    LEASE, LONG, LossyProxy, backend::Backend, fake_control_plane::FakeControlPlane, keys, session,
};

/// The time of a lease, which a killed process leaves behind.
const LEASE_TIME: Duration = Duration::from_millis(2500);
/// Names what a process that migrates is to do: the server's URL, the catalog's if there is one, the tenant, the
/// schema, and the moment to stay at.
const SETTINGS: &str = "TENANTRY_TEST_MIGRATION";
/// The test that is such a process where [`SETTINGS`] are given.
const MIGRATION_TEST: &str = "schema_crashes::a_process_migrates";
const OUTPUT_PREFIX: &str = "migration: ";

/// Returns a schema, one step of which builds an index. Each step writes its number, so that a step that ran twice is
/// seen twice.
pub(crate) fn counted() -> Schema {
    Schema::new()
        .step(
            1,
            "log",
            "CREATE TABLE log (step int); INSERT INTO log VALUES (1)",
        )
        .step(
            2,
            "index",
            "CREATE INDEX CONCURRENTLY log_step ON log (step)",
        )
        .outside_transaction()
        .step(3, "three", "INSERT INTO log VALUES (3)")
}

/// One database for each tenant.
pub(crate) struct Databases {
    server: CatalogServer,
    pub(crate) way: LossyProxy,
}

impl Databases {
    pub(crate) async fn of(tenants: &[&str]) -> Self {
        let server = CatalogServer::start().await.expect("a server");
        let way = LossyProxy::to(&server).await;
        let client = session(&server.url()).await;
        for tenant in tenants {
            let create = format!("CREATE DATABASE \"{tenant}\"");
            client.batch_execute(&create).await.unwrap();
        }
        Self { server, way }
    }

    /// The same, with a record of each tenant in a catalog.
    pub(crate) async fn recorded(tenants: &[&str]) -> Self {
        let databases = Self::of(tenants).await;
        for tenant in tenants {
            databases.change_record(tenant, |_| ()).await;
        }
        databases
    }

    /// A router of an application with these tenants in its catalog.
    pub(crate) fn leased_router(&self, schema: Schema) -> TenantRouter {
        let builder = self.leased_builder();
        builder.schema(schema).build().expect("router")
    }

    /// The same, to be built.
    pub(crate) fn leased_builder(&self) -> RouterBuilder {
        leased(&self.server.url(), |_| false)
    }

    /// The same, of a process to which no change is reported, and which remembers one tenant.
    pub(crate) fn uninformed_router(&self, schema: Schema) -> TenantRouter {
        let builder = leased(&self.server.url(), |_| false)
            .catalog_poll(None)
            .known_tenants(1);
        builder.schema(schema).build().expect("router")
    }

    /// The catalog's record of `tenant`.
    pub(crate) async fn record(&self, tenant: &str) -> Record {
        let tenant = TenantId::parse(tenant).unwrap();
        let found = catalog_at(&self.server.url()).find(&tenant).await;
        found.unwrap().expect("a record")
    }

    /// Changes the catalog's record of `tenant`, as another process does. It has one afterwards.
    pub(crate) async fn change_record(&self, tenant: &str, change: impl FnOnce(&mut Record)) {
        let catalog = catalog_at(&self.server.url());
        let id = TenantId::parse(tenant).unwrap();
        let Leased::Granted(lease, record) = catalog.lease(&id, "test", LEASE).await.unwrap()
        else {
            panic!("another process has the lease on {tenant}");
        };
        let mut record = *record;
        record.state = State::Ready;
        record.placement = Some(Placement::new(tenant));
        record.endpoint = Some(endpoint(self.way.url(), tenant));
        change(&mut record);
        let written = catalog.write(&lease, &record, AfterWrite::Release).await;
        assert!(written.unwrap());
    }

    /// A session of the test's own in the catalog.
    pub(crate) async fn catalog_session(&self) -> tenantry::tokio_postgres::Client {
        session(&self.server.url()).await
    }

    /// A router of an application with these tenants.
    pub(crate) fn router(&self, schema: Schema) -> TenantRouter {
        router(self.way.url(), schema)
    }

    /// A session of the test's own in the database of `tenant`.
    pub(crate) async fn session(&self, tenant: &str) -> tenantry::tokio_postgres::Client {
        let mut url = Url::parse(self.way.url()).unwrap();
        url.set_path(tenant);
        session(url.as_str()).await
    }

    /// Starts a process that migrates `tenant` by the schema of that name, and stays at `moment` if it gets there.
    pub(crate) fn process(&self, schema: &str, tenant: &str, moment: Option<Moment>) -> Process {
        let moment = moment.map(|it| format!("{it:?}")).unwrap_or_default();
        self.start("", schema, tenant, &moment)
    }

    /// The same with the catalog. The moment is also a failpoint.
    pub(crate) fn leased_process(&self, schema: &str, tenant: &str, moment: &str) -> Process {
        self.start(&self.server.url(), schema, tenant, moment)
    }

    fn start(&self, catalog: &str, schema: &str, tenant: &str, moment: &str) -> Process {
        let settings = [self.way.url(), catalog, tenant, schema, moment].join("\n");
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", MIGRATION_TEST, "--nocapture"])
            .env(SETTINGS, settings)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, output }
    }
}

/// A process that migrates.
pub(crate) struct Process {
    child: Child,
    output: BufReader<tokio::process::ChildStdout>,
}

impl Process {
    /// Returns what it says next: the moment at which it stays, or the outcome.
    pub(crate) async fn says(&mut self) -> String {
        let said = async {
            let mut line = String::new();
            while self.output.read_line(&mut line).await.unwrap() > 0 {
                if let Some((_, said)) = line.split_once(OUTPUT_PREFIX) {
                    return said.trim().to_owned();
                }
                line.clear();
            }
            "nothing".to_owned()
        };
        timeout(4 * LONG, said).await.expect("a process is silent")
    }

    /// Makes it stand still, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        kill_process(pid.and_then(Pid::from_raw).expect("it runs"), signal).expect("signal");
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("kill");
    }
}

/// Migrates by the schema that `schema` returns for its name, if the process is started for that. Says whether it was.
pub(crate) async fn run_as_migration(schema: impl Fn(&str) -> Schema) -> bool {
    let Ok(settings) = env::var(SETTINGS) else {
        return false;
    };
    let settings: Vec<_> = settings.split('\n').collect();
    let [url, catalog, tenant, name, stay] = settings[..] else {
        panic!("settings: {settings:?}");
    };
    let (stay, moment) = (stay.to_owned(), stay.to_owned());
    let schema = schema(name).at_each_moment(move |at, _| stay_at(&format!("{at:?}"), &moment));
    let router = match catalog {
        "" => router(url, schema),
        catalog => {
            let builder = leased(catalog, move |at| at == stay);
            builder.schema(schema).build().expect("router")
        }
    };
    match router.migrate(tenant).await {
        Ok(migrated) => println!("{OUTPUT_PREFIX}{} to {}", migrated.from, migrated.to),
        Err(err) => println!("{OUTPUT_PREFIX}{err:?}"),
    }
    true
}

/// Says that the process has come to `at`, and stays there, if that is where it is to stay.
fn stay_at(at: &str, stay: &str) -> impl Future<Output = ()> + Send + use<> {
    let said = (at == stay).then(|| format!("{OUTPUT_PREFIX}{at}"));
    async move {
        if let Some(said) = said {
            println!("{said}");
            std::future::pending::<()>().await;
        }
    }
}

/// A router whose look-up finds each tenant in the database of its name.
fn router(url: &str, schema: Schema) -> TenantRouter {
    let url = url.to_owned();
    let lookup = move |tenant: TenantId| {
        let endpoint = endpoint(&url, tenant.as_str());
        async move { Ok(Some(endpoint)) }
    };
    let router = TenantRouter::builder(lookup).get_timeout(LONG);
    router.schema(schema).build().expect("router")
}

/// A router with the catalog at `url`, which stays at a failpoint if `stays` says so.
fn leased(url: &str, stays: impl Fn(&str) -> bool + Send + Sync + 'static) -> RouterBuilder {
    let provisioner = FakeControlPlane::provisioner(&Backend::default(), catalog_at(url));
    let provisioner = provisioner.lease_time(LEASE_TIME);
    let provisioner = provisioner.at_each_step(move |at, _| {
        let at = format!("{at:?}");
        let stay = if stays(&at) {
            at.clone()
        } else {
            String::new()
        };
        stay_at(&at, &stay)
    });
    TenantRouter::provisioning(provisioner).get_timeout(LONG)
}

fn catalog_at(url: &str) -> Postgres {
    let catalog = Postgres::builder(url).namespace("test").listen(false);
    catalog.keys(keys()).build().expect("catalog")
}

/// The database of `tenant` on the server at `url`.
fn endpoint(url: &str, tenant: &str) -> Endpoint {
    let url = Url::parse(url).unwrap();
    let endpoint = Endpoint::postgres("127.0.0.1", tenant, url.username(), "none");
    endpoint.port(url.port().unwrap()).without_tls()
}
