//! The error type: what went wrong, at which stage, and whether another attempt can help.
//!
//! It is one opaque type with a `Copy` kind. A new cause is never a breaking change, and one exhaustive match on the
//! kind decides whether another attempt may help. Cloning is cheap, because one failed wake has many waiters.

mod kind;

use std::{borrow::Cow, error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use tokio_postgres::types::{WasNull, WrongType};

use super::{
    chain, current_tenant,
    tenant::{InvalidTenantId, TenantId},
};

/// Any error, as implementors of tenantry's traits return it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// An error that a call of tenantry returns.
///
/// `Display` says what happened and, if a change can help, what to change. The cause is the
/// [`source`](StdError::source). `{:?}` writes the error and all its causes in one line, which is also how `main`
/// prints an error that it returns. `{:#?}` writes the fields.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    tenant: Option<TenantId>,
    stage: Option<Stage>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The kind of an error. The [manual](crate::manual::errors) has the causes of each kind, and what to do about it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Too many computes of the account are awake (20 at Neon unless raised; default branches do not count).
    ActiveComputeLimit,
    /// Role and password were not accepted. Neon gives the same answer for an endpoint or role that is gone.
    BadCredential,
    /// The catalog's record of the tenant cannot be read, or may not be changed as requested.
    BadRecord,
    /// The catalog (`Lookup` or `Catalog`) failed or gave an answer that makes no sense.
    Catalog,
    /// The router was closed, or the runtime it was built on is gone.
    Closed,
    /// The connection was lost between COMMIT and its answer: the transaction may or may not be committed. Look for
    /// what it wrote before you repeat it.
    CommitUnknown,
    /// Something of that name exists already, and nothing proves that it is this tenant's.
    Conflict,
    /// The database could not be reached, or the connection broke off during the login.
    Connect,
    /// The control plane could not be reached, or its answer made no sense. The requested operation may have happened.
    /// If Neon's proxy gave this answer to a login, nothing happened.
    ControlPlane,
    /// The tenant was deleted, or is being deleted. No access creates it again.
    Deleted,
    /// The endpoint is disabled. Only Neon's API enables it again, neither a connection nor Neon's console.
    Disabled,
    /// The control plane knows no such endpoint, or there is no such database server.
    EndpointNotFound,
    /// The platform keeps the tenant from use for its own maintenance.
    Held,
    /// A bug in tenantry: a task of its own panicked.
    Internal,
    /// The text is not a tenant id, or a request names its tenant in a way that cannot be read.
    InvalidTenant,
    /// Another operation holds the tenant's project.
    Locked,
    /// The server refuses the connection because of its settings: database, startup options, TLS, certificate.
    Misconfigured,
    /// A call was used in a way that cannot be made safe; the message says how.
    Misused,
    /// The control plane has nothing with that id, or the API key may not see it.
    NotFound,
    /// Too many operations at once; nothing was done.
    Overloaded,
    /// The tenant's database is being created, and the time for this call is over. The creation goes on: call again
    /// later.
    Provisioning,
    /// A query failed; the source is the database's own error.
    Query,
    /// A quota or plan limit is used up.
    QuotaExhausted(ExhaustedQuota),
    /// Too many requests to the control plane or to the endpoint.
    RateLimited,
    /// Refused for a reason that no further attempt will change: permission, address, or the request to the API.
    Refused,
    /// Postgres rolled the transaction back although a commit was requested: one of its statements had failed.
    RolledBack,
    /// The tenant's schema could not be brought up to date. It stays so until you change the step, or the data.
    Schema(SchemaFault),
    /// Neon's proxy and the database behind it do not agree about the role's password, which is being changed.
    StaleCredential,
    /// The time for this call is over; the source is the last failure met, if any.
    Timeout(Stage),
    /// The tenant does not exist, and this access may not create it.
    UnknownTenant,
    /// The host has no address, or no server accepts connections there.
    Unreachable,
}

/// The quota that is used up.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ExhaustedQuota {
    /// Time that computes were awake.
    ActiveTime,
    /// Time that computes were awake, times their size.
    ComputeTime,
    /// Data sent out.
    DataTransfer,
    /// Size of the data.
    LogicalSize,
    /// Data written.
    WrittenData,
    /// A limit of the plan (projects, branches, …), or a quota that the answer did not name.
    Other,
}

/// The reason for which a tenant's schema could not be brought up to date.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum SchemaFault {
    /// The database has a step with another text than the program's, or lacks one below its highest.
    Diverged,
    /// A step failed.
    Failed,
    /// The database is older than the program needs, and accesses do not migrate it
    /// ([`OnAccess::Refuse`](crate::OnAccess::Refuse)).
    TooOld,
}

/// The part of a call that was running. The variants are in the order in which the stages happen.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// Asking the catalog where the tenant lives.
    Lookup,
    /// Creating the tenant's database.
    Provision,
    /// Bringing the tenant's schema up to date.
    Migrate,
    /// Opening the first connection to a database believed asleep.
    Wake,
    /// Waiting for a connection to a database that is awake.
    Checkout,
    /// Running a query.
    Query,
    /// Waiting for the answer to a commit.
    Commit,
}

