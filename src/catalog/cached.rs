//! The catalog as the router uses it: the application's [`Catalog`](crate::Catalog), with a cache.
//!
//! Every call goes through a breaker, has a time limit, and fails with an [`Error`]. The cache is [`EntryCache`], which
//! keeps known tenants served while the catalog is down; `provision/lookup.rs` answers from it.

mod entries;
mod lookup_limit;
mod operation;
mod refresh_queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

pub(crate) use entries::{Denial, Entry, EntryCache, Known, Stamp};
pub(crate) use lookup_limit::LookupLimit;
pub(crate) use refresh_queue::Reading;

use operation::Operation;

use super::{
    AnyCatalog, CallError, FoundRecord, InvalidRecord,
    lookup::Answer,
    record::{AfterWrite, Changes, Lease, Leased, Note, Process, Record, SchemaTally, State},
};
use crate::{
    model::{
        config::Config,
        error::{BoxError, Error, ErrorKind},
        tenant::TenantId,
    },
    sync::{
        circuit_breaker::{Breaker, BreakerOpen, CallPermit, Kind},
        lock,
    },
    telemetry::{
        metrics::CatalogMeters,
        stats::{CatalogStats, count},
    },
};

use refresh_queue::RefreshQueue;

/// Suggested wait after a call that the catalog rejected: an operator has to act first.
const REJECTED_FOR: Duration = Duration::from_secs(1);
/// Subject of a call that is about no particular tenant. It is no valid id of a tenant.
const NO_TENANT: &str = "";

/// The application's catalog, and the cache of its records.
pub(crate) struct CachedCatalog {
    catalog: Arc<dyn AnyCatalog>,
    /// Breaker of reads. Writes have another, so that a table that cannot be written to does not stop look-ups.
    read_breaker: Breaker,
    write_breaker: Breaker,
    /// The operations whose last call the catalog rejected, a bit for each.
    rejected: AtomicU32,
    call_timeout: Duration,
    most_known: u64,
    /// Interval of the polls for changes.
    poll: Option<Duration>,
    /// `true` once changes were read.
    is_followed: AtomicBool,
    /// The cached entries of tenants.
    pub(crate) entries: EntryCache,
    /// The tenants whose records are read again in the background.
    pub(crate) refresh: RefreshQueue,
    pub(crate) lookups: LookupLimit,
    /// `true` once the first question for changes got an answer or failed.
    asked_for_changes: watch::Sender<bool>,
    pub(crate) stats: CatalogStats,
    meters: CatalogMeters,
}

impl CachedCatalog {
    pub(crate) fn new(catalog: Arc<dyn AnyCatalog>, config: &Config) -> Self {
        Self {
            catalog,
            read_breaker: Breaker::default(),
            write_breaker: Breaker::default(),
            rejected: AtomicU32::new(0),
            call_timeout: config.catalog_timeout,
            most_known: config.known_tenants,
            poll: config.catalog_poll,
            is_followed: AtomicBool::new(false),
            entries: EntryCache::new(config.known_tenants, config.catalog_ttl),
            refresh: RefreshQueue::default(),
            lookups: LookupLimit::new(config),
            asked_for_changes: watch::Sender::new(false),
            stats: CatalogStats::default(),
            meters: CatalogMeters::new(&Operation::ALL.map(Operation::name)),
        }
    }

    /// Returns the largest number of tenants that the cache holds.
    pub(crate) fn most_known(&self) -> u64 {
        self.most_known
    }

    /// Reads the record of `tenant` from the catalog, past the cache.
    pub(crate) async fn read_record(&self, tenant: &TenantId) -> Result<Option<Record>, Error> {
        self.call(Operation::Find, tenant.as_str(), |catalog| {
            catalog.find(tenant)
        })
        .await
    }

    /// Reads the records of `tenants` with one call, past the cache. Returns an answer for each.
    pub(crate) async fn read_records(
        &self,
        tenants: &[TenantId],
    ) -> Result<Vec<Result<Option<Record>, Error>>, Error> {
        let answer = self.call(Operation::FindMany, NO_TENANT, |catalog| {
            catalog.find_many(tenants)
        });
        let found = answer.await?;
        if found.len() != tenants.len() {
            let message = "the catalog's `find_many` has not returned one answer for each tenant";
            return Err(Error::new(ErrorKind::Catalog, message));
        }
        let answer = |found: FoundRecord| found.map_err(|err| bad_record(err.into()));
        Ok(found.into_iter().map(answer).collect())
    }

    pub(crate) async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, Error> {
        self.call(Operation::Lease, tenant.as_str(), |catalog| {
            catalog.lease(tenant, owner, time)
        })
        .await
    }

