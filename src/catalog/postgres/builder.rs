//! The settings of a catalog in Postgres, and their checks.

use std::{fmt, net::IpAddr, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio_postgres::config::{Config, Host, SslMode};

use super::{Postgres, connection_string, connections::Connections, statements::Statements};
use crate::{
    catalog::key_ring::KeyRing,
    model::{
        config::{InvalidConfig, check_limit},
        secret::Secret,
        tenant::Namespace,
        tls,
    },
};

/// Longest name of a Postgres object, in bytes. Postgres cuts longer ones without an error.
const LONGEST_NAME: usize = 63;
/// Longest wait for a TCP connection to one of the server's addresses, unless the connection string sets another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Approximate time until a vanished server is noticed, unless the connection string sets another.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of a catalog in [`Postgres`].
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct PostgresBuilder {
    server: Server,
    schema: String,
    namespace: Option<String>,
    keys: Option<KeyRing>,
    pool_size: usize,
    max_lifetime: Duration,
    timeout: Duration,
    root_certificates: Vec<CertificateDer<'static>>,
    listen: bool,
}

/// The address of the server, and the login.
#[derive(Clone)]
pub(super) enum Server {
    /// A connection string.
    Text(Secret),
    /// A parsed connection string.
    Settings(Box<Config>),
}

impl PostgresBuilder {
    pub(super) fn new(server: Server) -> Self {
        Self {
            server,
            schema: "tenantry".to_owned(),
            namespace: None,
            keys: None,
            pool_size: 4,
            max_lifetime: Duration::from_secs(30 * 60),
            timeout: Duration::from_secs(5),
            root_certificates: Vec::new(),
            listen: true,
        }
    }

    /// Sets the schema of the tables. Its name has 1 to 63 bytes of any characters but NUL, and does not begin with
    /// `pg_`, which Postgres reserves. Defaults to `tenantry`; change it if several applications keep catalogs in one
    /// database.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.schema = name.into();
        self
    }

    /// Sets the namespace of the tenants. Needed if no [`Provisioner`](crate::Provisioner) sets it: in an application
    /// that only looks tenants up, and for [`Postgres::reseal`] in a separate program.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Sets the keys that seal passwords. Without keys, no password is stored.
    pub fn keys(mut self, keys: KeyRing) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Sets the largest number of connections for queries; one more listens. Defaults to 4: a query takes about a
    /// millisecond, and each replica has its own connections.
    pub fn pool_size(mut self, size: usize) -> Self {
        self.pool_size = size;
        self
    }

    /// Sets the age above which a connection for queries is replaced, shortened at random by up to a tenth. Defaults to
    /// 30 minutes. A new connection has the role's present settings, and leads to the present address of the host's
    /// name. Shorten the age if a load balancer in between moves only new connections.
    pub fn max_lifetime(mut self, age: Duration) -> Self {
        self.max_lifetime = age;
        self
    }

    /// Sets the longest time for one call, including the wait for a connection. Defaults to 5 seconds. Raise it if the
    /// catalog's own database sleeps when idle and is slow to wake.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Trusts one more root certificate (DER), besides Mozilla's. The managed Postgres of some clouds needs one.
    pub fn root_certificate(mut self, der: impl AsRef<[u8]>) -> Self {
        self.root_certificates.push(tls::certificate(der));
        self
    }

    /// Sets whether a connection of its own listens for changes by other replicas. Defaults to `true`: changes are
    /// noticed within milliseconds. Listening does not work through a pooler in transaction mode, and keeps a catalog
    /// awake that would sleep when idle. Without it, changes are noticed when the router next asks for them, which it
    /// does at intervals in any case.
    pub fn listen(mut self, listen: bool) -> Self {
        self.listen = listen;
        self
    }

    /// Checks the settings. Opens no connection; the first call does.
    pub fn build(self) -> Result<Postgres, InvalidConfig> {
        let config = self.server.checked(self.timeout)?;
        let name = self.schema.as_str();
        let whole = (1..=LONGEST_NAME).contains(&name.len()) && !name.contains('\0');
        if !whole || name.starts_with("pg_") {
            return Err(InvalidConfig::new(
                "the catalog's schema has 1 to 63 bytes, no NUL, and no pg_ at the beginning",
            ));
        }
        if self.pool_size == 0 {
            return Err(InvalidConfig::new(
                "the catalog's pool_size must be more than zero",
            ));
        }
        check_limit("the catalog's timeout", self.timeout)?;
        check_limit("the catalog's max_lifetime", self.max_lifetime)?;
        self.keys.as_ref().map_or(Ok(()), KeyRing::check)?;
        let namespace = self.namespace.as_deref().map(Namespace::parse).transpose();
        let namespace = namespace.map_err(|err| InvalidConfig::new(err.to_string()))?;
        let tls = tls::for_postgres(&self.root_certificates)?;
        let (size, lifetime) = (self.pool_size, self.max_lifetime);
        let connections = Connections::new(config, tls, size, lifetime, self.timeout)?;
        let statements = Statements::new(&self.schema);
        Ok(Postgres::new(
            connections,
            statements,
            namespace,
            self.keys,
            self.listen,
        ))
    }
}

