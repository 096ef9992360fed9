//! The catalog that tenantry keeps itself: tenant → endpoint, and who may create or change it.

pub(crate) mod cached;
pub(crate) mod key_ring;
pub(crate) mod lookup;
mod memory;
mod postgres;
pub(crate) mod record;
#[cfg(feature = "testing")]
pub mod suite;

use std::{fmt, future::Future, sync::Arc, time::Duration};

pub use memory::Memory;
pub use postgres::{Postgres, PostgresBuilder};
pub use record::{AfterWrite, Attempt, Changes, Lease, Leased, Placement, Record, State};

use self::lookup::{Answer, Lookup};
use crate::model::{
    chain,
    error::BoxError,
    tenant::{Namespace, TenantId},
};

/// A catalog in which tenantry records the databases that it creates.
///
/// [`Postgres`] is shared by all replicas of an app. [`Memory`] needs no set-up and serves one process: after a restart
/// it is empty, and each tenant's project is found again by its name.
///
/// A value serves one namespace. As a [`Lookup`] it answers where tenants live whose record is
/// [`Ready`](crate::catalog::State::Ready), which is enough for an app that creates nothing.
///
/// Whatever is written is guarded by a lease. An `Err` means that the catalog failed, so that nobody knows whether it did
/// as it was asked; every call may be repeated then. How an implementation has to behave is held by a suite of tests that
/// it can be run through: `catalog::suite`, with the feature `testing`.
///
/// # Errors
/// Reading (`find`, `list`, `changes`) and writing (`lease`, `write`, `release`) fail apart: while writing fails, tenants that
/// have a database are still looked up.
///
/// | error | it says | calls after it |
/// |---|---|---|
/// | [`InvalidRecord`] | something is wrong with the record of the one tenant | are made |
/// | [`CallError::rejected`] | the catalog is up and refuses this call | are made |
/// | [`CallError::timed_out`] | no answer came in time | are made, unless a call about another tenant got no answer either |
/// | any other | the catalog is down | wait for up to 250 ms; then one at a time probes the catalog, every 5 seconds at the longest, and all others fail at once |
///
/// # Cancel safety
/// A call may be dropped at any moment: when [`catalog_timeout`](crate::RouterBuilder::catalog_timeout) is over, or by
/// whoever made it. As after an error, nobody knows then whether it did as it was asked; half of it must not be done.
pub trait Catalog: Lookup {
    /// Says which namespace this value serves, before anything else is asked, and whether passwords will be written.
    /// Must fail if it was told another namespace before, or if it cannot keep passwords safe that it is going to get.
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError>;

    /// What is known of `tenant`, as it is now.
    fn find(
        &self,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Option<Record>, BoxError>> + Send;

    /// Asks for the lease on `tenant` for `time`, counted by the catalog's clock. A tenant without a record gets one:
    /// [`Claimed`](crate::catalog::State::Claimed), or [`Creating`](crate::catalog::State::Creating) without an attempt if
    /// the catalog cannot know whether its database was created before.
    ///
    /// Granted if nobody holds it, or if `owner` does: then it is a renewal, and the token stays.
    fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> impl Future<Output = Result<Leased, BoxError>> + Send;

    /// Replaces the record of the tenant under `lease`. `false` if the lease has run out or is somebody else's: then
    /// nothing is written.
    ///
    /// Must be a [`InvalidRecord`] if the [state may not become](crate::catalog::State::may_become) that one, and if another
    /// tenant, of whatever namespace, has the same project and is not deleted: who deletes a tenant deletes its project.
    fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Gives `lease` back. Does nothing if it is somebody else's.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// At most `limit` records of tenants that come after `after`, byte by byte, in that order.
    fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Record>, BoxError>> + Send;

    /// Whose records were written since `version` was answered, at most `limit` of them; for `None`, none and the present
    /// version. Must miss nothing, also what was written side by side. Its
    /// [incarnation](crate::catalog::Changes::incarnation) stays the same as long as no write can have got lost.
    fn changes(
        &self,
        since: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, BoxError>> + Send;

    /// Waits until [`changes`](Self::changes) may have something to say; for ever if nobody would know. It may be wrong
    /// either way: changes are asked for from time to time anyhow.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Something is wrong with the record of one tenant, and the catalog itself is up.
///
/// For implementors: what other errors mean is said at [`Catalog`](Catalog#errors).
#[derive(Clone, Eq, PartialEq)]
pub struct InvalidRecord(String);

impl InvalidRecord {
    /// Says what is wrong. The text must hold no secret.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Says that the lease is on another record.
    pub(crate) fn of_another(lease: &Lease, record: &Record) -> Self {
        let (leased, written) = (lease.tenant.as_str(), record.tenant.as_str());
        Self(format!(
            "a lease on tenant {leased:?} is none on {written:?}"
        ))
    }

    /// Says that a record may not be written with that state.
    pub(crate) fn not_allowed(old: State, new: State) -> Self {
        let (old, new) = (old.as_str(), new.as_str());
        Self(format!("a record that is {old} cannot become {new}"))
    }
}

impl fmt::Display for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Its text, as `main` prints an error that it returns.
impl fmt::Debug for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return chain::write(f, self);
        }
        f.debug_tuple("InvalidRecord").field(&self.0).finish()
    }
}