    /// Replaces a record under its lease. Returns the stamp to pass when the writer caches what it has written: the
    /// writer knows all changes up to that stamp. Returns `None` if the lease is lost.
    pub(crate) async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<Option<Stamp>, Error> {
        let (began, subject) = (self.entries.stamp(), lease.tenant.as_str());
        let written = self
            .call(Operation::Write, subject, |catalog| {
                catalog.write(lease, record, then)
            })
            .await?;
        Ok(written.then(|| self.note_written(&lease.tenant, record.state, began)))
    }

    /// Updates the cached entry after this process has written a record in `state`. Queues the tenant if its pool has
    /// to follow. Returns the stamp of [`write`](Self::write).
    fn note_written(&self, tenant: &TenantId, state: State, began: Stamp) -> Stamp {
        let (denial, follows) = match state {
            State::Ready => {
                let (stamp, follows) = self.entries.note_published(tenant, began);
                if follows {
                    self.refresh.push(tenant);
                }
                return stamp;
            }
            State::Held => (Denial::Refused(held()), true),
            State::Deleting | State::Deleted => (Denial::Refused(deleted()), true),
            State::Claimed | State::Creating | State::Preparing => (Denial::Unfinished, false),
        };
        let stamp = self.entries.note_withdrawn(tenant, began, denial);
        if follows {
            self.refresh.push(tenant);
        }
        stamp
    }

    pub(crate) async fn release(&self, lease: &Lease) -> Result<(), Error> {
        self.call(Operation::Release, lease.tenant.as_str(), |catalog| {
            catalog.release(lease)
        })
        .await
    }

