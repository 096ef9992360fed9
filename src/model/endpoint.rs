//! The endpoint of a tenant: host, database, role and credential.

mod host;
pub(crate) mod packed;

use std::time::Duration;

use tokio_postgres::config::{SslMode, SslNegotiation};

use super::{
    error::{Error, ErrorKind, Stage},
    secret::Secret,
};

/// Time after which Neon suspends an idle compute by default (`suspend_timeout_seconds: 0` in its API).
pub const DEFAULT_SUSPEND_WINDOW: Duration = Duration::from_secs(300);

/// The host, database, role and credential of a tenant, as [`Lookup`](crate::Lookup) returns them.
///
/// ```
/// use tenantry::{Endpoint, Secret};
///
/// let endpoint = Endpoint::neon(
///     "ep-cool-dew-a1b2c3.us-east-2.aws.neon.tech",
///     "ep-cool-dew-a1b2c3-pooler.us-east-2.aws.neon.tech",
///     "neondb",
///     "neondb_owner",
///     Secret::new("…"),
/// );
/// assert!(endpoint.is_neon);
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The host whose connections go straight to Postgres, for migrations, `LISTEN`, `COPY` and session state. It is a
    /// name or an address only: if it has a port, or is a URL or the path of a socket, calls for the tenant fail with
    /// `ErrorKind::Misconfigured`.
    pub direct_host: String,
    /// The host of the pooler, for everything else. The same as `direct_host` if there is no pooler.
    pub pooled_host: String,
    /// TCP port. 5432 unless changed.
    pub port: u16,
    /// Name of the database.
    pub database: String,
    /// Role to log in as.
    pub role: String,
    /// The role's password.
    pub password: Secret,
    /// Time without activity after which the compute sleeps; `None` if it never does, zero for Neon's default.
    pub suspend_window: Option<Duration>,
    /// `true` if Neon's proxy answers there. The proxy accepts TLS without a request for it, which saves a round trip.
    pub is_neon: bool,
    /// The encryption of connections.
    pub encryption: Encryption,
    /// The most pooled connections to the tenant that one router has at a time, including those that are being opened;
    /// `None` for the router's own [`pool_size`](crate::RouterBuilder::pool_size). Never zero.
    pub max_connections: Option<usize>,
    /// The condition for a reset of a pooled connection's session before another caller gets it. `None` stands for
    /// [`IfNeeded`](SessionReset::IfNeeded) without a pooler, and for [`Never`](SessionReset::Never) behind one.
    pub session_reset: Option<SessionReset>,
}

/// The condition for a reset of a pooled connection's session before another caller gets it. A reset clears settings,
/// role, advisory locks, temporary tables, open cursors and `LISTEN`.
///
/// A reset does what `DISCARD ALL` does, except that prepared statements stay. It takes one round trip. The caller that
/// returned the connection does not wait for it, and no other caller gets the connection before it is done. The
/// connection is closed instead if:
///
/// - the reset fails or takes longer than 2 seconds;
/// - only the end of the session undoes what it holds: SQL-level `PREPARE`, `LOAD`, and `DISCARD ALL` or `DEALLOCATE`
///   on a connection that has prepared statements;
/// - the server has been silent for longer than [`verify_after`](crate::RouterBuilder::verify_after).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SessionReset {
    /// No reset: the next caller gets the session as the last one left it. This is for a pooler in transaction mode,
    /// where a reset would reach the session of another client.
    Never,
    /// A reset after a statement that can leave state in the session, judged by its text and by the server's own
    /// reports. Queries, writes and transactions with `SET LOCAL` do not count. A function of your own that calls
    /// `set_config` or takes a lock is not seen in the text of its call: use [`Always`](Self::Always) if you have such
    /// functions.
    IfNeeded,
    /// A reset after every use in which a statement was sent.
    Always,
}

/// The role and the database of a login.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Login {
    /// Name of the database.
    pub database: String,
    /// Role to log in as.
    pub role: String,
}

impl Login {
    /// Creates a login as `role` into `database`.
    pub fn new(database: impl Into<String>, role: impl Into<String>) -> Self {
        Self {
            database: database.into(),
            role: role.into(),
        }
    }
}

