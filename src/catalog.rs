//! The catalog: a record of each tenant's database, and the leases under which records are changed.

pub(crate) mod cached;
pub(crate) mod key_ring;
pub(crate) mod lookup;
mod memory;
mod postgres;
mod record;
#[cfg(feature = "testing")]
pub mod suite;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::join_all;

pub use memory::Memory;
pub use postgres::{Postgres, PostgresBuilder};
pub use record::{
    AfterWrite, Attempt, Changes, Lease, Leased, Note, Placement, Process, Record, SchemaTally,
    State,
};

pub use crate::schema::{SchemaFailure, SchemaState};

use self::lookup::{Answer, Lookup};
use crate::model::{
    chain,
    error::BoxError,
    tenant::{Namespace, TenantId},
};

/// Records that the default of `tally` reads with one call.
const LISTED: usize = 500;
/// Calls of `find` that the default of `find_many` makes concurrently.
const SIDE_BY_SIDE: usize = 8;

/// The answer about one tenant among many: its record, if it has one.
pub type FoundRecord = Result<Option<Record>, InvalidRecord>;

/// A catalog in which tenantry records the databases that it creates.
///
/// [`Postgres`] is shared by all replicas of an app. [`Memory`] needs no set-up and serves one process: after a restart
/// it is empty, and each tenant's project is found again by its name.
///
/// A value serves one namespace. As a [`Lookup`] it returns the endpoints of tenants with a
/// [`Ready`](crate::catalog::State::Ready) record, which is enough for an app that creates nothing.
///
/// Every write needs a lease. After an `Err` the caller does not know the outcome of the call, and may repeat it. The
/// test suite `catalog::suite` (feature `testing`) checks that an implementation behaves as described here.
///
/// # Errors
/// Reads (`find`, `find_many`, `list`, `tally`, `changes`) and writes (`lease`, `write`, `release`) fail independently:
/// while writes fail, tenants that have a database are still looked up.
///
/// | error | meaning | later calls |
/// |---|---|---|
/// | [`InvalidRecord`] | something is wrong with the record of the one tenant | are made |
/// | [`CallError::rejected`] | the catalog is up and refuses this call | are made |
/// | [`CallError::timed_out`] | no answer came in time | are made, unless a call about another tenant got none either |
/// | any other | the catalog is down | wait up to 250 ms, then fail; one at a time probes, at least every 5 seconds |
///
/// # Cancel safety
/// A call may be dropped at any moment: by its caller, or when
/// [`catalog_timeout`](crate::RouterBuilder::catalog_timeout) is over. Its outcome is then unknown, as after an error.
/// A dropped call must take effect completely or not at all.
pub trait Catalog: Lookup {
    /// Sets the namespace that this value serves, and says whether passwords will be written. Called before any other
    /// method. Must fail if another namespace was set before, or if the catalog cannot keep those passwords safe.
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError>;

