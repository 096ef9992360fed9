//! One Postgres with a role for each tenant, the front before it, and a PgBouncer before that.

use std::{fs, path::PathBuf};

use tenantry::{
    BoxError,
    emulator::CatalogServer,
    tokio_postgres::{Client, Config, NoTls, config::Host},
};

use crate::{
    front::Front,
    traffic::{CALLERS, Task},
    ways::role,
};

/// Sessions of Postgres beyond those that a way may have: the pools in a map have more.
const SPARE: usize = 500;
/// Its superuser.
const ADMIN: &str = "cloud_admin";

pub(crate) struct Place {
    pub(crate) front: Front,
    tenants: usize,
    pools: usize,
    folder: PathBuf,
    pgbouncer: String,
    // The servers, as long as they are asked.
    _server: CatalogServer,
}

impl Place {
    /// Roles for so many tenants, of which so many may have a pool.
    pub(crate) async fn new(tenants: usize, pools: usize) -> Result<Self, BoxError> {
        let server = CatalogServer::start().await?;
        let mut config: Config = server.url().parse()?;
        config.user(ADMIN);
        let [Host::Unix(folder)] = config.get_hosts() else {
            return Err("the server has no socket".into());
        };
        let folder = folder.clone();
        let connections = pools + CALLERS;
        let most = connections + SPARE;
        let setting = format!("ALTER SYSTEM SET max_connections = {most}");
        connect(&config).await?.batch_execute(&setting).await?;
        server.stop().await;
        server.resume().await?;
        connect(&config)
            .await?
            .batch_execute(&roles(tenants))
            .await?;
        let front = Front::start(folder.join(".s.PGSQL.5432")).await?;
        let settings = pgbouncer_settings(front.address().port(), connections);
        server.pooled_url_with(&settings).await?;
        Ok(Self {
            front,
            tenants,
            pools,
            pgbouncer: process_in(&folder, "pgbouncer")?,
            folder,
            _server: server,
        })
    }

    /// The task of a process that asks by `way`.
    pub(crate) fn task(&self, way: &str, queries: usize) -> Task {
        Task {
            way: way.to_owned(),
            queries,
            tenants: self.tenants,
            pools: self.pools,
            connections: self.pools + CALLERS,
            front: self.front.address(),
            folder: self.folder.clone(),
            pgbouncer: self.pgbouncer.clone(),
        }
    }
}

/// The statement that creates a role for each tenant.
fn roles(tenants: usize) -> String {
    let create = |tenant| format!("CREATE ROLE {} LOGIN;", role(tenant));
    (0..tenants).map(create).collect()
}

/// The id of the process with this name that runs in `folder`.
fn process_in(folder: &PathBuf, name: &str) -> Result<String, BoxError> {
    let folder = fs::canonicalize(folder)?;
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let is_here = fs::read_link(path.join("cwd")).is_ok_and(|it| it == folder);
        let its_name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if is_here && its_name.trim() == name {
            return Ok(process.file_name().to_string_lossy().into_owned());
        }
    }
    Err(format!("{name} does not run").into())
}

async fn connect(config: &Config) -> Result<Client, BoxError> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await; // a query on it fails when it has ended
    });
    Ok(client)
}

/// Settings as Neon's, but with so many connections for all roles together, to the front.
fn pgbouncer_settings(front: u16, connections: usize) -> String {
    format!(
        "[databases]
* = host=127.0.0.1 port={front}
pgbouncer_auth = port=5432 dbname=postgres pool_size=1
[pgbouncer]
listen_addr =
server_tls_sslmode = disable
auth_type = trust
auth_user = {ADMIN}
auth_dbname = pgbouncer_auth
auth_query = SELECT rolname::text, ''::text FROM pg_roles WHERE rolname = $1
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 4
max_db_connections = {connections}
log_connections = 0
log_disconnections = 0
ignore_startup_parameters = extra_float_digits"
    )
}
