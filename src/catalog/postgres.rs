//! The catalog that replicas share: a few tables in a Postgres database.

mod builder;
mod connection_string;
mod connections;
mod failure;
mod listener;
mod reseal;
mod row;
mod schema;
mod statements;
mod tables;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio_postgres::{Config, Row, types::Type};

pub use builder::PostgresBuilder;

use builder::Server;
use connections::{Connections, Param};
use failure::Failure;
use listener::Listener;
use row::{Columns, NO_KEYS, count, known_state, lease_micros};
use schema::Schema;
use statements::Statements;
use tables::Tables;

use super::{Catalog, InvalidRecord};
use super::{
    key_ring::KeyRing,
    lookup::Lookup,
    record::{AfterWrite, Changes, Lease, Leased, Record, State},
};
use crate::model::{
    endpoint::Endpoint,
    error::BoxError,
    secret::Secret,
    tenant::{Namespace, TenantId},
};

/// A catalog in a Postgres database, shared by all replicas of an application. Any Postgres of version 14 or later can
/// hold it, a Neon project included.
///
/// It creates its tables at first use, in a schema of their own, and upgrades them when a later release needs more. Any
/// number of replicas may start at once, also of different releases. All times are the database's. Passwords are stored
/// only sealed, with the application's own [`KeyRing`].
///
/// ```no_run
/// use tenantry::{KeyRing, Neon, Provisioner, TenantRouter, catalog::Postgres};
///
/// # fn main() -> Result<(), tenantry::BoxError> {
/// let catalog = Postgres::builder(std::env::var("CATALOG_URL")?)
///     .keys(KeyRing::parse(&std::env::var("CATALOG_KEYS")?)?)
///     .build()?;
/// let neon = Neon::from_env()?.build()?;
/// let router = TenantRouter::provisioning(Provisioner::new(catalog, neon, "production")).build()?;
/// # let _ = router; Ok(()) }
/// ```
///
/// # Connections
/// The catalog has a small pool of its own, and one connection that listens. Each call is one statement without a name,
/// so it works through a pooler in transaction mode. Listening does not work there: changes are then noticed when the
/// router next asks for them. The connection string's `sslmode` selects the encryption, except that `prefer`, the
/// default, means `require` for another machine and `disable` for this one. The certificate and the host's name are
/// always verified, so that `require` and `verify-ca` mean libpq's `verify-full`.
///
/// A connection is replaced after [30 minutes](PostgresBuilder::max_lifetime). It is closed earlier if it breaks off,
/// if it does not answer within a call's time, or if it is older than a second and refuses a statement, as one does
/// that was opened while the server took no writes. All connections that have not answered since are closed with it, so
/// that a fail-over costs one call at most. If the statement was refused or its connection has ended, it is run once
/// more on a new one.
///
/// # Privileges
/// The role needs `CREATE` on the database, or must own the schema. Once the tables exist, `USAGE` on the schema and
/// `SELECT`, `INSERT` and `UPDATE` on its tables are enough. An application that only looks tenants up needs `USAGE`
/// and `SELECT`.
///
/// # Failures
/// A record that cannot be read (sealed with a key that is not in the ring, or written by a later release) is an
/// [`InvalidRecord`](crate::catalog::InvalidRecord) of that tenant; [`list`](crate::Catalog::list) leaves it out with a
/// warning. A call that a running server refuses or does not answer in time is a
/// [`CallError`](crate::catalog::CallError). Everything else is an outage. The text says what to change.
pub struct Postgres {
    inner: Arc<Inner>,
    /// Number of the listener's rings that this clone has returned. Each clone may belong to another router, which must
    /// learn of every write.
    heard: AtomicU64,
}

struct Inner {
    tables: Tables,
    statements: Statements,
    namespace: OnceLock<Namespace>,
    keys: Option<KeyRing>,
    /// Created once the namespace is known.
    listener: OnceLock<Listener>,
    listens: bool,
}

impl Postgres {
    /// Returns the settings of a catalog in the database at `url`: a connection string in libpq's format, either a URL
    /// or a list of settings. White space around it is ignored. A libpq option that is not supported is ignored if it
    /// would change nothing. Otherwise [`build`](PostgresBuilder::build) fails, and says what to do instead. No file is
    /// read: set root certificates with [`root_certificate`](PostgresBuilder::root_certificate).
    pub fn builder(url: impl Into<Secret>) -> PostgresBuilder {
        PostgresBuilder::new(Server::Text(url.into()))
    }

    /// Returns the settings of a catalog in the database that `config` describes.
    pub fn with_config(config: Config) -> PostgresBuilder {
        PostgresBuilder::new(Server::Settings(Box::new(config)))
    }