    /// Returns the present record of `tenant`.
    fn find(
        &self,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Option<Record>, BoxError>> + Send;

    /// Returns the present record of each of `tenants`, in their order, as [`find`](Self::find) does. Each tenant has
    /// an answer of its own, so that an invalid record hides no other. The router passes up to 500 tenants.
    ///
    /// Calls `find` for each tenant by default. A catalog that answers for many at once should do so: after a change of
    /// many tenants, a router then makes one call instead of one for each.
    fn find_many(
        &self,
        tenants: &[TenantId],
    ) -> impl Future<Output = Result<Vec<FoundRecord>, BoxError>> + Send {
        async move {
            let mut found = Vec::with_capacity(tenants.len());
            for few in tenants.chunks(SIDE_BY_SIDE) {
                let finds = few.iter().map(|tenant| self.find(tenant));
                for answer in join_all(finds).await {
                    found.push(match answer {
                        Ok(record) => Ok(record),
                        Err(err) => Err(*err.downcast::<InvalidRecord>()?),
                    });
                }
            }
            Ok(found)
        }
    }

    /// Requests the lease on `tenant` for `time`, measured by the catalog's clock. A tenant without a record gets one:
    /// [`Claimed`](crate::catalog::State::Claimed), or [`Creating`](crate::catalog::State::Creating) without an attempt
    /// if the catalog cannot know whether the tenant's database was created before.
    ///
    /// The lease is granted if it is free. If `owner` holds it already, it is renewed and keeps its token.
    fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> impl Future<Output = Result<Leased, BoxError>> + Send;

    /// Replaces the record of the tenant under `lease`. Returns `false`, and writes nothing, if the lease has expired
    /// or belongs to another owner.
    ///
    /// Must fail with [`InvalidRecord`] if the old [state may not become](crate::catalog::State::may_become) the new
    /// one. Must fail with it, too, if a tenant of any namespace has the same project and is not deleted: deleting a
    /// tenant deletes its project.
    fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Releases `lease`. Does nothing if it belongs to another owner.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Returns at most `limit` records of tenants after `after`, ordered by the bytes of the tenant's id.
    fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Record>, BoxError>> + Send;

    /// Counts the tenants by the states of their databases and schemas, in any order.
    ///
    /// Reads all records with [`list`](Self::list) by default. A catalog that can count by itself should do so.
    fn tally(&self) -> impl Future<Output = Result<Vec<SchemaTally>, BoxError>> + Send {
        async move {
            let (mut tallies, mut after) = (Vec::new(), None);
            loop {
                let page = self.list(after.as_ref(), LISTED).await?;
                for record in &page {
                    SchemaTally::count(&mut tallies, record);
                }
                match page.last() {
                    Some(last) => after = Some(last.tenant.clone()),
                    None => return Ok(tallies),
                }
            }
        }
    }

    /// Returns at most `limit` of the tenants whose records were written after version `since`. For `None`, returns no
    /// tenants and the present version. Must miss no write, concurrent ones included. The
    /// [incarnation](crate::catalog::Changes::incarnation) stays the same as long as no write can have got lost.
    fn changes(
        &self,
        since: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Result<Changes, BoxError>> + Send;

    /// Returns whether the catalog keeps [notes](Self::note) and [processes](Self::register). Without them there are no
    /// campaigns, and the router makes no such calls. Defaults to `false`.
    fn keeps_notes(&self) -> bool {
        false
    }

    /// Returns the note with that name, if it was ever written. The router keeps there what all replicas must know and
    /// no tenant's record has, such as the state of a campaign: a few texts of some kilobytes.
    ///
    /// Fails by default, and so does then what needs a note.
    fn note(&self, name: &str) -> impl Future<Output = Result<Option<Note>, BoxError>> + Send {
        let _ = name;
        async { Err(no_notes()) }
    }

    /// Writes the note with that name in place of its version `replaces`; 0 stands for none. Returns `false`, and
    /// writes nothing, if the note has another version.
    fn write_note(
        &self,
        name: &str,
        text: &str,
        replaces: u64,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send {
        let _ = (name, text, replaces);
        async { Err(no_notes()) }
    }

    /// Notes that a process is alive, in place of what is known of the process with its id. Processes that were not
    /// heard of for a day may be forgotten.
    ///
    /// Fails by default, and so does a campaign that has to know the processes.
    fn register(&self, process: &Process) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = process;
        async { Err(no_processes()) }
    }

    /// Forgets the process with that id, which has ended.
    fn deregister(&self, id: &str) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = id;
        async { Err(no_processes()) }
    }

    /// Returns the processes that have registered, with the time since.
    fn processes(&self) -> impl Future<Output = Result<Vec<Process>, BoxError>> + Send {
        async { Err(no_processes()) }
    }

    /// Waits until [`changes`](Self::changes) may have news, or forever if the catalog cannot tell. It may return
    /// without news, and may miss some: the router also calls `changes` at intervals.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

fn no_notes() -> BoxError {
    let message =
        "this catalog keeps no notes; implement `Catalog::keeps_notes`, `note` and `write_note`";
    CallError::rejected(message).into()
}

fn no_processes() -> BoxError {
    let message = "this catalog keeps no processes; implement `Catalog::register`, `deregister` and `processes`";
    CallError::rejected(message).into()
}

/// An error in the record of one tenant; the catalog itself is up.
///
/// For implementors: [`Catalog`](Catalog#errors) describes the meaning of other errors.
#[derive(Clone, Eq, PartialEq)]
pub struct InvalidRecord(String);

impl InvalidRecord {
    /// Creates an error from a text that says what is wrong. The text must hold no secret.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Creates the error for a record of another tenant than the lease's.
    fn of_another(lease: &Lease, record: &Record) -> Self {
        let (leased, written) = (lease.tenant.as_str(), record.tenant.as_str());
        Self(format!(
            "a lease on tenant {leased:?} does not allow a write to the record of {written:?}"
        ))
    }

    /// Creates the error for a change of state that is not allowed.
    fn not_allowed(old: State, new: State) -> Self {
        let (old, new) = (old.as_str(), new.as_str());
        Self(format!("a record that is {old} cannot become {new}"))
    }
}

impl fmt::Display for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints the text, as `main` prints a returned error by its `Debug`; `{:#?}` prints the fields.
impl fmt::Debug for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return chain::write(f, self);
        }
        f.debug_tuple("InvalidRecord").field(&self.0).finish()
    }
}

