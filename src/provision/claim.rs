//! The lease on a tenant while somebody works on its database.
//!
//! It is renewed as long as the work goes on. When it may be somebody else's, the work is dropped: it must not send
//! anything any more that another is about to send.

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
    catalog::Catalog,
    error::Error,
    record::{Lease, Leased, Record, Then},
    retry::lock,
    tenant::TenantId,
};

/// Wait after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_millis(250);

/// Why work under a lease has stopped.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The lease is or may be somebody else's. What is to be done has to be found out anew.
    Lost,
    /// It failed.
    Failed(Error),
}

impl Halt {
    /// What the work came to; `None` if it has to be begun anew.
    pub(crate) fn unless_lost<T>(done: Result<T, Self>) -> Result<Option<T>, Error> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(Self::Lost) => Ok(None),
            Err(Self::Failed(err)) => Err(err),
        }
    }
}

impl From<Error> for Halt {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

/// A lease that is held. Its drop gives it back.
pub(crate) struct Claim {
    catalog: Arc<Catalog>,
    lease: Lease,
    time: Duration,
    // Until when it is certainly ours, by this process's clock, which may stand still with it; `None` once given back.
    // Held for a look.
    sure_until: Mutex<Option<Instant>>,
    runtime: Handle,
}

impl Claim {
    /// Asks for the lease on `tenant` for `time`. Either it and what the catalog knows, or for how much longer somebody
    /// else has it.
    pub(crate) async fn take(
        catalog: &Arc<Catalog>,
        tenant: &TenantId,
        time: Duration,
    ) -> Result<Result<(Self, Record), Duration>, Error> {
        let (owner, asked) = (uuid::Uuid::new_v4().to_string(), Instant::now());
        match catalog.lease(tenant, &owner, time).await? {
            Leased::Held(left) => Ok(Err(left)),
            Leased::Granted(lease, record) => {
                let claim = Self {
                    catalog: Arc::clone(catalog),
                    lease,
                    time,
                    sure_until: Mutex::new(Some(asked + time)),
                    runtime: Handle::current(),
                };
                Ok(Ok((claim, *record)))
            }
        }
    }

    /// Until when nobody else can have the lease.
    pub(crate) fn sure_until(&self) -> Instant {
        lock(&self.sure_until).unwrap_or_else(Instant::now)
    }

    /// Does `work` while the lease is renewed, and no longer than it is certainly ours.
    ///
    /// # Cancel safety
    /// Dropping it drops the work.
    pub(crate) async fn hold<T>(
        &self,
        work: impl Future<Output = Result<T, Halt>>,
    ) -> Result<T, Halt> {
        tokio::select! {
            biased; // a process that has stood still must not go on before it has looked
            () = self.renew_until_lost() => Err(Halt::Lost),
            done = work => done,
        }
    }

    /// Asks for the lease again now, so that all of its time is left.
    pub(crate) async fn renew(&self) -> Result<(), Halt> {
        let asked = Instant::now();
        let Lease { tenant, owner, .. } = &self.lease;
        match self.catalog.lease(tenant, owner, self.time).await? {
            Leased::Granted(lease, _) if lease == self.lease => {
                *lock(&self.sure_until) = Some(asked + self.time);
                Ok(())
            }
            Leased::Granted(..) | Leased::Held(_) => Err(Halt::Lost),
        }
    }

    async fn renew_until_lost(&self) {
        loop {
            let until = self.sure_until();
            sleep_until(until - self.time / 3 * 2).await;
            while self.sure_until() == until {
                if Instant::now() >= until {
                    return;
                }
                match timeout_at(until, self.renew()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(Halt::Failed(_))) => sleep(RENEW_AGAIN).await,
                    Ok(Err(Halt::Lost)) | Err(_) => return,
                }
            }
        }
    }

    /// Writes `record`.
    pub(crate) async fn write(&self, record: &Record) -> Result<(), Halt> {
        let written = self.catalog.write(&self.lease, record, Then::Keep).await?;
        written.then_some(()).ok_or(Halt::Lost)
    }

    /// Writes `record`, and gives the lease back with it.
    pub(crate) async fn write_last(&self, record: &Record) -> Result<(), Halt> {
        let write = self.catalog.write(&self.lease, record, Then::Release);
        if !write.await? {
            return Err(Halt::Lost);
        }
        *lock(&self.sure_until) = None;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if lock(&self.sure_until).take().is_none() {
            return;
        }
        let (catalog, lease) = (Arc::clone(&self.catalog), self.lease.clone());
        self.runtime.spawn(async move {
            if let Err(err) = catalog.release(&lease).await {
                tracing::debug!(tenant = lease.tenant.as_str(), %err, "a lease could not be given back; it runs out by itself");
            }
        });
    }
}