    fn new(
        connections: Connections,
        statements: Statements,
        namespace: Option<Namespace>,
        keys: Option<KeyRing>,
        listens: bool,
    ) -> Self {
        let inner = Inner {
            tables: Tables::new(connections, Schema::new(&statements.schema)),
            statements,
            namespace: namespace.map(OnceLock::from).unwrap_or_default(),
            keys,
            listener: OnceLock::new(),
            listens,
        };
        Self {
            inner: Arc::new(inner),
            heard: AtomicU64::new(0),
        }
    }

    /// Creates or upgrades the tables, as the first call would. For a program with more privileges than the
    /// application.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the work.
    pub async fn migrate(&self) -> Result<(), BoxError> {
        let work = self.inner.tables.migrate();
        work.await.map_err(Failure::into_error)
    }

    /// Upgrades the tables only to `version`, for tests of upgrades.
    #[doc(hidden)]
    pub async fn migrate_to(&self, version: usize) -> Result<(), BoxError> {
        let work = self.inner.tables.migrate_to(version);
        work.await.map_err(Failure::into_error)
    }

    /// Returns the version of the tables that this release works with.
    #[doc(hidden)]
    pub fn latest_version() -> usize {
        Schema::latest()
    }

    fn statements(&self) -> &Statements {
        &self.inner.statements
    }

    fn keys(&self) -> Option<&KeyRing> {
        self.inner.keys.as_ref()
    }

    fn namespace(&self) -> Result<&Namespace, BoxError> {
        let served = self.inner.namespace.get();
        served.ok_or_else(|| {
            "the catalog was not told whose namespace to look in; set one with PostgresBuilder::namespace".into()
        })
    }

