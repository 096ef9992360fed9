//! What went wrong, at which stage, and whether another attempt can help.
//!
//! One opaque type with a `Copy` kind: adding a cause is never a breaking change, and the kind alone answers "may
//! another attempt help?" in one exhaustive match. Cloning is cheap, because one failed wake has many waiters.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::tenant::{InvalidTenantId, TenantId};

/// Any error, as implementors of the traits return it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call of tenantry failed.
///
/// `Display` says what happened and, where somebody can act, what to change; it does not repeat
/// [`source`](StdError::source), so print the whole chain.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    tenant: Option<TenantId>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What happened, in our words.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The catalog (`Lookup` or `Records`) failed or gave an answer that makes no sense.
    Catalog,
    /// The router was closed, or the runtime it was built on is gone.
    Closed,
    /// Something of that name exists already and is not provably this tenant's.
    Conflict,
    /// The database could not be reached, or broke off while connecting.
    Connect,
    /// The control plane could not be reached, or its answer made no sense. What it was asked to do may have happened.
    ControlPlane,
    /// A bug in tenantry: a task of its own panicked.
    Internal,
    /// The text is not a tenant id.
    InvalidTenant,
    /// Another operation holds the tenant's project.
    Locked,
    /// A query failed; the source is the database's own error.
    Query,
    /// A quota or plan limit is used up.
    QuotaExhausted,
    /// Too many requests to the control plane or to the endpoint.
    RateLimited,
    /// Refused for a reason that no further attempt will change: credential, permission, settings.
    Refused,
    /// The time for this call is over; the source is the last failure met, if any.
    Timeout(Stage),
    /// No such tenant, and nobody may create it.
    UnknownTenant,
}

/// Which part of a call was running, in the order in which they happen.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// Asking the catalog where the tenant lives.
    Lookup,
    /// Creating the tenant's database.
    Provision,
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
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self(Arc::new(Inner {
            kind,
            message,
            tenant: None,
            retry_after: None,
            source: None,
        }))
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The tenant concerned, if one was named.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.0.tenant.as_ref()
    }

    /// When another attempt may help, counted from now; `None` if unknown or never.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    pub(crate) fn closed() -> Self {
        Self::new(
            ErrorKind::Closed,
            "the router is closed, or the runtime it was built on has ended",
        )
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.map(|inner| inner.source = Some(Arc::from(source.into())))
    }

    pub(crate) fn with_tenant(self, tenant: &TenantId) -> Self {
        if self.0.tenant.is_some() {
            return self;
        }
        self.map(|inner| inner.tenant = Some(tenant.clone()))
    }

    pub(crate) fn with_retry_after(self, wait: impl Into<Option<Duration>>) -> Self {
        self.map(|inner| inner.retry_after = wait.into())
    }

    fn map(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl ErrorKind {
    /// Whether another attempt may succeed without anybody changing anything.
    ///
    /// A timeout may not: until then tenantry has retried already.
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Catalog
            | Self::Connect
            | Self::ControlPlane
            | Self::Locked
            | Self::RateLimited => true,
            Self::Closed
            | Self::Conflict
            | Self::Internal
            | Self::InvalidTenant
            | Self::Query
            | Self::QuotaExhausted
            | Self::Refused
            | Self::Timeout(_)
            | Self::UnknownTenant => false,
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

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("tenant", &self.0.tenant)
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
    fn from(err: tokio_postgres::Error) -> Self {
        Self::new(ErrorKind::Query, "the query failed").with_source(err)
    }
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
        assert_eq!(err.source().unwrap().to_string(), "refused");
        assert!(!err.kind().is_transient());
    }
}