impl std::error::Error for InvalidRecord {}

/// A call failed, and the catalog itself may be up.
///
/// For implementors: what other errors mean is said at [`Catalog`](Catalog#errors).
#[derive(Clone)]
pub struct CallError {
    reason: Reason,
    message: String,
    source: Option<Source>,
}

type Source = Arc<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reason {
    Rejected,
    TimedOut,
}

impl CallError {
    /// The catalog answered, and did not do what it was asked: a privilege is missing, a disk is full, a server takes no
    /// writes. Other calls may succeed, so none is turned away for it. The text must hold no secret.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::new(Reason::Rejected, message.into())
    }

    /// The catalog did not answer in time, as a call that is stopped by
    /// [`catalog_timeout`](crate::RouterBuilder::catalog_timeout). It may have waited for something that is only its own,
    /// such as a lock on one tenant's row: it counts as an outage once a call about another tenant got no answer either,
    /// and none was answered in between. The text must hold no secret.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(Reason::TimedOut, message.into())
    }

    fn new(reason: Reason, message: String) -> Self {
        Self {
            reason,
            message,
            source: None,
        }
    }

    /// Adds what led to it.
    #[must_use]
    pub fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.with_shared_source(source.into().into())
    }

    pub(crate) fn with_shared_source(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) fn is_rejected(&self) -> bool {
        self.reason == Reason::Rejected
    }

    pub(crate) fn is_timed_out(&self) -> bool {
        self.reason == Reason::TimedOut
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What happened and its causes, in one line; the fields if it is `{:#?}`.
impl fmt::Debug for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return chain::write(f, self);
        }
        f.debug_struct("CallError")
            .field("reason", &self.reason)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

/// [`Catalog`] with its type erased.
pub(crate) trait AnyCatalog: Send + Sync {
    fn serve(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError>;
    fn find<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Record>>;
    fn lease<'a>(
        &'a self,
        tenant: &'a TenantId,
        owner: &'a str,
        time: Duration,
    ) -> Answer<'a, Leased>;
    fn write<'a>(
        &'a self,
        lease: &'a Lease,
        record: &'a Record,
        then: AfterWrite,
    ) -> Answer<'a, bool>;
    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()>;
    fn list<'a>(&'a self, after: Option<&'a TenantId>, limit: usize) -> Answer<'a, Vec<Record>>;
    fn changes(&self, since: Option<u64>, limit: usize) -> Answer<'_, Changes>;
    fn changed(&self) -> Answer<'_, ()>;
}

impl<R: Catalog> AnyCatalog for R {
    fn serve(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        Catalog::bind(self, namespace, with_passwords)
    }

    fn find<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Record>> {
        Box::pin(Catalog::find(self, tenant))
    }

    fn lease<'a>(
        &'a self,
        tenant: &'a TenantId,
        owner: &'a str,
        time: Duration,
    ) -> Answer<'a, Leased> {
        Box::pin(Catalog::lease(self, tenant, owner, time))
    }

    fn write<'a>(
        &'a self,
        lease: &'a Lease,
        record: &'a Record,
        then: AfterWrite,
    ) -> Answer<'a, bool> {
        Box::pin(Catalog::write(self, lease, record, then))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(Catalog::release(self, lease))
    }

    fn list<'a>(&'a self, after: Option<&'a TenantId>, limit: usize) -> Answer<'a, Vec<Record>> {
        Box::pin(Catalog::list(self, after, limit))
    }

    fn changes(&self, since: Option<u64>, limit: usize) -> Answer<'_, Changes> {
        Box::pin(Catalog::changes(self, since, limit))
    }

    fn changed(&self) -> Answer<'_, ()> {
        Box::pin(async {
            Catalog::changed(self).await;
            Ok(())
        })
    }
}
