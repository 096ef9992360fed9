//! The lease that a process holds while it works on a tenant's database.
//!
//! It is renewed while the work runs. Once another process may hold it, the work is dropped, because it must not send
//! what the other process is about to send.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    catalog::{
        AfterWrite, Lease, Leased, Record,
        cached::{CachedCatalog, Stamp},
    },
    model::{error::Error, tenant::TenantId},
    sync::{
        lock,
        progress::Progress,
        retry::{backoff, retry},
    },
};

/// First wait after a write that failed.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait after a write that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Wait after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_millis(250);

/// The reason why work under a lease has stopped.
#[derive(Debug)]
pub(super) enum LeaseError {
    /// Another process holds the lease, or may hold it. The record has to be read again.
    Lost,
    /// The work failed.
    Failed(Error),
}

impl LeaseError {
    /// Returns the result of the work; `None` if the lease was lost and the work has to start again.
    pub(super) fn unless_lost<T>(done: Result<T, Self>) -> Result<Option<T>, Error> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(Self::Lost) => Ok(None),
            Err(Self::Failed(err)) => Err(err),
        }
    }
}

impl From<Error> for LeaseError {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

/// The outcome of a request for a lease.
pub(super) enum Taken {
    /// The lease, and the record as it is now.
    Lease(Arc<LeaseGuard>, Box<Record>),
    /// Another owner holds the lease, for this much longer unless it renews it.
    HeldFor(Duration),
}

/// A lease that is held. Dropping the guard gives it back.
pub(super) struct LeaseGuard {
    catalog: Arc<CachedCatalog>,
    lease: Lease,
    time: Duration,
    // The end of the time in which this process certainly holds the lease, by its own clock, which may stand still with
    // the process; `None` once the lease is given back. Locked for one read or write.
    sure_until: Mutex<Option<Instant>>,
    // The stamp of the holder's knowledge of the record: from before the lease was requested, and then from before each
    // write. Locked for one read or write.
    known_at: Mutex<Stamp>,
    runtime: Handle,
}

impl LeaseGuard {
    /// Requests the lease on `tenant` for `time`, as `owner`, an id that no other work uses.
    pub(super) async fn take(
        catalog: &Arc<CachedCatalog>,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Taken, Error> {
        let (asked, known_at) = (Instant::now(), catalog.entries.stamp());
        match catalog.lease(tenant, owner, time).await? {
            Leased::Held(left) => Ok(Taken::HeldFor(left)),
            Leased::Granted(lease, record) => {
                let guard = Self {
                    catalog: Arc::clone(catalog),
                    lease,
                    time,
                    sure_until: Mutex::new(Some(asked + time)),
                    known_at: Mutex::new(known_at),
                    runtime: Handle::current(),
                };
                Ok(Taken::Lease(Arc::new(guard), record))
            }
        }
    }

    /// Returns the stamp of the holder's knowledge of the record.
    pub(super) fn known_at(&self) -> Stamp {
        *lock(&self.known_at)
    }

    /// Returns the time until which no other process can hold the lease.
    pub(super) fn valid_until(&self) -> Instant {
        self.held_until().unwrap_or_else(Instant::now)
    }

    fn held_until(&self) -> Option<Instant> {
        *lock(&self.sure_until)
    }

    /// Runs `work` and renews the lease. Drops `work` once another process may hold the lease.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work.
    pub(super) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, LeaseError>>,
    ) -> Result<T, LeaseError> {
        tokio::select! {
            biased; // after a standstill of the process, the lease is checked before the work continues
            () = self.renew_until_lost() => Err(LeaseError::Lost),
            done = work => done,
        }
    }

    /// Renews the lease unless more than two thirds of its time are left, for a call that must end within it.
    pub(super) async fn ensure_fresh(&self) -> Result<(), LeaseError> {
        let left = self.valid_until().saturating_duration_since(Instant::now());
        if left * 3 > self.time * 2 {
            return Ok(());
        }
        match self.renew().await {
            Err(LeaseError::Failed(_)) if !left.is_zero() => Ok(()), // the time left has to suffice
            renewed => renewed,
        }
    }

    async fn renew(&self) -> Result<(), LeaseError> {
        let asked = Instant::now();
        let Lease { tenant, owner, .. } = &self.lease;
        match self.catalog.lease(tenant, owner, self.time).await? {
            Leased::Granted(lease, _) if lease == self.lease => {
                *lock(&self.sure_until) = Some(asked + self.time);
                Ok(())
            }
            Leased::Granted(another, _) => {
                // The lease had run out or been given back. This is a new one that no work uses.
                self.catalog.release(&another).await?;
                Err(LeaseError::Lost)
            }
            Leased::Held(_) => Err(LeaseError::Lost),
        }
    }

