//! The catalog as the router uses it: the application's [`Catalog`](crate::Catalog), with a cache.
//!
//! Every call goes through a breaker, has a time limit, and fails with an [`Error`]. The cache is [`EntryCache`], which
//! keeps known tenants served while the catalog is down; `provision/lookup.rs` answers from it.

mod entries;
mod lookup_limit;
mod refresh_queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

pub(crate) use entries::{Denial, Entry, EntryCache, Known, Stamp};
pub(crate) use lookup_limit::LookupLimit;
pub(crate) use refresh_queue::Reading;

use super::{
    AnyCatalog, CallError, InvalidRecord,
    lookup::Answer,
    record::{AfterWrite, Changes, Lease, Leased, Record, State},
};
use crate::{
    model::{
        config::Config,
        error::{BoxError, Error, ErrorKind},
        tenant::TenantId,
    },
    sync::circuit_breaker::{Breaker, Kind, Open, Probe},
    telemetry::{
        metrics::CatalogMeters,
        stats::{CatalogStats, count},
    },
};

use refresh_queue::RefreshQueue;

/// Suggested wait after a call that the catalog rejected: an operator has to act first.
const REJECTED_FOR: Duration = Duration::from_secs(1);
/// Subject of a call that is about no particular tenant. It is no valid id of a tenant.
const NO_ONE: &str = "";

/// The application's catalog, and the cache of its records.
pub(crate) struct CachedCatalog {
    records: Arc<dyn AnyCatalog>,
    /// Breaker of reads. Writes have their own, so that a table that cannot be written to does not stop look-ups.
    reading: Breaker,
    writing: Breaker,
    /// The operations whose last call the catalog rejected, a bit for each.
    rejected: AtomicU32,
    limit: Duration,
    most_known: u64,
    /// The cached entries of tenants.
    pub(crate) entries: EntryCache,
    /// The tenants whose records are read again in the background.
    pub(crate) refresh: RefreshQueue,
    pub(crate) lookups: LookupLimit,
    pub(crate) stats: CatalogStats,
    meters: CatalogMeters,
}

impl CachedCatalog {
    pub(crate) fn new(records: Arc<dyn AnyCatalog>, config: &Config) -> Self {
        Self {
            records,
            reading: Breaker::default(),
            writing: Breaker::default(),
            rejected: AtomicU32::new(0),
            limit: config.catalog_timeout,
            most_known: config.known_tenants,
            entries: EntryCache::new(config.known_tenants, config.catalog_ttl),
            refresh: RefreshQueue::default(),
            lookups: LookupLimit::new(config),
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
        self.call(Operation::Find, tenant.as_str(), |records| {
            records.find(tenant)
        })
        .await
    }

    pub(crate) async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, Error> {
        self.call(Operation::Lease, tenant.as_str(), |records| {
            records.lease(tenant, owner, time)
        })
        .await
    }

    /// Replaces a record under its lease. Returns the stamp up to which the writer knows all changes; `None` if the
    /// lease is lost.
    pub(crate) async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<Option<Stamp>, Error> {
        let (began, subject) = (self.entries.stamp(), lease.tenant.as_str());
        let written = self
            .call(Operation::Write, subject, |records| {
                records.write(lease, record, then)
            })
            .await?;
        Ok(written.then(|| self.note_written(&lease.tenant, record.state, began)))
    }

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
        self.call(Operation::Release, lease.tenant.as_str(), |records| {
            records.release(lease)
        })
        .await
    }