    /// Returns the channel that announces writes to the namespace. Each schema and namespace of the database has its
    /// own.
    fn channel(&self, namespace: &Namespace) -> String {
        let digest = Sha256::digest(format!("{}\0{namespace}", self.inner.statements.schema));
        let mut channel = "tenantry_".to_owned();
        for byte in &digest[..16] {
            channel.extend(
                [byte >> 4, byte & 15]
                    .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
        channel
    }

    /// Runs a statement within the time limit, after it has made sure that the tables exist.
    async fn ask(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>, BoxError> {
        let rows = self.inner.tables.ask(statement, params).await;
        rows.map_err(Failure::into_error)
    }

    fn record(&self, row: &Row) -> Result<Record, BoxError> {
        Ok(row::record(row, self.namespace()?, self.keys())?)
    }

    /// Returns a page of rows that come after `after`.
    async fn page(&self, after: &str, limit: usize) -> Result<Vec<Row>, BoxError> {
        let namespace = self.namespace()?.as_str();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let params: [Param<'_>; 3] = [
            (&namespace, Type::TEXT),
            (&after, Type::TEXT),
            (&limit, Type::INT8),
        ];
        self.ask(&self.statements().list, &params).await
    }
}

impl Lookup for Postgres {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        let endpoint = self.find(tenant).await?.and_then(Record::into_served);
        match endpoint {
            Some(endpoint) if endpoint.password.expose().is_empty() => Err(InvalidRecord::new(
                "the catalog does not give the tenant's password: it was not kept, or there are no keys here to open \
                 it with",
            )
            .into()),
            endpoint => Ok(endpoint),
        }
    }
}

impl Catalog for Postgres {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        if with_passwords && self.inner.keys.is_none() {
            return Err(NO_KEYS.into());
        }
        let served = self.inner.namespace.get_or_init(|| namespace.clone());
        if served != namespace {
            let message = format!(
                "this catalog serves the namespace {served}, not {namespace}; build another for that, also in the \
                 same schema"
            );
            return Err(message.into());
        }
        Ok(())
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        let (namespace, tenant) = (self.namespace()?.as_str(), tenant.as_str());
        let params: [Param<'_>; 2] = [(&namespace, Type::TEXT), (&tenant, Type::TEXT)];
        let rows = self.ask(&self.statements().find, &params).await?;
        rows.first().map(|row| self.record(row)).transpose()
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        let (namespace, time) = (self.namespace()?.as_str(), lease_micros(time));
        let id = tenant.as_str();
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&id, Type::TEXT),
            (&owner, Type::TEXT),
            (&time, Type::INT8),
        ];
        let rows = self.ask(&self.statements().lease, &params).await?;
        if let Some(row) = rows.first() {
            let lease = Lease::new(tenant.clone(), owner, count(row::get(row, "token")?));
            return Ok(Leased::Granted(lease, Box::new(self.record(row)?)));
        }
        let found = self.find(tenant).await?;
        Ok(Leased::Held(
            found.and_then(|it| it.leased_for).unwrap_or_default(),
        ))
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        if record.tenant != lease.tenant {
            return Err(InvalidRecord::of_another(lease, record).into());
        }
        let namespace = self.namespace()?;
        let columns = Columns::of(record, namespace, self.keys())?;
        let from: Vec<_> = State::ALL
            .iter()
            .copied()
            .filter(|state| state.may_become(record.state))
            .map(State::as_str)
            .collect();
        let (tenant, token) = (
            lease.tenant.as_str(),
            i64::try_from(lease.token).unwrap_or(i64::MAX),
        );
        let (release, channel) = (then == AfterWrite::Release, self.channel(namespace));
        let namespace = namespace.as_str();
        let mut params: Vec<Param<'_>> = vec![
            (&namespace, Type::TEXT),
            (&tenant, Type::TEXT),
            (&lease.owner, Type::TEXT),
            (&token, Type::INT8),
            (&from, Type::TEXT_ARRAY),
            (&columns.doubt, Type::INT8),
            (&columns.same_keys, Type::TEXT_ARRAY),
            (&columns.same_marks, Type::BYTEA_ARRAY),
            (&release, Type::BOOL),
            (&channel, Type::TEXT),
        ];
        params.extend(columns.written().into_iter().map(|(_, param)| param));
        let rows = self.ask(&self.statements().write, &params).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        if row::get(row, "written")? {
            return Ok(true);
        }
        let old = known_state(&row::get::<String>(row, "state")?)?;
        Err(InvalidRecord::not_allowed(old, record.state).into())
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        let (namespace, tenant) = (self.namespace()?.as_str(), lease.tenant.as_str());
        let token = i64::try_from(lease.token).unwrap_or(i64::MAX);
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&tenant, Type::TEXT),
            (&lease.owner, Type::TEXT),
            (&token, Type::INT8),
        ];
        self.ask(&self.statements().release, &params)
            .await
            .map(drop)
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        let mut after = after.map_or("", TenantId::as_str).to_owned();
        let mut listed = Vec::new();
        while listed.len() < limit {
            let wanted = limit - listed.len();
            let rows = self.page(&after, wanted).await?;
            for row in &rows {
                after = row::get(row, "tenant")?;
                match self.record(row) {
                    Ok(record) => listed.push(record),
                    // One broken record must not hide all others.
                    Err(err) => tracing::warn!(tenant = after, %err, "a record is left out"),
                }
            }
            if rows.len() < wanted {
                break;
            }
        }
        Ok(listed)
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        let namespace = self.namespace()?.as_str();
        let from = since.map_or(i64::MAX, |since| i64::try_from(since).unwrap_or(i64::MAX));
        // One row more than the limit shows whether there are more.
        let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let params: [Param<'_>; 3] = [
            (&namespace, Type::TEXT),
            (&from, Type::INT8),
            (&most, Type::INT8),
        ];
        let rows = self.ask(&self.statements().changes, &params).await?;
        changes(&rows, since, limit)
    }

    async fn changed(&self) {
        let Ok(namespace) = self.namespace() else {
            return std::future::pending().await;
        };
        let Inner {
            tables,
            listener,
            listens,
            ..
        } = &*self.inner;
        if !listens {
            return std::future::pending().await;
        }
        let listener = listener.get_or_init(|| Listener::new(self.channel(namespace)));
        listener.rings(&tables.connections, &self.heard).await;
    }
}

fn changes(rows: &[Row], since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
    let mut changes = Changes::default();
    if let Some(row) = rows.first() {
        changes.version = count(row::get(row, "present")?);
        changes.incarnation = count(row::get(row, "incarnation")?);
    }
    changes.reset = since.is_some_and(|since| since > changes.version);
    let named = |row| Some((row::get::<Option<String>>(row, "tenant").ok()??, row));
    let found: Vec<_> = rows.iter().filter_map(named).collect();
    changes.more = found.len() > limit;
    let mut last = since.unwrap_or_default();
    for (tenant, row) in found.into_iter().take(limit) {
        last = count(row::get(row, "version")?);
        match TenantId::parse(&tenant) {
            Ok(tenant) => changes.tenants.push(tenant),
            Err(err) => tracing::warn!(tenant, %err, "a record is left out"),
        }
    }
    if changes.more {
        changes.version = last;
    }
    Ok(changes)
}

impl Clone for Postgres {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            heard: AtomicU64::new(self.heard.load(Relaxed)),
        }
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("schema", &self.inner.statements.schema)
            .field("namespace", &self.inner.namespace.get())
            .field("keys", &self.inner.keys)
            .finish_non_exhaustive()
    }
}
