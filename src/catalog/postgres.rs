//! The catalog that replicas share: a few tables in a Postgres database.

mod builder;
mod calls;
mod connection_string;
mod connections;
mod failure;
mod listener;
mod reseal;
mod row;
mod schema;
mod schema_columns;
mod statements;
mod tables;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use sha2::{Digest, Sha256};
use tokio_postgres::{Config, Row, types::Type};

pub use builder::PostgresBuilder;

use builder::Server;
use connections::{Connections, Param};
use failure::Failure;
use listener::Listener;
use schema::Schema;
use statements::Statements;
use tables::Tables;

use super::{key_ring::KeyRing, record::Record};
use crate::model::{error::BoxError, secret::Secret, tenant::Namespace};

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

    /// Returns the text of every statement, for tests of their plans.
    #[doc(hidden)]
    pub fn statements_by_name(&self) -> Vec<(&'static str, &str)> {
        self.statements().by_name()
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
            "the catalog has no namespace to look in; set one with PostgresBuilder::namespace"
                .into()
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
