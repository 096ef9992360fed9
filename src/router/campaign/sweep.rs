//! The run of a campaign in this process: wave by wave, the tenants that are awake first.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Campaigns,
    note::{CampaignState, CampaignStatus},
    pace::{DEFAULT_WINDOW, Pace, Place},
    plan::Campaign,
};
use crate::{
    catalog::{Record, State},
    model::{
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
    router::Inner,
    schema::{CheckedSchema, Migrated},
    sync::lock,
};

/// Records per call of the catalog.
const PAGE: usize = 500;
/// Tries for a tenant that cannot be reached, in each wave.
const PASSES: u32 = 3;
/// Pause before such a tenant is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// Interval at which a wake waits for the callers' own.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for these, so that a campaign also ends in a process that is always busy.
const LONGEST_DEFERENCE: Duration = Duration::from_secs(10);

/// The run of a campaign in this process.
pub(super) struct Sweep {
    campaign: Campaign,
    /// The steps that it applies.
    schema: Arc<CheckedSchema>,
    // Locked to read it or to count.
    status: Arc<Mutex<CampaignStatus>>,
    heartbeat: Duration,
    /// End of the present pause after a wave.
    soaks_until: Mutex<Option<Instant>>,
}

/// The router is gone.
struct Gone;

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
                Err(_) => sleep(LOOK_AGAIN).await,
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
            let pass = Pass {
                sweep: self,
                router,
                pace: &campaigns.pace,
                running: FuturesUnordered::new(),
            };
            if pass.run(wave).await? {
                return Ok(CampaignState::Stopped);
            }
            if lock(&self.status).unreached == 0 {
                break;
            }
        }
        Ok(CampaignState::Running)
    }

    /// Counts the end of one tenant's migration.
    fn note(&self, ended: Ended) {
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

    fn is_too_much(&self) -> bool {
        let status = lock(&self.status);
        self.campaign.is_too_much(status.failed, status.migrated)
    }
}

/// One pass over the tenants of a wave.
struct Pass<'a> {
    sweep: &'a Sweep,
    router: &'a Weak<Inner>,
    pace: &'a Pace,
    running: FuturesUnordered<BoxFuture<'a, Ended>>,
}

/// The end of one tenant's migration.
struct Ended {
    tenant: TenantId,
    /// `true` if the campaign has woken the database, or may have.
    woke: bool,
    result: Result<Migrated, Error>,
}

impl<'a> Pass<'a> {
    /// Migrates the tenants of `wave` that need it. Returns whether too many have failed.
    async fn run(mut self, wave: usize) -> Result<bool, Gone> {
        let campaign = &self.sweep.campaign;
        if let Some(canaries) = campaign.canaries_of(wave) {
            self.visit(&canaries).await?;
            return self.end().await;
        }
        let here = self.tenants_here(wave)?;
        self.visit(&here).await?;
        if campaign.dormant {
            let here: HashSet<_> = here.into_iter().collect();
            let mut after = None;
            while let Some(last) = self.visit_page(wave, after.as_ref(), &here).await? {
                after = Some(last);
            }
        }
        self.end().await
    }

    /// Returns the tenants of the wave that have a pool in this process, those that are awake first.
    fn tenants_here(&self, wave: usize) -> Result<Vec<TenantId>, Gone> {
        let inner = self.router.upgrade().ok_or(Gone)?;
        let campaign = &self.sweep.campaign;
        let pools = inner.pools.all();
        let of_wave = pools
            .iter()
            .filter(|it| campaign.includes(wave, &it.tenant));
        let (awake, asleep): (Vec<_>, Vec<_>) = of_wave.partition(|it| it.is_up_or_waking());
        let ordered = awake.into_iter().chain(asleep);
        Ok(ordered.map(|pool| pool.tenant.clone()).collect())
    }

    /// Migrates those of `tenants` that need it.
    async fn visit(&mut self, tenants: &[TenantId]) -> Result<(), Gone> {
        for few in tenants.chunks(PAGE) {
            let records = loop {
                let inner = self.router.upgrade().ok_or(Gone)?;
                let (engine, _) = inner.engine_and_schema().map_err(|_| Gone)?;
                match self.beside(engine.catalog.read_records(few)).await {
                    Ok(records) => break records,
                    Err(err) => self.beside(rest_after(&err)).await,
                }
            };
            let found = records.into_iter().filter_map(|it| it.ok().flatten());
            self.visit_records(found).await?;
        }
        Ok(())
    }

