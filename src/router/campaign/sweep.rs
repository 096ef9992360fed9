//! The run of a campaign in this process, wave by wave.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Campaigns,
    note::{CampaignState, CampaignStatus},
    pass::{Ended, Pass},
    plan::Campaign,
};
use crate::{
    model::error::{Error, ErrorKind},
    router::Inner,
    schema::CheckedSchema,
    sync::lock,
};

/// Tries for a tenant that cannot be reached, in each wave.
const PASSES: u32 = 3;
/// Pause before such a tenant is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// Pause before the end of a campaign is written once more.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// The run of a campaign in this process.
pub(super) struct Sweep {
    pub(super) campaign: Campaign,
    /// The steps that it applies.
    pub(super) schema: Arc<CheckedSchema>,
    // Locked to read it or to count.
    status: Arc<Mutex<CampaignStatus>>,
    heartbeat: Duration,
    /// End of the present pause after a wave.
    soaks_until: Mutex<Option<Instant>>,
}

/// The router is gone.
pub(super) struct Gone;

/// Shows the progress of a campaign in the metrics, until it is dropped.
struct Running<'a>(&'a Campaigns);

impl<'a> Running<'a> {
    fn new(status: &Arc<Mutex<CampaignStatus>>, campaigns: &'a Campaigns) -> Self {
        *lock(&campaigns.running) = Some(Arc::clone(status));
        Self(campaigns)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) = None;
    }
}

impl Sweep {
    pub(super) fn new(
        status: CampaignStatus,
        schema: Arc<CheckedSchema>,
        heartbeat: Duration,
        now: Instant,
    ) -> Self {
        let soaks_until = status.soaks_for.map(|left| now + left);
        Self {
            campaign: status.campaign.clone(),
            schema,
            status: Arc::new(Mutex::new(status)),
            heartbeat,
            soaks_until: Mutex::new(soaks_until),
        }
    }

    /// Runs until the campaign ends, is paused or cancelled, or belongs to another process.
    pub(super) async fn run(self, router: &Weak<Inner>, campaigns: &Campaigns) {
        let target = lock(&self.status).target;
        tracing::info!(target_version = target, "a campaign runs in this process");
        let running = Running::new(&self.status, campaigns);
        let ended = tokio::select! {
            biased;
            stopped = self.keep_up(router, campaigns) => stopped,
            ended = self.sweep(router, campaigns) => ended.ok(),
        };
        drop(running);
        let Some(state) = ended else {
            return;
        };
        lock(&self.status).state = state;
        // Without this, another process would sweep once more, which would do no harm.
        for _ in 0..super::MOST_TRIES {
            match self.write(router).await {
                Ok(false) => return,
                Ok(true) => break,
                Err(_) => sleep(WRITE_AGAIN).await,
            }
        }
        tracing::info!(target_version = target, ?state, "a campaign has ended");
    }

    /// Writes the progress at intervals. Returns when the campaign must stop, or is no longer this process's to run.
    async fn keep_up(&self, router: &Weak<Inner>, campaigns: &Campaigns) -> Option<CampaignState> {
        loop {
            let begun = campaigns.begun.notified();
            let _ = timeout(self.heartbeat, begun).await;
            match self.write(router).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(err) if err.kind() == ErrorKind::Conflict => {
                    lock(&self.status).reason = Some(err.to_string());
                    return Some(CampaignState::Stopped);
                }
                Err(err) => tracing::debug!(%err, "cannot write the progress of a campaign"),
            }
        }
    }

    /// Writes the progress. Returns `false` if the campaign is no longer this process's to run.
    async fn write(&self, router: &Weak<Inner>) -> Result<bool, Error> {
        loop {
            let Some(inner) = router.upgrade() else {
                return Ok(false);
            };
            let Some((present, version, _)) = inner.read_campaign().await? else {
                return Ok(false);
            };
            let mut status = lock(&self.status).clone();
            let until = *lock(&self.soaks_until);
            status.awake = inner.campaigns.pace.awake();
            status.soaks_for = until.map(|until| until.saturating_duration_since(Instant::now()));
            let is_ours = present.id == status.id
                && present.state == CampaignState::Running
                && present.owner == status.owner;
            if !is_ours && (!present.owner.is_empty() || present.id != status.id) {
                return Ok(false);
            }
            if !is_ours {
                // An operator has changed the state; the counts are this process's.
                (status.state, status.owner) = (present.state, String::new());
            } else if status.state == CampaignState::Running {
                inner.check_processes(&self.campaign).await?;
            }
            if inner.write_campaign(&status, version).await? {
                return Ok(is_ours);
            }
        }
    }

    /// Returns the state in which the campaign ends.
    async fn sweep(
        &self,
        router: &Weak<Inner>,
        campaigns: &Campaigns,
    ) -> Result<CampaignState, Gone> {
        loop {
            let until = *lock(&self.soaks_until);
            let wave = lock(&self.status).wave;
            if let Some(until) = until {
                sleep_until(until).await;
                *lock(&self.soaks_until) = None;
                lock(&self.status).wave = wave + 1;
                continue;
            }
            if self.sweep_wave(wave - 1, router, campaigns).await? == CampaignState::Stopped {
                let mut status = lock(&self.status);
                let ending = if status.failed == 1 { " has" } else { "s have" };
                let reason = format!("{} tenant{ending} failed", status.failed);
                status.reason = Some(reason);
                return Ok(CampaignState::Stopped);
            }
            if wave >= self.campaign.wave_count() {
                return Ok(CampaignState::Done);
            }
            *lock(&self.soaks_until) = Some(Instant::now() + self.campaign.soak);
        }
    }

    /// Migrates the tenants of the wave, in passes until each was reached.
    async fn sweep_wave(
        &self,
        wave: usize,
        router: &Weak<Inner>,
        campaigns: &Campaigns,
    ) -> Result<CampaignState, Gone> {
        for pass in 0..PASSES {
            if pass > 0 {
                sleep(PAUSE).await;
            }
            lock(&self.status).unreached = 0;
            if Pass::new(self, router, &campaigns.pace).run(wave).await? {
                return Ok(CampaignState::Stopped);
            }
            if lock(&self.status).unreached == 0 {
                break;
            }
        }
        Ok(CampaignState::Running)
    }

    /// Counts the end of one tenant's migration.
    pub(super) fn note(&self, ended: Ended) {
        let Ended {
            tenant,
            woke,
            result,
        } = ended;
        let mut status = lock(&self.status);
        status.woken += u64::from(woke);
        match result {
            Ok(migrated) => status.migrated += u64::from(!migrated.steps.is_empty()),
            Err(err) if matches!(err.kind(), ErrorKind::Schema(_)) => {
                status.note_failed(tenant.as_str(), &err.to_string());
            }
            // They are no longer to be served, or another one's to mend.
            Err(err) if matches!(err.kind(), ErrorKind::Held | ErrorKind::Deleted) => {}
            Err(err) => {
                let (tenant, code) = (tenant.as_str(), err.kind().code());
                tracing::debug!(tenant, code, %err, "a campaign cannot reach the tenant");
                status.unreached += 1;
            }
        }
    }

    pub(super) fn is_too_much(&self) -> bool {
        let status = lock(&self.status);
        self.campaign.is_too_much(status.failed, status.migrated)
    }
}