impl std::error::Error for InvalidRecord {}

/// A failure of one call; the catalog itself may be up.
///
/// For implementors: [`Catalog`](Catalog#errors) describes the meaning of other errors.
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
    /// Creates the error of a call that the catalog has refused: a privilege is missing, a disk is full, a server takes
    /// no writes. Other calls may succeed, so the router keeps making them. The text must hold no secret.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::new(Reason::Rejected, message.into())
    }

    /// Creates the error of a call without an answer in time, such as one that
    /// [`catalog_timeout`](crate::RouterBuilder::catalog_timeout) has stopped. The call may have waited for something
    /// of its own, such as a lock on one tenant's row. It counts as an outage once a call about another tenant gets no
    /// answer either, with no answered call in between. The text must hold no secret.
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

    /// Sets the cause of the error.
    #[must_use]
    pub fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.with_shared_source(source.into().into())
    }

    fn with_shared_source(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    fn is_rejected(&self) -> bool {
        self.reason == Reason::Rejected
    }

    fn is_timed_out(&self) -> bool {
        self.reason == Reason::TimedOut
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Prints the message and its causes in one line; `{:#?}` prints the fields.
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
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError>;
    fn find<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Record>>;
    fn find_many<'a>(&'a self, tenants: &'a [TenantId]) -> Answer<'a, Vec<FoundRecord>>;
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
    fn tally(&self) -> Answer<'_, Vec<SchemaTally>>;
    fn changes(&self, since: Option<u64>, limit: usize) -> Answer<'_, Changes>;
    fn keeps_notes(&self) -> bool;
    fn note<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Note>>;
    fn write_note<'a>(&'a self, name: &'a str, text: &'a str, replaces: u64) -> Answer<'a, bool>;
    fn register<'a>(&'a self, process: &'a Process) -> Answer<'a, ()>;
    fn deregister<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    fn processes(&self) -> Answer<'_, Vec<Process>>;
    fn changed(&self) -> Answer<'_, ()>;
}

impl<R: Catalog> AnyCatalog for R {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        Catalog::bind(self, namespace, with_passwords)
    }

    fn find<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Record>> {
        Box::pin(Catalog::find(self, tenant))
    }

    fn find_many<'a>(&'a self, tenants: &'a [TenantId]) -> Answer<'a, Vec<FoundRecord>> {
        Box::pin(Catalog::find_many(self, tenants))
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

    fn tally(&self) -> Answer<'_, Vec<SchemaTally>> {
        Box::pin(Catalog::tally(self))
    }

    fn changes(&self, since: Option<u64>, limit: usize) -> Answer<'_, Changes> {
        Box::pin(Catalog::changes(self, since, limit))
    }

    fn keeps_notes(&self) -> bool {
        Catalog::keeps_notes(self)
    }

    fn note<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Note>> {
        Box::pin(Catalog::note(self, name))
    }

    fn write_note<'a>(&'a self, name: &'a str, text: &'a str, replaces: u64) -> Answer<'a, bool> {
        Box::pin(Catalog::write_note(self, name, text, replaces))
    }

    fn register<'a>(&'a self, process: &'a Process) -> Answer<'a, ()> {
        Box::pin(Catalog::register(self, process))
    }

    fn deregister<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(Catalog::deregister(self, id))
    }

    fn processes(&self) -> Answer<'_, Vec<Process>> {
        Box::pin(Catalog::processes(self))
    }

    fn changed(&self) -> Answer<'_, ()> {
        Box::pin(async {
            Catalog::changed(self).await;
            Ok(())
        })
    }
}
