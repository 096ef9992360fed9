//! The catalog as the router uses it: the application's [`Records`](crate::Records), and what was read from them.
//!
//! Every call goes through a breaker and has a time limit, and its failure is an error of ours. What was read of a tenant
//! is remembered, so that it goes on when the catalog is down.

mod due;
mod memo;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

pub(crate) use memo::{Memo, Moment, Recalled};

use crate::{
    breaker::{Breaker, Pass, Shut},
    config::Config,
    error::{BoxError, Error, ErrorKind},
    lookup::Answer,
    meters::CatalogMeters,
    record::{Changes, Lease, Leased, Record, Then},
    records::{AnyRecords, Defect},
    stats::{CatalogStats, count},
    tenant::TenantId,
};

use due::Due;

/// How many look-ups may wait for the catalog at the same time. Beyond it they would only grow a queue.
const MOST_WAITING: usize = 1000;
/// When to come back if there are more.
const COME_BACK: Duration = Duration::from_millis(250);

/// The catalog, and what is known of it.
pub(crate) struct Catalog {
    records: Arc<dyn AnyRecords>,
    breaker: Breaker,
    limit: Duration,
    most_known: u64,
    pub(crate) memo: Memo,
    /// Whose records are to be read again in the background.
    pub(crate) due: Due,
    waiting: Semaphore,
    pub(crate) stats: CatalogStats,
    meters: CatalogMeters,
}

impl Catalog {
    pub(crate) fn new(records: Arc<dyn AnyRecords>, config: &Config) -> Self {
        Self {
            records,
            breaker: Breaker::default(),
            limit: config.catalog_timeout,
            most_known: config.known_tenants,
            memo: Memo::new(config.known_tenants, config.catalog_ttl),
            due: Due::default(),
            waiting: Semaphore::new(MOST_WAITING),
            stats: CatalogStats::default(),
            meters: CatalogMeters::new(&["find", "lease", "write", "release", "list", "changes"]),
        }
    }

    /// How many tenants can be remembered.
    pub(crate) fn most_known(&self) -> u64 {
        self.most_known
    }

    /// What the catalog says of `tenant` now.
    pub(crate) async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, Error> {
        self.call("find", |records| records.find(tenant)).await
    }

    pub(crate) async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, Error> {
        self.call("lease", |records| records.lease(tenant, owner, time))
            .await
    }

    pub(crate) async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: Then,
    ) -> Result<bool, Error> {
        let written = self
            .call("write", |records| records.write(lease, record, then))
            .await?;
        if written && self.memo.written(&lease.tenant, record.state) {
            self.due.add(&lease.tenant);
        }
        Ok(written)
    }

    pub(crate) async fn release(&self, lease: &Lease) -> Result<(), Error> {
        self.call("release", |records| records.release(lease)).await
    }

    /// At most `limit` records of tenants after `after`.
    pub(crate) async fn list(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<Vec<Record>, Error> {
        self.call("list", |records| records.list(after, limit))
            .await
    }

    /// Whose records were written since version `since`, at most `limit` of them.
    pub(crate) async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, Error> {
        self.call("changes", |records| records.changes(since, limit))
            .await
    }

    /// Waits until there may be changes; for ever if nobody would know.
    pub(crate) async fn nudged(&self) {
        if self.records.nudged().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A place among the look-ups that wait, unless there are too many.
    pub(crate) fn queue(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.waiting.try_acquire().map_err(|_| {
            let message = "too many look-ups wait for the catalog; this one was not begun. See why it is slow";
            Error::new(ErrorKind::Overloaded, message).with_retry_after(COME_BACK)
        })
    }

    /// Has the record of `tenant` read again in the background, if what is remembered of it is old.
    pub(crate) fn mind(&self, tenant: &TenantId) {
        if self.memo.is_due(tenant) && !self.breaker.is_shut() {
            self.due.add(tenant);
        }
    }

    async fn call<'a, T>(
        &'a self,
        operation: &'static str,
        ask: impl FnOnce(&'a dyn AnyRecords) -> Answer<'a, T>,
    ) -> Result<T, Error> {
        let pass = self.breaker.enter().map_err(shut)?;
        count(&self.stats.calls);
        let began = Instant::now();
        let answer = timeout(self.limit, ask(&*self.records)).await;
        let is_up =
            matches!(&answer, Ok(Ok(_))) || matches!(&answer, Ok(Err(err)) if err.is::<Defect>());
        self.meters.answered(operation, is_up, began.elapsed());
        match answer {
            Ok(Ok(answer)) => {
                pass.succeeded();
                Ok(answer)
            }
            Ok(Err(err)) if err.is::<Defect>() => {
                pass.succeeded(); // it is up
                let message = "the catalog's record of the tenant cannot be used as it is";
                Err(Error::new(ErrorKind::BadRecord, message).with_source(err))
            }
            Ok(Err(err)) => Err(self.failed(pass, err)),
            Err(_) => {
                let message = format!("no answer within {:?}", self.limit);
                Err(self.failed(pass, message.into()))
            }
        }
    }

    fn failed(&self, pass: Pass<'_>, err: BoxError) -> Error {
        count(&self.stats.failures);
        let cause = err.to_string(); // not `Debug`, which has all that the catalog's driver knows
        let err = Error::new(ErrorKind::Catalog, "the catalog failed").with_source(err);
        let (first, left) = pass.failed(&err);
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

fn shut(Shut { left, last_failure }: Shut) -> Error {
    let message = "the catalog failed a moment ago and is not asked again yet; see to it, the rest mends itself";
    let err = Error::new(ErrorKind::Catalog, message).with_retry_after(left);
    match last_failure {
        Some(failure) => err.with_source(failure),
        None => err,
    }
}
