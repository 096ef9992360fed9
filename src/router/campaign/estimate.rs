//! The size of a campaign, by the catalog's records alone.

use std::{collections::BTreeMap, time::Duration};

use super::{
    pace::{DEFAULT_WINDOW, step},
    plan::Campaign,
};
use crate::{
    catalog::{Record, State},
    model::{error::Error, tenant::TenantId},
    router::Inner,
    schema::CheckedSchema,
};

/// Records per call of the catalog.
const PAGE: usize = 500;
/// Time for which a database is awake that is suspended after its steps.
const SHORT_WINDOW: Duration = Duration::from_secs(10);
/// Compute units of a database that a campaign wakes: Neon's smallest compute.
const COMPUTE_UNITS: f64 = 0.25;

/// The size of a campaign that is not begun. Returned by [`Fleet::estimate`](crate::Fleet::estimate).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Estimate {
    /// The version to which it would migrate tenants.
    pub target: i64,
    /// Number of tenants that are served, by version; 0 for those whose version is not known.
    pub versions: BTreeMap<i64, u64>,
    /// Tenants that it would migrate.
    pub due: u64,
    /// Those of them that it would wake. The others are awake in this process.
    pub wakes: u64,
    /// Tenants that lack steps and are left to their next access, because the campaign wakes no
    /// [dormant](Campaign::dormant) ones.
    pub left_asleep: u64,
    /// Tenants that lack steps and whose last failure is not due again.
    pub held_back: u64,
    /// Hours of compute units for the wakes: each keeps the smallest compute (0.25 units) awake for the endpoint's
    /// suspend window, or for 10 seconds with [`sleep_again`](Campaign::sleep_again). A larger smallest size of your
    /// own multiplies this.
    pub compute_unit_hours: f64,
    /// Time that the pauses and the pace take at least. The steps come on top.
    pub takes: Duration,
}

impl Estimate {
    /// Returns the price of the wakes, for a price of one hour of a compute unit. Neon's was $0.106 in its plan Launch,
    /// by its price list of 2026.
    pub fn cost(&self, price: f64) -> f64 {
        self.compute_unit_hours * price
    }
}

/// The state of a count.
struct Count<'a> {
    campaign: &'a Campaign,
    schema: &'a CheckedSchema,
    canaries: Vec<TenantId>,
    estimate: Estimate,
    /// Number and suspend windows of the wakes in each wave.
    waves: Vec<(u32, Duration)>,
}

/// The use of a tenant in this process.
#[derive(Clone, Copy)]
enum Use {
    Awake,
    Recent,
    Dormant,
}

impl Inner {
    /// Counts the work of `campaign`, and wakes no database.
    pub(crate) async fn estimate_campaign(&self, campaign: &Campaign) -> Result<Estimate, Error> {
        campaign.check()?;
        let (engine, _) = self.engine_and_schema()?;
        let schema = self.schema_for(campaign)?;
        let mut count = Count::new(campaign, &schema);
        let mut after = None;
        loop {
            let page = engine.catalog.list(after.as_ref(), PAGE).await?;
            for record in &page {
                count.add(record, self.use_of(&record.tenant));
            }
            match page.last() {
                Some(last) => after = Some(last.tenant.clone()),
                None => return Ok(count.end()),
            }
        }
    }

    fn use_of(&self, tenant: &TenantId) -> Use {
        match self.pools.live(tenant.as_str()) {
            Some(pool) if pool.is_up_or_waking() => Use::Awake,
            Some(_) => Use::Recent,
            None => Use::Dormant,
        }
    }
}

impl<'a> Count<'a> {
    fn new(campaign: &'a Campaign, schema: &'a CheckedSchema) -> Self {
        Self {
            campaign,
            schema,
            canaries: campaign.canaries_of(0).unwrap_or_default(),
            estimate: Estimate {
                target: schema.latest(),
                versions: BTreeMap::new(),
                due: 0,
                wakes: 0,
                left_asleep: 0,
                held_back: 0,
                compute_unit_hours: 0.0,
                takes: Duration::ZERO,
            },
            waves: vec![(0, Duration::ZERO); campaign.wave_count()],
        }
    }

    fn add(&mut self, record: &Record, used: Use) {
        if record.state != State::Ready {
            return;
        }
        let estimate = &mut self.estimate;
        *estimate.versions.entry(record.schema.version).or_default() += 1;
        let is_canary = self.canaries.contains(&record.tenant);
        if self.schema.is_current(&record.schema) {
        } else if self.schema.held_back(&record.schema).is_some() {
            estimate.held_back += 1;
        } else if matches!(used, Use::Dormant) && !is_canary && !self.campaign.dormant {
            estimate.left_asleep += 1;
        } else {
            estimate.due += 1;
            if !matches!(used, Use::Awake) {
                self.add_wake(record, is_canary);
            }
        }
    }

    fn add_wake(&mut self, record: &Record, is_canary: bool) {
        let window = record.endpoint.as_ref().and_then(|it| it.suspend_window);
        let window = if self.campaign.sleep_again {
            SHORT_WINDOW
        } else {
            window.unwrap_or(DEFAULT_WINDOW)
        };
        self.estimate.wakes += 1;
        self.estimate.compute_unit_hours += COMPUTE_UNITS * window.as_secs_f64() / 3600.0;
        let includes = |wave: &usize| self.campaign.includes(*wave, &record.tenant);
        let wave = (0..self.waves.len()).find(includes).unwrap_or_default();
        let (wakes, windows) = &mut self.waves[if is_canary { 0 } else { wave }];
        *wakes += 1;
        *windows += window;
    }

    fn end(mut self) -> Estimate {
        let at_once = u32::try_from(self.campaign.awake_at_once).unwrap_or(u32::MAX);
        let step = step(self.campaign);
        // The tighter of both limits decides: so many wakes an hour, or so many windows beside each other.
        let waves = self.waves.iter();
        let paced = waves.map(|(wakes, windows)| (step * *wakes).max(*windows / at_once));
        let pauses = u32::try_from(self.waves.len() - 1).unwrap_or(u32::MAX);
        self.estimate.takes = paced.sum::<Duration>() + self.campaign.soak * pauses;
        self.estimate
    }
}