/// The encryption of a connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Encryption {
    /// TLS, with the server's certificate verified against the host name.
    #[default]
    Tls,
    /// No encryption, for a Postgres on the same machine.
    None,
}

/// Returns whether `host` is the name of a pooler at Neon: `ep-…-pooler.…`.
fn is_pooled(host: &str) -> bool {
    host.split('.')
        .next()
        .is_some_and(|it| it.ends_with("-pooler"))
}

/// One of a tenant's two hosts. Neon's proxy treats the two separately, and so does the memory of refusals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// The host of the pooler.
    Pooled,
    /// The host that leads straight to Postgres.
    Direct,
}

impl Endpoint {
    /// Creates an endpoint at Neon from its direct and its pooled (`…-pooler…`) host.
    pub fn neon(
        direct_host: impl Into<String>,
        pooled_host: impl Into<String>,
        database: impl Into<String>,
        role: impl Into<String>,
        password: impl Into<Secret>,
    ) -> Self {
        Self {
            pooled_host: pooled_host.into(),
            suspend_window: Some(DEFAULT_SUSPEND_WINDOW),
            is_neon: true,
            ..Self::postgres(direct_host, database, role, password)
        }
    }

    /// Creates the endpoint of a Postgres server outside Neon, with one host that never sleeps. The host is a name or
    /// an address; an IPv6 address may have brackets.
    pub fn postgres(
        host: impl Into<String>,
        database: impl Into<String>,
        role: impl Into<String>,
        password: impl Into<Secret>,
    ) -> Self {
        let host = host.into();
        Self {
            direct_host: host.clone(),
            pooled_host: host,
            port: 5432,
            database: database.into(),
            role: role.into(),
            password: password.into(),
            suspend_window: None,
            is_neon: false,
            encryption: Encryption::Tls,
            max_connections: None,
            session_reset: None,
        }
    }

    /// Sets the port. Defaults to 5432.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Sets the time after which an idle compute sleeps: `None` for never, zero for Neon's default. Defaults to 5
    /// minutes at Neon, and to never elsewhere. Connections are closed before that time is over
    /// ([`idle_after`](crate::RouterBuilder::idle_after)), so it must not be longer than the time that is set at Neon.
    #[must_use]
    pub fn suspend_window(mut self, window: impl Into<Option<Duration>>) -> Self {
        self.suspend_window = window.into();
        self
    }

    /// Turns encryption off, for a Postgres on the same machine. Defaults to TLS with verification.
    #[must_use]
    pub fn without_tls(mut self) -> Self {
        self.encryption = Encryption::None;
        self
    }

    /// Sets the most pooled connections to the tenant that one router has at a time, also while the tenant moves.
    /// Defaults to the router's own [`pool_size`](crate::RouterBuilder::pool_size); lower it for tenants that get less,
    /// raise it for tenants with many parallel queries. It must be more than zero: otherwise every call for the tenant
    /// fails with `ErrorKind::BadRecord`.
    ///
    /// Each router counts its own connections: ten processes have ten times as many. Direct connections have a limit of
    /// their own ([`direct_connections`](crate::RouterBuilder::direct_connections)) and are not counted here. A change
    /// closes only the connections that are then too many: idle ones at once, others when they come back.
    #[must_use]
    pub fn max_connections(mut self, count: usize) -> Self {
        self.max_connections = Some(count);
        self
    }

    /// Sets the condition for a reset of a pooled connection's session before another caller gets it. Defaults to
    /// [`IfNeeded`](SessionReset::IfNeeded) if there is no pooler, so that the pooled host is the direct one, and to
    /// [`Never`](SessionReset::Never) otherwise, as at Neon. A change closes the tenant's connections; those in use are
    /// closed when they come back. [`catalog::Postgres`](crate::catalog::Postgres) does not store this setting.
    #[must_use]
    pub fn session_reset(mut self, reset: SessionReset) -> Self {
        self.session_reset = Some(reset);
        self
    }