    /// Reads at most `limit` records of tenants after `after`.
    pub(crate) async fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        self.call(Operation::List, NO_TENANT, |catalog| {
            catalog.list(after, limit)
        })
        .await
    }

    /// Counts the tenants by the states of their databases and schemas.
    pub(crate) async fn tally(&self) -> Result<Vec<SchemaTally>, Error> {
        self.call(Operation::Tally, NO_TENANT, |catalog| catalog.tally())
            .await
    }

    /// Returns whether the catalog keeps notes and processes.
    pub(crate) fn keeps_notes(&self) -> bool {
        self.catalog.keeps_notes()
    }

    /// Notes that a process is alive.
    pub(crate) async fn register(&self, process: &Process) -> Result<(), Error> {
        self.call(Operation::Register, NO_TENANT, |catalog| {
            catalog.register(process)
        })
        .await
    }

    /// Forgets a process that has ended.
    pub(crate) async fn deregister(&self, id: &str) -> Result<(), Error> {
        self.call(Operation::Deregister, NO_TENANT, |catalog| {
            catalog.deregister(id)
        })
        .await
    }

    /// Returns the processes that have registered.
    pub(crate) async fn processes(&self) -> Result<Vec<Process>, Error> {
        self.call(Operation::Processes, NO_TENANT, AnyCatalog::processes)
            .await
    }

    /// Reads the note with that name.
    pub(crate) async fn note(&self, name: &str) -> Result<Option<Note>, Error> {
        self.call(Operation::Note, NO_TENANT, |catalog| catalog.note(name))
            .await
    }

    /// Writes a note in place of its version `replaces`. Returns `false` if it has another version.
    pub(crate) async fn write_note(
        &self,
        name: &str,
        text: &str,
        replaces: u64,
    ) -> Result<bool, Error> {
        self.call(Operation::WriteNote, NO_TENANT, |catalog| {
            catalog.write_note(name, text, replaces)
        })
        .await
    }

    /// Reads at most `limit` of the tenants whose records were written after version `since`.
    pub(crate) async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, Error> {
        self.call(Operation::Changes, NO_TENANT, |catalog| {
            catalog.changes(since, limit)
        })
        .await
    }

    /// Waits until there may be changes, or forever if the catalog cannot tell.
    pub(crate) async fn changed(&self) {
        if self.catalog.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes that a question for changes got an answer, which was applied, or failed.
    pub(crate) fn note_asked_for_changes(&self) {
        if !*self.asked_for_changes.borrow() {
            self.asked_for_changes.send_replace(true);
        }
    }

    /// Waits until the first answer about changes was applied, as it makes every earlier entry stale. If the catalog
    /// fails first or is silent for the time limit of a call, waits no longer.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn first_changes(&self) {
        let mut asked = self.asked_for_changes.subscribe();
        let _ = timeout(self.call_timeout, asked.wait_for(|it| *it)).await;
    }

    /// Notes that all changes up to now are known.
    pub(crate) fn note_heard(&self) {
        *lock(&self.stats.heard) = Instant::now();
        self.is_followed.store(true, Relaxed);
    }

    /// Queues the record of `tenant` to be read again in the background, if its entry is stale and the catalog is up.
    /// While the catalog's changes are known, an entry that is only old is as good as a new one, so that few of these
    /// are read.
    pub(crate) fn refresh_if_stale(&self, tenant: &TenantId) {
        if self.entries.is_stale(tenant) && !self.read_breaker.is_open() {
            let is_only_old = self.knows_changes() && self.entries.is_only_old(tenant);
            self.refresh.push_if_room(tenant, is_only_old);
        }
    }

    /// Returns whether no poll for changes is overdue.
    fn knows_changes(&self) -> bool {
        let heard = || lock(&self.stats.heard).elapsed();
        self.is_followed.load(Relaxed) && self.poll.is_some_and(|poll| heard() < 2 * poll)
    }

    /// Makes a call about `subject`, and waits for its answer within the time limit. After the first failure of an
    /// outage, the breaker soon lets one call pass as a probe; until the probe has ended, other calls wait. Later in an
    /// outage, returns an error at once.
    async fn call<'a, T>(
        &'a self,
        operation: Operation,
        subject: &str,
        make_call: impl FnOnce(&'a dyn AnyCatalog) -> Answer<'a, T>,
    ) -> Result<T, Error> {
        let breaker = if operation.writes() {
            &self.write_breaker
        } else {
            &self.read_breaker
        };
        let until = Instant::now() + self.call_timeout;
        let permit = breaker
            .acquire(operation as Kind, until)
            .await
            .map_err(breaker_open)?;
        count(&self.stats.calls);
        let began = Instant::now();
        let answer = timeout(self.call_timeout, make_call(&*self.catalog)).await;
        let answer = answer.unwrap_or_else(|_| {
            let message = format!("no answer within {:?}", self.call_timeout);
            Err(CallError::timed_out(message).into())
        });
        let is_accepted = match &answer {
            Ok(_) => true,
            Err(err) => err.is::<InvalidRecord>(), // the catalog gave a record, which cannot be used
        };
        self.meters
            .answered(operation.name(), is_accepted, began.elapsed());
        match answer {
            Ok(answer) => {
                permit.succeeded();
                self.rejected.fetch_and(!operation.bit(), Relaxed);
                Ok(answer)
            }
            Err(err) if is_accepted => {
                permit.succeeded();
                Err(bad_record(err))
            }
            Err(err) => Err(self.failed(operation, subject, permit, err)),
        }
    }

    /// Returns the error for a call that failed or got no answer, and tells the breaker.
    fn failed(
        &self,
        operation: Operation,
        subject: &str,
        permit: CallPermit<'_>,
        err: BoxError,
    ) -> Error {
        count(&self.stats.failures);
        let cause = err.to_string(); // not `Debug`, which shows everything that the driver knows
        let call_error = err.downcast_ref::<CallError>();
        let (is_rejected, is_late) = (
            call_error.is_some_and(CallError::is_rejected),
            call_error.is_some_and(CallError::is_timed_out),
        );
        if is_rejected {
            permit.succeeded(); // the catalog is up
            let rejected = self.rejected.fetch_or(operation.bit(), Relaxed);
            if rejected & operation.bit() == 0 {
                let operation = operation.name();
                tracing::warn!(operation, cause, "the catalog is up, but rejects a call");
            }
            return Error::new(ErrorKind::Catalog, "the catalog rejected the call")
                .with_source(err)
                .with_retry_after(REJECTED_FOR);
        }
        let err = Error::new(ErrorKind::Catalog, "the catalog failed").with_source(err);
        let (begins_outage, left) = if is_late {
            permit.unanswered(subject, &err)
        } else {
            permit.failed(&err)
        };
        if begins_outage {
            count(&self.stats.outages);
            tracing::warn!(
                cause,
                "the catalog failed; the router tries it again from time to time until it answers"
            );
        }
        err.with_retry_after(left)
    }
}

/// Returns the error for a tenant whose record the catalog cannot read or does not accept.
fn bad_record(err: BoxError) -> Error {
    let message = "the catalog's record of the tenant cannot be used";
    Error::new(ErrorKind::BadRecord, message).with_source(err)
}

/// Returns the error for a call that was not made, because an earlier one has failed.
fn breaker_open(open: BreakerOpen) -> Error {
    let BreakerOpen {
        left, last_failure, ..
    } = open;
    let message = "the catalog failed recently, and the router has not tried it again yet; repair the catalog, and the \
                   router recovers by itself";
    let err = Error::new(ErrorKind::Catalog, message).with_retry_after(left);
    match last_failure {
        Some(failure) => err.with_source(failure),
        None => err,
    }
}

/// Returns the error for a tenant with a held record.
pub(crate) fn held() -> Error {
    let message = "the tenant is blocked for maintenance: its record has the state held; set the state to ready when \
                   the maintenance is over";
    Error::new(ErrorKind::Held, message)
}

/// Returns the error for a tenant whose record is a tombstone.
pub(crate) fn deleted() -> Error {
    let message = "the tenant was deleted; call `undelete` to get its data back, or `reprovision` to create a new \
                   database";
    Error::new(ErrorKind::Deleted, message)
}
