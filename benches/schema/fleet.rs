//! A step for all tenants, most of which sleep.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tenantry::{
    BoxError, Schema, TenantRouter,
    fleet::{Campaign, CampaignState},
};
use tokio::time::{Instant, sleep};

use crate::{
    setup::{self, Setup},
    support::Table,
};

/// Time after which a database sleeps.
const WINDOW: Duration = Duration::from_secs(5);
/// Tenants that are migrated at the same time.
const AT_ONCE: usize = 8;
/// One of so many tenants is awake.
const ONE_AWAKE_OF: usize = 10;
/// Compute units of a database that is awake.
const UNITS: f64 = 0.25;
const LONGEST: Duration = Duration::from_secs(600);

/// The cost of one way to migrate the fleet.
struct Phase {
    name: &'static str,
    /// The figures' prefix.
    key: &'static str,
    took: Duration,
    wakes: usize,
    unit_seconds: f64,
    migrated: usize,
}

pub(crate) struct Fleet {
    tenants: usize,
    phases: Vec<Phase>,
}

pub(crate) async fn run(tenants: usize) -> Result<Fleet, BoxError> {
    let setup = Setup::new(WINDOW).await?;
    let names: Vec<_> = (0..tenants).map(|n| format!("t{n:03}")).collect();
    let router = setup.router(schema(1))?;
    for_all(&names, async |name| router.get(name).await.map(drop)).await?;
    router.close().await;
    setup.emulator.suspend_all().await;
    let mut phases = Vec::new();
    for (name, key) in [
        ("plain loop", "loop"),
        ("campaign that lets databases sleep again", "campaign"),
        ("default campaign", "default_campaign"),
    ] {
        let version = i64::try_from(phases.len())? + 2;
        phases.push(phase(&setup, &names, version, name, key).await?);
    }
    Ok(Fleet { tenants, phases })
}

/// A schema with so many steps.
fn schema(latest: i64) -> Schema {
    let first = Schema::new().step(1, "notes", "CREATE TABLE notes (text text)");
    let schema = (2..=latest).fold(first, |schema, version| {
        let sql = format!("ALTER TABLE notes ADD COLUMN c{version} int");
        schema.step(version, "column", sql)
    });
    schema.requires(1)
}

async fn phase(
    setup: &Setup,
    names: &[String],
    version: i64,
    name: &'static str,
    key: &'static str,
) -> Result<Phase, BoxError> {
    // Those that are awake are in use before and after; a program that needs no step yet keeps them so.
    let in_use: Vec<_> = names.iter().step_by(ONE_AWAKE_OF).cloned().collect();
    let router = setup.router(schema(version).on_access(tenantry::OnAccess::Serve))?;
    let held: Vec<_> = stream::iter(&in_use)
        .map(|name| router.get(name))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let (before, began) = (wakes(setup), Instant::now());
    match key {
        "loop" => for_all(names, async |name| router.migrate(name).await.map(drop)).await?,
        "campaign" => {
            let unpaced = Campaign::new()
                .waves([100])
                .concurrency(AT_ONCE)
                .wakes_per_hour(u32::MAX)
                .awake_at_once(names.len())
                .dormant(true)
                .sleep_again(true);
            sweep(&router, unpaced).await?;
        }
        _ => sweep(&router, Campaign::new().waves([100])).await?,
    }
    let took = began.elapsed();
    let asleep_again = names.len() - in_use.len();
    until(|| asleep(setup) >= asleep_again).await?;
    let fleet = setup::fleet(&router)?;
    let tallies = fleet.schema_versions().await?;
    let migrated = tallies.iter().filter(|it| it.version == version);
    let migrated = migrated.map(|it| it.tenants).sum::<u64>();
    let phase = Phase {
        name,
        key,
        took,
        wakes: wakes(setup) - before,
        unit_seconds: unit_seconds(setup, began),
        migrated: usize::try_from(migrated)?,
    };
    drop(held);
    router.close().await;
    setup.emulator.suspend_all().await;
    Ok(phase)
}

async fn sweep(router: &TenantRouter, campaign: Campaign) -> Result<(), BoxError> {
    let fleet = setup::fleet(router)?;
    fleet.migrate(campaign).await?;
    let ended = fleet.wait_for_campaign(|_| ()).await?;
    match (ended.state, ended.failed + ended.unreached) {
        (CampaignState::Done, 0) => Ok(()),
        _ => Err(format!("{ended:?}").into()),
    }
}

/// Visits all tenants, some at a time.
pub(crate) async fn for_all(
    names: &[String],
    visit: impl AsyncFn(&str) -> Result<(), tenantry::Error>,
) -> Result<(), BoxError> {
    let visits = stream::iter(names).map(|name| visit(name));
    Ok(visits.buffer_unordered(AT_ONCE).try_collect().await?)
}

fn wakes(setup: &Setup) -> usize {
    let all = setup.emulator.witnesses();
    all.iter().map(|it| it.wakes.len()).sum()
}

fn asleep(setup: &Setup) -> usize {
    let all = setup.emulator.witnesses();
    all.iter().filter(|it| !it.is_awake).count()
}

/// The times awake of the databases that were woken since `began`, in seconds of compute units.
fn unit_seconds(setup: &Setup, began: Instant) -> f64 {
    let mut seconds = 0.0;
    for it in setup.emulator.witnesses() {
        for wake in it.wakes.iter().filter(|wake| wake.at >= began) {
            let end = it.suspends.iter().find(|end| **end > wake.at);
            let end = end.copied().unwrap_or_else(Instant::now);
            seconds += (end - wake.at).as_secs_f64();
        }
    }
    seconds * UNITS
}

async fn until(condition: impl Fn() -> bool) -> Result<(), BoxError> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > LONGEST {
            return Err("the databases do not fall asleep".into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

impl Fleet {
    pub(crate) fn print(&self) {
        println!(
            "\nA step for {} tenants, of which a tenth is awake",
            self.tenants
        );
        let mut table = Table::new(&["", "migrated", "wakes", "CU-seconds", "time"]);
        for phase in &self.phases {
            table.row(&[
                phase.name,
                &phase.migrated.to_string(),
                &phase.wakes.to_string(),
                &format!("{:.1}", phase.unit_seconds),
                &format!("{:.1} s", phase.took.as_secs_f64()),
            ]);
        }
        table.print();
    }

    pub(crate) fn figures(&self) -> Vec<(&'static str, f64)> {
        let of = |key: &str| self.phases.iter().find(|it| it.key == key);
        let (Some(plain), Some(campaign), Some(default)) =
            (of("loop"), of("campaign"), of("default_campaign"))
        else {
            return Vec::new();
        };
        #[allow(clippy::cast_precision_loss, reason = "small counts")]
        let count = |it: usize| it as f64;
        vec![
            ("fleet_tenants", count(self.tenants)),
            ("fleet_loop_wakes", count(plain.wakes)),
            ("fleet_loop_cu_seconds", plain.unit_seconds),
            (
                "fleet_campaign_cu_seconds_over_loop",
                campaign.unit_seconds / plain.unit_seconds,
            ),
            (
                "fleet_campaign_time_over_loop",
                campaign.took.as_secs_f64() / plain.took.as_secs_f64(),
            ),
            ("fleet_default_campaign_wakes", count(default.wakes)),
            ("fleet_default_campaign_migrated", count(default.migrated)),
        ]
    }
}