    /// Returns the condition for a reset of the session of a connection by that route.
    pub(crate) fn session_reset_at(&self, route: Route) -> SessionReset {
        let is_behind_pooler =
            self.pooled_host != self.direct_host || self.is_neon && is_pooled(&self.pooled_host);
        match (route, self.session_reset) {
            (Route::Direct, _) => SessionReset::Never, // goes to no other caller
            (Route::Pooled, Some(reset)) => reset,
            (Route::Pooled, None) if is_behind_pooler => SessionReset::Never,
            (Route::Pooled, None) => SessionReset::IfNeeded,
        }
    }

    /// Returns whether connections to `other` can serve for this endpoint: all but the number of connections is the
    /// same.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        // Destructured, so that a new field does not compile before this function handles it.
        let Self {
            direct_host,
            pooled_host,
            port,
            database,
            role,
            password,
            suspend_window,
            is_neon,
            encryption,
            max_connections: _,
            session_reset: _, // compared below by its effect
        } = self;
        *direct_host == other.direct_host
            && *pooled_host == other.pooled_host
            && *port == other.port
            && *database == other.database
            && *role == other.role
            && *password == other.password
            && *suspend_window == other.suspend_window
            && *is_neon == other.is_neon
            && *encryption == other.encryption
            && self.session_reset_at(Route::Pooled) == other.session_reset_at(Route::Pooled)
    }

    /// Refuses an endpoint that cannot serve any call. The error says what to change.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse =
            |message| Err(Error::new(ErrorKind::BadRecord, message).with_stage(Stage::Lookup));
        if self.max_connections == Some(0) {
            return refuse(
                "the tenant's entry in the catalog allows no connection; set its max_connections to more than zero, or \
                 remove it to use the router's pool_size",
            );
        }
        if self.is_neon && is_pooled(&self.direct_host) && !is_pooled(&self.pooled_host) {
            return refuse(
                "the tenant's entry has the direct host and the pooled host exchanged; swap them",
            );
        }
        self.fault().map_or(Ok(()), |fault| {
            let message = format!("the tenant's entry cannot be used to connect: {fault}");
            Err(Error::new(ErrorKind::Misconfigured, message).with_stage(Stage::Lookup))
        })
    }

    /// Returns the first field with which no connection can be opened, and what to change.
    fn fault(&self) -> Option<String> {
        let with_tls = self.encryption == Encryption::Tls;
        let hosts = [
            ("direct_host", &self.direct_host),
            ("pooled_host", &self.pooled_host),
        ];
        for (name, host) in hosts {
            if let Some(fault) = host::fault(host, with_tls) {
                return Some(format!("its {name} {fault}"));
            }
        }
        for (name, value) in [("database", &self.database), ("role", &self.role)] {
            if value.is_empty() || value.contains('\0') {
                return Some(format!("its {name} is empty, or contains a NUL"));
            }
        }
        if self.password.expose().contains('\0') {
            return Some("its password contains a NUL".to_owned());
        }
        (self.port == 0).then(|| "its port is 0; the default port of Postgres is 5432".to_owned())
    }

    /// Returns the role and the database of the endpoint.
    pub(crate) fn login(&self) -> Login {
        Login::new(&self.database, &self.role)
    }

    /// Returns the host to connect to, in the form that resolvers and certificates use.
    pub(crate) fn host(&self, route: Route) -> &str {
        host::bare(match route {
            Route::Pooled => &self.pooled_host,
            Route::Direct => &self.direct_host,
        })
    }

    /// Returns the login as tokio-postgres expects it. Hosts are left out: the dialer opens the socket itself.
    pub(crate) fn pg_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.role)
            .password(self.password.expose())
            .dbname(&self.database)
            .application_name("tenantry");
        match self.encryption {
            Encryption::None => config.ssl_mode(SslMode::Disable),
            Encryption::Tls => config.ssl_mode(SslMode::Require),
        };
        if self.is_neon && self.encryption == Encryption::Tls {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_password() {
        let endpoint = Endpoint::postgres("localhost", "app", "app", "hunter2");
        let printed = format!("{endpoint:?} {:?}", endpoint.pg_config());
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn hosts_the_wrong_way_round_are_refused() {
        let direct = "ep-cool-dew-1.us-east-2.aws.neon.tech";
        let pooled = "ep-cool-dew-1-pooler.us-east-2.aws.neon.tech";
        let at = |direct, pooled| Endpoint::neon(direct, pooled, "app", "app", "…").check();
        assert!(at(direct, pooled).is_ok());
        let err = at(pooled, direct).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadRecord);
        assert!(
            at("10.0.0.1", "10.0.0.2").is_ok(),
            "names of one's own say nothing"
        );
    }

    type Change = fn(&mut Endpoint);

    #[test]
    fn an_entry_that_no_connection_can_be_opened_with_is_refused_and_not_repeated() {
        let here = || Endpoint::postgres("localhost", "app", "app", "hunter2");
        assert!(here().check().is_ok());
        let changes: [(&str, Change); 8] = [
            ("direct_host", |it| it.direct_host.clear()),
            ("pooled_host", |it| it.pooled_host = "/run/hunter2".into()),
            ("direct_host", |it| {
                it.direct_host = "postgres://app:hunter2@localhost/app".into();
            }),
            ("database", |it| it.database.clear()),
            ("role", |it| it.role.clear()),
            ("role", |it| it.role.push('\0')),
            ("password", |it| it.password = "hunter2\0".into()),
            ("port", |it| it.port = 0),
        ];
        for (field, change) in changes {
            let mut there = here();
            change(&mut there);
            let err = there.check().unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Misconfigured, "{there:?}");
            assert_eq!(err.stage(), Some(Stage::Lookup));
            let said = format!("{err} {err:?}");
            assert!(said.contains(field) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn brackets_of_an_address_reach_neither_a_resolver_nor_a_certificate() {
        let endpoint = Endpoint::postgres("[::1]", "app", "app", "hunter2");
        assert!(endpoint.check().is_ok());
        assert_eq!(endpoint.host(Route::Direct), "::1");
        assert_eq!(endpoint.host(Route::Pooled), "::1");
    }

    #[test]
    fn another_ceiling_is_no_other_place_and_anything_else_is() {
        let here = || Endpoint::postgres("localhost", "app", "app", "hunter2");
        assert!(here().is_same_place(&here().max_connections(1)));
        assert_ne!(here(), here().max_connections(1));
        let changes: [fn(&mut Endpoint); 10] = [
            |it| it.direct_host.push('x'),
            |it| it.pooled_host.push('x'),
            |it| it.port = 1,
            |it| it.database.push('x'),
            |it| it.role.push('x'),
            |it| it.password = "hunter3".into(),
            |it| it.suspend_window = Some(Duration::ZERO),
            |it| it.is_neon = true,
            |it| it.encryption = Encryption::None,
            |it| it.session_reset = Some(SessionReset::Always),
        ];
        for change in changes {
            let mut there = here();
            change(&mut there);
            assert!(!here().is_same_place(&there), "{there:?}");
        }
    }

    #[test]
    fn sessions_are_reset_where_no_pooler_is_in_front_unless_told_otherwise() {
        let plain = || Endpoint::postgres("localhost", "app", "app", "…");
        let neon = |direct, pooled| Endpoint::neon(direct, pooled, "app", "app", "…");
        let at_pooler = |mut endpoint: Endpoint| {
            endpoint.pooled_host = "pgbouncer".to_owned();
            endpoint
        };
        for (endpoint, expected) in [
            (plain(), SessionReset::IfNeeded),
            (at_pooler(plain()), SessionReset::Never),
            (
                neon("ep-a.neon.tech", "ep-a-pooler.neon.tech"),
                SessionReset::Never,
            ),
            (
                neon("ep-a-pooler.neon.tech", "ep-a-pooler.neon.tech"),
                SessionReset::Never,
            ),
            (
                neon("ep-a.neon.tech", "ep-a.neon.tech"),
                SessionReset::IfNeeded,
            ),
            (
                plain().session_reset(SessionReset::Never),
                SessionReset::Never,
            ),
            (
                plain().session_reset(SessionReset::Always),
                SessionReset::Always,
            ),
        ] {
            assert_eq!(
                endpoint.session_reset_at(Route::Pooled),
                expected,
                "{endpoint:?}"
            );
            assert_eq!(
                endpoint.session_reset_at(Route::Direct),
                SessionReset::Never
            );
        }
    }
}
