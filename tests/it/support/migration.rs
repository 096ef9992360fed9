//! Databases of tenants on one plain Postgres, which an application's own look-up or a catalog names, and processes
//! that migrate them.

use std::{
    collections::HashMap,
    env,
    fmt::Debug,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tenantry::{
    Catalog, Endpoint, Moment, RouterBuilder, Schema, TenantId, TenantRouter,
    catalog::{AfterWrite, Leased, Placement, Postgres, Record, State},
    emulator::CatalogServer,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use url::Url;

use super::{
    LEASE, LONG, LossyProxy, backend::Backend, fake_control_plane::FakeControlPlane, keys, session,
};

/// The time of a lease, which a killed process leaves behind.
const LEASE_TIME: Duration = Duration::from_millis(2500);
/// Names what a process that migrates is to do: the server's URL, the catalog's if there is one, the tenants, the
/// schema, and the moment to stay at.
const SETTINGS: &str = "TENANTRY_TEST_MIGRATION";
/// The test that is such a process where [`SETTINGS`] are given.
const MIGRATION_TEST: &str = "schema_crashes::a_process_migrates";
const OUTPUT_PREFIX: &str = "migration: ";
/// In place of a moment: each tenant stays at the one that it is named after.
const AS_NAMED: &str = "as named";
/// The tenant that does not stay there. Its process says when the first COMMIT is about to be sent.
pub(crate) const COMMITTING: &str = "committing";

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

/// A schema of so many steps, in transactions. Each step writes its number, so that a step that ran twice is seen twice.
pub(crate) fn counted_to(latest: i64) -> Schema {
    let first = "CREATE TABLE log (step int); INSERT INTO log VALUES (1)";
    let schema = Schema::new().step(1, "log", first);
    (2..=latest).fold(schema, |schema, version| {
        let sql = format!("INSERT INTO log VALUES ({version})");
        schema.step(version, "more", sql)
    })
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
        leased(&self.server.url(), Stay::at(""))
    }

    /// The same, of a process to which no change is reported, and which remembers one tenant.
    pub(crate) fn uninformed_router(&self, schema: Schema) -> TenantRouter {
        let builder = leased(&self.server.url(), Stay::at(""))
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

    /// Starts a process that migrates all `tenants` at once with the catalog. Each stays at the moment or failpoint that
    /// [`Stay::named`] says if `stays`.
    pub(crate) fn process_of_many(&self, schema: &str, tenants: &[String], stays: bool) -> Process {
        let moment = if stays { AS_NAMED } else { "" };
        self.start(&self.server.url(), schema, &tenants.join(","), moment)
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
        Process {
            child,
            lines: Some(Lines(output)),
        }
    }
}

/// A process that migrates.
pub(crate) struct Process {
    child: Child,
    lines: Option<Lines>,
}

/// The lines that a process says.
pub(crate) struct Lines(BufReader<ChildStdout>);

impl Lines {
    /// Returns the next one, or `None` once the process has ended.
    ///
    /// # Cancel safety
    /// Dropping the future may lose a line.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.0.read_line(&mut line).await.unwrap() > 0 {
            if let Some((_, said)) = line.split_once(OUTPUT_PREFIX) {
                return Some(said.trim().to_owned());
            }
            line.clear();
        }
        None
    }
}

impl Process {
    /// Returns what it says next: the moment at which it stays, or the outcome.
    pub(crate) async fn says(&mut self) -> String {
        let lines = self.lines.as_mut().expect("its lines are read elsewhere");
        let said = timeout(4 * LONG, lines.next()).await;
        let said = said.expect("a process is silent");
        said.unwrap_or_else(|| "nothing".to_owned())
    }

    /// Returns all that it will say.
    pub(crate) fn lines(&mut self) -> Lines {
        self.lines.take().expect("its lines are read elsewhere")
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
    let [url, catalog, tenants, name, moment] = settings[..] else {
        panic!("settings: {settings:?}");
    };
    let stay = Stay::at(moment);
    let stays = Arc::clone(&stay);
    let schema = schema(name).at_each_moment(move |at, tenant| stays.reach(&at, &tenant));
    let router = match catalog {
        "" => router(url, schema),
        catalog => leased(catalog, stay)
            .schema(schema)
            .build()
            .expect("router"),
    };
    let is_one = !tenants.contains(',');
    let calls = tenants.split(',').map(async |tenant| {
        let outcome = match router.migrate(tenant).await {
            Ok(migrated) => format!("{} to {}", migrated.from, migrated.to),
            Err(err) => format!("{err:?}"),
        };
        say(tenant, &outcome, is_one);
    });
    join_all(calls).await;
    true
}

/// Says something of a tenant, whose name is left out if it is the only one.
fn say(tenant: &str, what: &str, is_one: bool) {
    if is_one {
        println!("{OUTPUT_PREFIX}{what}");
    } else {
        println!("{OUTPUT_PREFIX}{tenant} {what}");
    }
}

/// The moment or failpoint at which a process stays.
struct Stay {
    at: String,
    /// Number of times that each tenant has come to each of them.
    reached: Mutex<HashMap<String, u32>>,
}

impl Stay {
    fn at(at: &str) -> Arc<Self> {
        Arc::new(Self {
            at: at.to_owned(),
            reached: Mutex::default(),
        })
    }

    /// Says that the process has come to `at` with `tenant`, and stays there, if that is where it is to stay.
    fn reach(&self, at: &dyn Debug, tenant: &TenantId) -> impl Future<Output = ()> + Send + use<> {
        let (at, tenant) = (format!("{at:?}"), tenant.as_str());
        let stays = if self.at == AS_NAMED {
            self.reach_as_named(&at, tenant)
        } else {
            let stays = self.at == at;
            if stays {
                say(tenant, &at, true);
            }
            stays
        };
        async move {
            if stays {
                std::future::pending::<()>().await;
            }
        }
    }

    fn reach_as_named(&self, at: &str, tenant: &str) -> bool {
        let named = {
            let mut reached = self.reached.lock().unwrap();
            let times = reached.entry(format!("{tenant} {at}")).or_default();
            *times += 1;
            Self::named(at, *times)
        };
        if tenant == named || (tenant == COMMITTING && at == "StepWritten") {
            say(tenant, "stays", false);
        }
        tenant == named
    }

    /// The name of a tenant that stays at a moment when it comes to it for the time of that number, from 1 on.
    fn named(at: &str, times: u32) -> String {
        format!("{}{times}", at.to_lowercase())
    }
}

/// The name of a tenant that stays at a moment or failpoint when it comes to it for the time of that number.
pub(crate) fn staying_at(at: &dyn Debug, times: u32) -> String {
    Stay::named(&format!("{at:?}"), times)
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

/// A router with the catalog at `url`, which stays where `stay` says.
fn leased(url: &str, stay: Arc<Stay>) -> RouterBuilder {
    let provisioner = FakeControlPlane::provisioner(&Backend::default(), catalog_at(url));
    let provisioner = provisioner.lease_time(LEASE_TIME);
    let provisioner = provisioner.at_each_step(move |at, tenant| stay.reach(&at, &tenant));
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
