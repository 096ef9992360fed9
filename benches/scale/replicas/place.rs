//! A catalog in Postgres with many tenants, and a writer of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    BoxError, Catalog, KeyRing, Namespace, TenantId,
    catalog::{AfterWrite, Leased, Postgres, Record},
    emulator::CatalogServer,
    tokio_postgres::{Client, Config, NoTls},
};
use tokio::{task::JoinSet, time::sleep};

use super::{
    Seen,
    replica::{Replica, totals},
};

pub(super) const NAMESPACE: &str = "bench";
const LEASE: Duration = Duration::from_secs(30);
/// Time between two looks at whether all sessions have ended.
const SETTLE: Duration = Duration::from_millis(50);

pub(super) struct Place {
    pub(super) tenants: usize,
    pub(super) config: Config,
    client: Client,
    writer: Option<Postgres>,
    limits: AtomicUsize,
    /// Replicas that run.
    listeners: AtomicU32,
    /// Transactions that are no calls of replicas: each write is two, and one more for each replica that it notifies.
    transactions: AtomicU32,
    /// Calls of replicas that have ended.
    calls: f64,
    /// Postgres's own counts, before anything was asked.
    before: Counts,
    // The server, as long as the others ask it.
    _server: CatalogServer,
}

/// The statistics of Postgres. Transactions are those beyond one that begins each session.
struct Counts {
    transactions: f64,
    sequential_scans: f64,
}

impl Place {
    pub(super) async fn new(tenants: usize) -> Result<Self, BoxError> {
        let server = CatalogServer::start().await?;
        let config: Config = server.url().parse()?;
        catalog(&server.url())?.migrate().await?;
        let filler = connect(&config).await?;
        for statement in fill(tenants) {
            filler.batch_execute(&statement).await?;
        }
        drop(filler);
        let (client, writer) = (connect(&config).await?, catalog(&server.url())?);
        writer.bind(&Namespace::parse(NAMESPACE)?, true)?;
        Ok(Self {
            tenants,
            config,
            before: counts(&client).await?,
            client,
            writer: Some(writer),
            limits: AtomicUsize::new(5),
            listeners: AtomicU32::new(0),
            transactions: AtomicU32::new(0),
            calls: 0.0,
            _server: server,
        })
    }

    /// So many replicas that know all tenants.
    pub(super) async fn start(
        &self,
        count: usize,
        ttl: Option<Duration>,
    ) -> Result<Vec<Arc<Replica>>, BoxError> {
        let mut started = JoinSet::new();
        for _ in 0..count {
            self.listeners.fetch_add(1, Relaxed);
            started.spawn(Replica::start(self.config.clone(), self.tenants, ttl));
        }
        let mut replicas = Vec::new();
        while let Some(replica) = started.join_next().await {
            replicas.push(Arc::new(replica??));
        }
        Ok(replicas)
    }

    /// Ends replicas and notes the calls that they have made.
    pub(super) async fn end(&mut self, replicas: Vec<Arc<Replica>>) {
        for replica in &replicas {
            replica.router.close().await;
            self.listeners.fetch_sub(1, Relaxed);
        }
        self.calls += totals(&replicas).0;
    }

    /// A limit of connections that no tenant has had.
    pub(super) fn unused_limit(&self) -> usize {
        self.limits.fetch_add(1, Relaxed)
    }

    /// Changes a record.
    pub(super) async fn write(
        &self,
        tenant: &TenantId,
        edit: impl FnOnce(&mut Record),
    ) -> Result<(), BoxError> {
        let writer = self.writer.as_ref().ok_or("the writer has ended")?;
        let leased = writer.lease(tenant, NAMESPACE, LEASE).await?;
        let Leased::Granted(lease, mut record) = leased else {
            return Err("another owner has the lease".into());
        };
        edit(&mut record);
        let listeners = self.listeners.load(Relaxed);
        self.transactions.fetch_add(2 + listeners, Relaxed);
        let written = writer.write(&lease, &record, AfterWrite::Release).await?;
        written
            .then_some(())
            .ok_or_else(|| "the lease was lost".into())
    }

    /// Postgres's counts. All sessions have ended then, because only that publishes all of their transactions.
    pub(super) async fn seen(mut self) -> Result<Seen, BoxError> {
        drop(self.writer.take());
        let after = counts(&self.client).await?;
        let expected = self.calls + f64::from(self.transactions.load(Relaxed));
        Ok(Seen {
            transactions_over_expected: (after.transactions - self.before.transactions) / expected,
            sequential_scans: after.sequential_scans - self.before.sequential_scans,
        })
    }
}

/// The statements that publish so many tenants: records of which versions and hosts look like Neon's.
fn fill(tenants: usize) -> [String; 3] {
    [
        format!(
            "INSERT INTO tenantry.namespaces (namespace, version) VALUES ('{NAMESPACE}', {tenants})"
        ),
        format!(
            "INSERT INTO tenantry.tenants (namespace, tenant, state, project, direct_host, pooled_host, port,
                 database, role, suspend_after, is_neon, encryption, max_connections, version)
             SELECT '{NAMESPACE}', 'tenant-' || lpad(n::text, 29, '0'), 'ready', 'project-' || n,
                 'ep-cool-dew-' || n || '.us-east-2.aws.neon.tech',
                 'ep-cool-dew-' || n || '-pooler.us-east-2.aws.neon.tech',
                 5432, 'neondb', 'neondb_owner', 0, true, 'none', 4, n + 1
             FROM generate_series(0, {tenants} - 1) AS n"
        ),
        "VACUUM ANALYZE tenantry.tenants".to_owned(),
    ]
}

/// Waits until there is no other session, and reads the statistics.
async fn counts(client: &Client) -> Result<Counts, BoxError> {
    let sessions = "SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while client.query_one(sessions, &[]).await?.get::<_, i64>(0) > 0 {
        sleep(SETTLE).await;
    }
    sleep(10 * SETTLE).await; // Postgres 14 collects them in another process
    let counts = "SELECT (SELECT xact_commit + xact_rollback - sessions FROM pg_stat_database
                WHERE datname = current_database())::float8,
            (SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'tenants')::float8";
    let row = client.query_one(counts, &[]).await?;
    Ok(Counts {
        transactions: row.get(0),
        sequential_scans: row.get(1),
    })
}

pub(super) fn catalog(url: &str) -> Result<Postgres, BoxError> {
    let builder = Postgres::builder(url).keys(KeyRing::new("bench", [7; 32]));
    Ok(builder.build()?)
}

async fn connect(config: &Config) -> Result<Client, BoxError> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await; // a query on it fails when it has ended
    });
    Ok(client)
}