impl Server {
    /// Returns the complete settings. Errors show nothing of a connection string, as it holds a password.
    fn checked(&self, timeout: Duration) -> Result<Config, InvalidConfig> {
        let mut config = match self {
            Self::Settings(config) => (**config).clone(),
            Self::Text(text) => connection_string::parse(text.expose())?,
        };
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(InvalidConfig::new(
                "the catalog's connection string names no host",
            ));
        }
        if config.get_user().is_none() {
            return Err(InvalidConfig::new(
                "the catalog's connection string names no user",
            ));
        }
        config.ssl_mode(ssl_mode(&config));
        if config.get_application_name().is_none() {
            config.application_name("tenantry catalog");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT.min(timeout));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(PEER_TIMEOUT);
        }
        if config.get_keepalives_idle() > PEER_TIMEOUT {
            config.keepalives_idle(PEER_TIMEOUT);
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_interval(PEER_TIMEOUT / 3);
        }
        Ok(config)
    }
}

/// Returns the mode to use. `prefer`, the default of a connection string, does not protect from an attacker who can
/// change the traffic. It becomes `require` for another machine and `disable` for this one. A Unix socket takes no TLS.
fn ssl_mode(config: &Config) -> SslMode {
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    let here = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse()
                    .is_ok_and(|address: IpAddr| address.is_loopback())
        }
    };
    match config.get_ssl_mode() {
        SslMode::Prefer
            if config.get_hosts().iter().all(here)
                && config.get_hostaddrs().iter().all(IpAddr::is_loopback) =>
        {
            SslMode::Disable
        }
        SslMode::Prefer => SslMode::Require,
        _ if !config.get_hosts().is_empty() && config.get_hosts().iter().all(is_socket) => {
            SslMode::Disable
        }
        said => said,
    }
}

// The connection string is left out, as it holds a password.
impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBuilder")
            .field("schema", &self.schema)
            .field("namespace", &self.namespace)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Result<Postgres, InvalidConfig> {
        Postgres::builder(text).build()
    }

    #[test]
    fn every_setting_is_checked_and_no_error_shows_a_password() {
        assert!(build("postgres://app:hunter2@db.example.org/app").is_ok());
        let said = |result: Result<Postgres, InvalidConfig>| result.unwrap_err().to_string();
        for (text, why) in [
            (
                "postgres://app:hunter2@db.example.org/app?sslmode=hunter2",
                "cannot be read",
            ),
            ("hunter2", "cannot be read"),
            ("user=app password=hunter2", "no host"),
            ("host=db.example.org password=hunter2", "no user"),
        ] {
            let said = said(build(text));
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
        let good = || Postgres::builder("postgres://app@localhost/app");
        assert!(said(good().schema("").build()).contains("schema"));
        assert!(said(good().schema("x".repeat(64)).build()).contains("schema"));
        assert!(said(good().schema("pg_catalogs").build()).contains("schema"));
        assert!(said(good().pool_size(0).build()).contains("pool_size"));
        assert!(said(good().timeout(Duration::ZERO).build()).contains("timeout"));
        assert!(said(good().max_lifetime(Duration::ZERO).build()).contains("max_lifetime"));
        assert!(said(good().namespace("A").build()).contains("namespace"));
        assert!(said(good().keys(KeyRing::new("", [1; 32])).build()).contains("id of a key"));
    }

    #[test]
    fn what_leaves_the_machine_is_encrypted() {
        let mode = |text: &str| ssl_mode(&text.parse().unwrap());
        assert_eq!(mode("postgres://app@db.example.org/app"), SslMode::Require);
        assert_eq!(
            mode("postgres://app@db.example.org/app?sslmode=prefer"),
            SslMode::Require
        );
        assert_eq!(
            mode("postgres://app@db.example.org/app?sslmode=disable"),
            SslMode::Disable
        );
        assert_eq!(
            mode("postgres://app@localhost,db.example.org/app"),
            SslMode::Require
        );
        assert_eq!(
            mode("host=localhost hostaddr=192.0.2.1 user=app"),
            SslMode::Require
        );
        for here in [
            "postgres://app@localhost/app",
            "host=/run/postgresql user=app",
            "host=127.0.0.1 user=app",
            "host=/run/postgresql user=app sslmode=require",
        ] {
            assert_eq!(mode(here), SslMode::Disable, "{here}");
        }
        assert_eq!(
            mode("postgres://app@localhost/app?sslmode=require"),
            SslMode::Require
        );
    }

    #[test]
    fn debug_shows_no_password() {
        let text = "postgres://app:hunter2@localhost/app";
        let builder =
            Postgres::builder(text).keys(KeyRing::new("k", *b"hunter2hunter2hunter2hunter2hunt"));
        let printed = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