    /// Reads at most `limit` records of tenants after `after`.
    pub(crate) async fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        self.call(Operation::List, NO_ONE, |records| {
            records.list(after, limit)
        })
        .await
    }

    /// Reads at most `limit` of the tenants whose records were written after version `since`.
    pub(crate) async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, Error> {
        self.call(Operation::Changes, NO_ONE, |records| {
            records.changes(since, limit)
        })
        .await
    }

    /// Waits until there may be changes, or forever if the catalog cannot tell.
    pub(crate) async fn changed(&self) {
        if self.records.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Queues the record of `tenant` to be read again in the background, if its entry is stale and the catalog is up.
    pub(crate) fn refresh_if_stale(&self, tenant: &TenantId) {
        if self.entries.is_stale(tenant) && !self.reading.is_shut() {
            self.refresh.push_if_room(tenant);
        }
    }

    /// Makes a call about `subject` within the time limit. During the first wait of an outage, the call waits as well.
    async fn call<'a, T>(
        &'a self,
        operation: Operation,
        subject: &str,
        ask: impl FnOnce(&'a dyn AnyCatalog) -> Answer<'a, T>,
    ) -> Result<T, Error> {
        let breaker = if operation.writes() {
            &self.writing
        } else {
            &self.reading
        };
        let patience = Instant::now() + self.limit;
        let pass = breaker
            .acquire(operation as Kind, patience)
            .await
            .map_err(shut)?;
        count(&self.stats.calls);
        let began = Instant::now();
        let answer = timeout(self.limit, ask(&*self.records)).await;
        let answer = answer.unwrap_or_else(|_| {
            let message = format!("no answer within {:?}", self.limit);
            Err(CallError::timed_out(message).into())
        });
        let is_good = match &answer {
            Ok(_) => true,
            Err(err) => err.is::<InvalidRecord>(),
        };
        self.meters
            .answered(operation.name(), is_good, began.elapsed());
        match answer {
            Ok(answer) => {
                pass.succeeded();
                self.rejected.fetch_and(!operation.bit(), Relaxed);
                Ok(answer)
            }
            Err(err) if is_good => {
                pass.succeeded(); // the catalog is up
                let message = "the catalog's record of the tenant cannot be used as it is";
                Err(Error::new(ErrorKind::BadRecord, message).with_source(err))
            }
            Err(err) => Err(self.failed(operation, subject, pass, err)),
        }
    }

    fn failed(&self, operation: Operation, subject: &str, pass: Probe<'_>, err: BoxError) -> Error {
        count(&self.stats.failures);
        let cause = err.to_string(); // not `Debug`, which shows everything that the driver knows
        let how = err.downcast_ref::<CallError>();
        let (is_rejected, is_late) = (
            how.is_some_and(CallError::is_rejected),
            how.is_some_and(CallError::is_timed_out),
        );
        if is_rejected {
            pass.succeeded(); // the catalog is up
            let rejected = self.rejected.fetch_or(operation.bit(), Relaxed);
            if rejected & operation.bit() == 0 {
                let operation = operation.name();
                tracing::warn!(operation, cause, "the catalog rejects a call, and is up");
            }
            return Error::new(ErrorKind::Catalog, "the catalog rejected the call")
                .with_source(err)
                .with_retry_after(REJECTED_FOR);
        }
        let err = Error::new(ErrorKind::Catalog, "the catalog failed").with_source(err);
        let (first, left) = if is_late {
            pass.unanswered(subject, &err)
        } else {
            pass.failed(&err)
        };
        if first {
            count(&self.stats.outages);
            tracing::warn!(
                cause,
                "the catalog failed; it is asked from time to time until it answers"
            );
        }
        err.with_retry_after(left)
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Find,
    Lease,
    Write,
    Release,
    List,
    Changes,
}

impl Operation {
    const ALL: [Self; 6] = [
        Self::Find,
        Self::Lease,
        Self::Write,
        Self::Release,
        Self::List,
        Self::Changes,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::Lease => "lease",
            Self::Write => "write",
            Self::Release => "release",
            Self::List => "list",
            Self::Changes => "changes",
        }
    }

    const fn writes(self) -> bool {
        match self {
            Self::Lease | Self::Write | Self::Release => true,
            Self::Find | Self::List | Self::Changes => false,
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

fn shut(shut: Open) -> Error {
    let Open {
        left, last_failure, ..
    } = shut;
    let message = "the catalog failed a moment ago and is not asked again yet; see to it, the rest mends itself";
    let err = Error::new(ErrorKind::Catalog, message).with_retry_after(left);
    match last_failure {
        Some(failure) => err.with_source(failure),
        None => err,
    }
}

/// Returns the error for a tenant with a held record.
pub(crate) fn held() -> Error {
    let message = "the tenant is kept from use for maintenance by the platform, which set its record to held and \
                   sets it to ready again";
    Error::new(ErrorKind::Held, message)
}

/// Returns the error for a tenant whose record is a tombstone.
pub(crate) fn deleted() -> Error {
    let message = "the tenant was deleted; take that back with undelete, or provision it anew";
    Error::new(ErrorKind::Deleted, message)
}