    /// Migrates the tenants of the next page of records that need it, without those `but`. Returns the page's last
    /// tenant; `None` after the last page.
    async fn visit_page(
        &mut self,
        wave: usize,
        after: Option<&TenantId>,
        but: &HashSet<TenantId>,
    ) -> Result<Option<TenantId>, Gone> {
        let page = loop {
            let inner = self.router.upgrade().ok_or(Gone)?;
            let (engine, _) = inner.engine_and_schema().map_err(|_| Gone)?;
            match self.beside(engine.catalog.list(after, PAGE)).await {
                Ok(page) => break page,
                Err(err) => self.beside(rest_after(&err)).await,
            }
        };
        let last = page.last().map(|record| record.tenant.clone());
        let campaign = &self.sweep.campaign;
        let wanted = page.into_iter().filter(|record| {
            campaign.includes(wave, &record.tenant) && !but.contains(&record.tenant)
        });
        self.visit_records(wanted).await?;
        Ok(last)
    }

    async fn visit_records(&mut self, records: impl Iterator<Item = Record>) -> Result<(), Gone> {
        for record in records {
            if self.sweep.is_too_much() {
                return Ok(());
            }
            let schema = &self.sweep.schema;
            let is_due = record.state == State::Ready
                && !schema.is_current(&record.schema)
                && schema.held_back(&record.schema).is_none();
            if is_due {
                self.admit(record).await?;
            }
        }
        Ok(())
    }

    /// Starts the migration of a tenant once there is room for it, and budget if it must be woken.
    async fn admit(&mut self, record: Record) -> Result<(), Gone> {
        while self.running.len() >= self.sweep.campaign.concurrency {
            self.note_next().await;
        }
        let is_awake = {
            let inner = self.router.upgrade().ok_or(Gone)?;
            let pool = inner.pools.live(record.tenant.as_str());
            pool.is_some_and(|pool| pool.is_up_or_waking())
        };
        let window = record.endpoint.as_ref().and_then(|it| it.suspend_window);
        let place = if is_awake {
            None
        } else {
            Some(self.place(window.unwrap_or(DEFAULT_WINDOW)).await?)
        };
        if self.sweep.is_too_much() {
            place.into_iter().for_each(Place::free);
            return Ok(()); // by those that ended while this one waited
        }
        // Without others that hold the router, nobody can use what is migrated.
        if self.router.strong_count() <= self.running.len() {
            return Err(Gone);
        }
        let inner = self.router.upgrade().ok_or(Gone)?;
        let (tenant, placement) = (record.tenant, record.placement);
        let campaign = &self.sweep.campaign;
        let (contract, sleep_again) = (campaign.contract, campaign.sleep_again);
        self.running.push(Box::pin(async move {
            let result = inner.migrate_for_campaign(&tenant, contract).await;
            // After an error, it may be awake.
            let woke = place.is_some() && result.as_ref().map_or(true, |it| it.woke);
            let sleeps = match &placement {
                Some(at) if woke && sleep_again => inner.put_to_sleep(&tenant, at).await,
                _ => false,
            };
            if let (Some(place), true) = (place, sleeps || !woke) {
                place.free();
            }
            Ended {
                tenant,
                woke,
                result,
            }
        }));
        Ok(())
    }

    /// Waits until another database may be woken, and notes the ends of migrations until then. The callers' own wakes
    /// come first. Idle connections that fill the budget are no reason to wait.
    async fn place(&mut self, window: Duration) -> Result<Place<'a>, Gone> {
        let (router, pace, campaign) = (self.router, self.pace, &self.sweep.campaign);
        let defers_until = Instant::now() + LONGEST_DEFERENCE;
        let acquired = async {
            loop {
                let inner = router.upgrade().ok_or(Gone)?;
                let is_busy = inner.shared.dialer.budget.some_have_none();
                drop(inner);
                if !is_busy || Instant::now() >= defers_until {
                    return Ok(pace.acquire(campaign, window).await);
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        self.beside(acquired).await
    }

    /// Waits for `work`, and notes the ends of migrations until then.
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.running.next() => self.sweep.note(ended),
                done = &mut work => return done,
            }
        }
    }

    async fn note_next(&mut self) {
        if let Some(ended) = self.running.next().await {
            self.sweep.note(ended);
        }
    }

    /// Waits for the ends of all migrations. Returns whether too many have failed.
    async fn end(mut self) -> Result<bool, Gone> {
        while !self.running.is_empty() {
            self.note_next().await;
        }
        Ok(self.sweep.is_too_much())
    }
}

/// Waits after a failure of the catalog.
async fn rest_after(err: &Error) {
    tracing::debug!(%err, "cannot read the catalog for a campaign");
    sleep(err.retry_after().unwrap_or_default().max(LOOK_AGAIN)).await;
}