impl Error {
    /// Creates an error of that kind, for implementors of tenantry's traits. The message must hold no secret, and
    /// should say what to change.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self(Arc::new(Inner {
            kind,
            message,
            tenant: None,
            stage: None,
            retry_after: None,
            source: None,
        }))
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the tenant concerned, if one was named.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.0.tenant.as_ref()
    }

    /// Returns the part of the call that was running, if that is known.
    pub fn stage(&self) -> Option<Stage> {
        match self.0.kind {
            ErrorKind::Timeout(stage) => Some(stage),
            _ => self.0.stage,
        }
    }

    /// Returns the time after which another attempt may help, counted from now; `None` if unknown or never.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    pub(crate) fn closed() -> Self {
        Self::new(
            ErrorKind::Closed,
            "the router is closed, or the runtime it was built on has ended",
        )
    }

    pub(crate) fn panicked() -> Self {
        Self::new(
            ErrorKind::Internal,
            "a task panicked, either in the application's own code (its implementation of a trait of tenantry, or a \
             closure) or in tenantry, which would be a bug",
        )
    }

    /// Sets the cause, for implementors of tenantry's traits.
    #[must_use]
    pub fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.map(|inner| inner.source = Some(Arc::from(source.into())))
    }

    pub(crate) fn with_tenant(self, tenant: &TenantId) -> Self {
        if self.0.tenant.is_some() {
            return self;
        }
        self.map(|inner| inner.tenant = Some(tenant.clone()))
    }

    /// Appends `more` to the message.
    pub(crate) fn with_more(self, more: &str) -> Self {
        self.map(|inner| inner.message = format!("{}: {more}", inner.message).into())
    }

    pub(crate) fn with_stage(self, stage: Stage) -> Self {
        self.map(|inner| inner.stage = Some(stage))
    }

    /// Sets the time after which another attempt may help, counted from now, for implementors of tenantry's traits.
    #[must_use]
    pub fn with_retry_after(self, wait: impl Into<Option<Duration>>) -> Self {
        self.map(|inner| inner.retry_after = wait.into())
    }

    fn map(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl Stage {
    /// All stages, in the order in which they happen.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    pub(crate) const ALL: [Self; 7] = [
        Self::Lookup,
        Self::Provision,
        Self::Migrate,
        Self::Wake,
        Self::Checkout,
        Self::Query,
        Self::Commit,
    ];

    /// Returns a name that stays the same in every version, for logs, metrics and traces.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Provision => "provision",
            Self::Migrate => "migrate",
            Self::Wake => "wake",
            Self::Checkout => "checkout",
            Self::Query => "query",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tenant) = &self.0.tenant {
            write!(f, "tenant {:?}: ", tenant.as_str())?;
        }
        f.write_str(&self.0.message)
    }
}

/// Writes what happened and its causes in one line, or the fields for `{:#?}`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return chain::write(f, self);
        }
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("tenant", &self.0.tenant)
            .field("stage", &self.stage())
            .field("retry_after", &self.0.retry_after)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_ref()
            .map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lookup => "looking the tenant up",
            Self::Provision => "creating the tenant's database",
            Self::Migrate => "migrating the tenant's schema",
            Self::Wake => "waking the tenant's database",
            Self::Checkout => "waiting for a connection",
            Self::Query => "running a query",
            Self::Commit => "waiting for the commit",
        })
    }
}

impl From<InvalidTenantId> for Error {
    fn from(err: InvalidTenantId) -> Self {
        Self::new(ErrorKind::InvalidTenant, err.to_string())
    }
}

impl From<tokio_postgres::Error> for Error {
    /// Repeats Postgres's own words, except for what may quote a row. In a closure that a router runs, and in a
    /// request's handler, the error also names the tenant.
    fn from(err: tokio_postgres::Error) -> Self {
        let failed = Self::new(ErrorKind::Query, failed_query(&err)).with_stage(Stage::Query);
        let failed = failed.with_source(err);
        match current_tenant::get() {
            Some(tenant) => failed.with_tenant(&tenant),
            None => failed,
        }
    }
}

fn failed_query(err: &tokio_postgres::Error) -> String {
    if let Some(said) = err.as_db_error() {
        return format!("the query failed: {}", chain::words(said));
    }
    let cause = err.source();
    if err.is_closed() || matches!(cause, Some(it) if it.is::<io::Error>()) {
        return format!(
            "the query failed: {err}; it may have been executed. `read` and `transaction` run again if nothing can \
             have been committed"
        );
    }
    // Other causes are repeated only if they quote no value.
    let types = cause.filter(|it| it.is::<WrongType>() || it.is::<WasNull>());
    let types = types.map(|it| format!(": {it}")).unwrap_or_default();
    format!("the query failed: {err}{types}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_where_and_when_to_come_back() {
        let tenant = TenantId::parse("ac\nme").unwrap();
        let cause = Error::new(ErrorKind::Connect, "refused");
        let err = Error::new(ErrorKind::Timeout(Stage::Wake), "no connection after 2 s")
            .with_tenant(&tenant)
            .with_retry_after(Duration::from_secs(1))
            .with_source(cause);
        assert_eq!(
            err.to_string(),
            r#"tenant "ac\nme": no connection after 2 s"#
        );
        assert_eq!(err.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(err.stage(), Some(Stage::Wake));
        assert_eq!(err.source().unwrap().to_string(), "refused");
        assert!(!err.kind().is_transient());
    }
}
