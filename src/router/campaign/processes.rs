//! The processes that share the catalog: each registers, so that a campaign knows which releases are alive.

use std::{
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout_at};

use super::plan::Campaign;
use crate::{
    catalog::Process,
    model::error::{Error, ErrorKind},
    router::Inner,
};

/// Interval at which a process registers.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Time for which a process counts as alive after it has registered.
const ALIVE_FOR: Duration = Duration::from_secs(300);
/// Longest time for the last call of a process.
const FAREWELL: Duration = Duration::from_secs(1);

/// Registers the process at intervals. Returns when the router is gone.
pub(super) async fn keep_registered(router: Weak<Inner>) {
    loop {
        let Some(inner) = router.upgrade() else {
            return;
        };
        if let Err(err) = inner.register().await {
            tracing::debug!(%err, "cannot register the process");
        }
        drop(inner);
        sleep(HEARTBEAT).await;
    }
}

impl Inner {
    async fn register(&self) -> Result<(), Error> {
        let (engine, schema) = self.engine_and_schema()?;
        let (requires, latest) = (schema.required(), schema.latest());
        let id = self.campaigns.id.clone();
        self.campaigns.is_registered.store(true, Ordering::Relaxed);
        let process = Process::new(id, requires, latest, Duration::ZERO);
        engine.catalog.register(&process).await
    }

    /// Tells the others that this process has ended, in a short time and by `until`.
    pub(in crate::router) async fn deregister(&self, until: Instant) {
        let is_registered = self.campaigns.is_registered.swap(false, Ordering::Relaxed);
        let Ok((engine, _)) = self.engine_and_schema() else {
            return;
        };
        if is_registered {
            let until = until.min(Instant::now() + FAREWELL);
            let farewell = engine.catalog.deregister(&self.campaigns.id);
            let _ = timeout_at(until, farewell).await; // otherwise it counts as alive for some minutes
        }
    }

    /// Returns an error if `campaign` takes away what a living process needs.
    pub(super) async fn check_processes(&self, campaign: &Campaign) -> Result<(), Error> {
        let Some(version) = campaign.contract else {
            return Ok(());
        };
        let (engine, schema) = self.engine_and_schema()?;
        let needed = schema.before_contract();
        let own = schema.required();
        if own < needed {
            let message = format!(
                "step {version} takes away what a program needs that works with version {own}, and this one does \
                 (`requires({own})`); release a program with `requires({needed})` first"
            );
            return Err(Error::new(ErrorKind::Misused, message));
        }
        let processes = engine.catalog.processes().await?;
        let alive = processes.into_iter().filter(|it| it.age < ALIVE_FOR);
        let old = alive.filter(|it| it.requires < needed);
        let Some(last) = old.min_by_key(|it| it.age) else {
            return Ok(());
        };
        let message = format!(
            "step {version} takes away what earlier releases need, and a process that works with version {} was alive \
             {} s ago; end it, or wait for 5 minutes if it was killed",
            last.requires,
            last.age.as_secs()
        );
        let waits = ALIVE_FOR.saturating_sub(last.age);
        Err(Error::new(ErrorKind::Conflict, message).with_retry_after(waits))
    }
}