    async fn renew_until_lost(&self) {
        while let Some(until) = self.held_until() {
            sleep_until(until - self.time / 3 * 2).await;
            while self.held_until() == Some(until) {
                if Instant::now() >= until {
                    return;
                }
                match timeout_at(until, self.renew()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(LeaseError::Failed(_))) => sleep(RENEW_AGAIN).await,
                    Ok(Err(LeaseError::Lost)) | Err(_) => return,
                }
            }
        }
        std::future::pending::<()>().await; // the lease was given back, and the rest of the work needs none
    }

    /// Writes `record`, and repeats the write while the catalog is down and the lease is held.
    pub(super) async fn write(
        &self,
        record: &Record,
        progress: &Progress,
    ) -> Result<(), LeaseError> {
        self.write_then(record, AfterWrite::Keep, progress).await
    }

    /// Writes `record` once, where the work can do without the write. A lost lease ends the work soon.
    pub(super) async fn try_write(&self, record: &Record) {
        let written = self
            .catalog
            .write(&self.lease, record, AfterWrite::Keep)
            .await;
        if let Ok(Some(stamp)) = written {
            *lock(&self.known_at) = stamp;
        }
    }

    /// Writes `record`, and gives the lease back with the same write.
    pub(super) async fn write_last(
        &self,
        record: &Record,
        progress: &Progress,
    ) -> Result<(), LeaseError> {
        self.write_then(record, AfterWrite::Release, progress)
            .await?;
        *lock(&self.sure_until) = None;
        Ok(())
    }

    /// Writes `record`, and repeats a write whose answer got lost. This is safe: the record is the same. If the first
    /// write released the lease, the second one fails with `Lost`, and the caller reads the record again.
    async fn write_then(
        &self,
        record: &Record,
        then: AfterWrite,
        progress: &Progress,
    ) -> Result<(), LeaseError> {
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        let write = || self.catalog.write(&self.lease, record, then);
        let written = retry(progress, waits, write).await?;
        *lock(&self.known_at) = written.ok_or(LeaseError::Lost)?;
        Ok(())
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if lock(&self.sure_until).take().is_none() {
            return;
        }
        let (catalog, lease) = (Arc::clone(&self.catalog), self.lease.clone());
        self.runtime.spawn(async move {
            if let Err(err) = catalog.release(&lease).await {
                tracing::debug!(
                    tenant = lease.tenant.as_str(),
                    %err,
                    "a lease could not be released; it expires by itself"
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use crate::{
        catalog::Memory,
        model::{config::Config, tenant::TenantId},
    };

    const SECOND: Duration = Duration::from_secs(1);

    async fn take(catalog: &Arc<CachedCatalog>) -> Option<Arc<LeaseGuard>> {
        let acme = TenantId::parse("acme").unwrap();
        let owner = uuid::Uuid::new_v4().to_string();
        let taken = LeaseGuard::take(catalog, &acme, &owner, 3 * SECOND)
            .await
            .unwrap();
        match taken {
            Taken::Lease(lease, _) => Some(lease),
            Taken::HeldFor(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_for_as_long_as_the_work_takes_and_given_back_after_it() {
        let catalog = Arc::new(CachedCatalog::new(
            Arc::new(Memory::new()),
            &Config::default(),
        ));
        let ours = take(&catalog).await.unwrap();
        let work = async {
            for _ in 0..60 {
                sleep(SECOND).await;
                assert!(take(&catalog).await.is_none(), "it is ours");
            }
            Ok(())
        };
        assert!(ours.run(work).await.is_ok());
        drop(ours);
        tokio::task::yield_now().await;
        assert!(take(&catalog).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_for_longer_than_its_lease_sends_nothing_more() {
        let catalog = Arc::new(CachedCatalog::new(
            Arc::new(Memory::new()),
            &Config::default(),
        ));
        let (ours, sent) = (take(&catalog).await.unwrap(), AtomicBool::new(false));
        let work = async {
            tokio::time::advance(4 * SECOND).await;
            sent.store(true, Relaxed);
            Ok(())
        };
        assert!(matches!(ours.run(work).await, Err(LeaseError::Lost)));
        assert!(!sent.load(Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_after_the_lease_was_given_back_is_not_cut_off() {
        let catalog = Arc::new(CachedCatalog::new(
            Arc::new(Memory::new()),
            &Config::default(),
        ));
        let ours = take(&catalog).await.unwrap();
        let progress = Progress::new(crate::model::error::Stage::Provision, 60 * SECOND);
        let found = catalog.read_record(&TenantId::parse("acme").unwrap()).await;
        let record = found.unwrap().unwrap();
        let work = async {
            ours.write_last(&record, &progress).await?;
            sleep(30 * SECOND).await;
            Ok(())
        };
        assert!(ours.run(work).await.is_ok());
    }
}
