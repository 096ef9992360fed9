//! One pass over the tenants of a wave, those that are awake first.

use std::{collections::HashSet, pin::pin, sync::Weak, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep};

use super::{
    pace::{DEFAULT_WINDOW, Pace, Place},
    sweep::{Gone, Sweep},
};
use crate::{
    catalog::{Record, State},
    model::{error::Error, tenant::TenantId},
    router::Inner,
    schema::Migrated,
};

/// Records per call of the catalog.
const PAGE: usize = 500;
/// Interval at which a wake waits for the callers' own.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for these, so that a campaign also ends in a process that is always busy.
const LONGEST_DEFERENCE: Duration = Duration::from_secs(10);

/// One pass over the tenants of a wave.
pub(super) struct Pass<'a> {
    sweep: &'a Sweep,
    router: &'a Weak<Inner>,
    pace: &'a Pace,
    running: FuturesUnordered<BoxFuture<'a, Ended>>,
}

/// The end of one tenant's migration.
pub(super) struct Ended {
    pub(super) tenant: TenantId,
    /// `true` if the campaign has woken the database, or may have.
    pub(super) woke: bool,
    pub(super) result: Result<Migrated, Error>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(sweep: &'a Sweep, router: &'a Weak<Inner>, pace: &'a Pace) -> Self {
        Self {
            sweep,
            router,
            pace,
            running: FuturesUnordered::new(),
        }
    }

    /// Migrates the tenants of `wave` that need it. Returns whether too many have failed.
    pub(super) async fn run(mut self, wave: usize) -> Result<bool, Gone> {
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
