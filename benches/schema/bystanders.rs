//! The callers of other tenants, while a campaign wakes and migrates tenants.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use tenantry::{BoxError, OnAccess, Schema, TenantRouter, fleet::Campaign};
use tokio::time::{Instant, sleep};

use crate::{
    fleet::for_all,
    setup::{self, Setup},
    support::{QUERY, Samples, Table, median},
};

/// Callers, each of a tenant of its own.
const CALLERS: usize = 8;
/// Pause of a caller between two calls.
const PAUSE: Duration = Duration::from_millis(3);
/// Wakes in a second: twelve times the default budget.
const WAKES: u32 = 2;
/// Time of a turn.
const TURN: Duration = Duration::from_secs(5);
const TURNS: usize = 10;
/// The databases sleep only when they are told to.
const WINDOW: Duration = Duration::from_secs(3600);

pub(crate) struct Bystanders {
    calm: Samples,
    busy: Samples,
    /// The p99 of each turn with the campaign, by that of the calm turn before.
    ratios: Vec<f64>,
    migrated: u64,
}

/// The times of calls since they were taken last.
type Times = Arc<Mutex<Vec<Duration>>>;

pub(crate) async fn run() -> Result<Bystanders, BoxError> {
    let setup = Setup::new(WINDOW).await?;
    let (first, second) = (
        "CREATE TABLE notes (text text)",
        "ALTER TABLE notes ADD COLUMN day date",
    );
    let old = Schema::new().step(1, "notes", first);
    let earlier = setup.router(old.clone())?;
    let seconds = TURN.as_secs() * TURNS as u64;
    let sleeping = 0..u64::from(WAKES) * seconds + 20;
    let names: Vec<_> = sleeping.map(|n| format!("t{n:03}")).collect();
    for_all(&names, async |name| earlier.get(name).await.map(drop)).await?;
    earlier.close().await;
    setup.emulator.suspend_all().await;
    let router = setup.router(old.step(2, "day", second).on_access(OnAccess::Serve))?;
    let (times, is_over) = (Times::default(), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|n| {
            let call = call_again_and_again(
                router.clone(),
                format!("bystander{n}"),
                Arc::clone(&times),
                Arc::clone(&is_over),
            );
            tokio::spawn(call)
        })
        .collect();
    let results = turns(&router, &times).await;
    is_over.store(true, Relaxed);
    try_join_all(callers)
        .await?
        .into_iter()
        .collect::<Result<(), _>>()?;
    router.close().await;
    results
}

async fn call_again_and_again(
    router: TenantRouter,
    tenant: String,
    times: Times,
    is_over: Arc<AtomicBool>,
) -> Result<(), tenantry::Error> {
    while !is_over.load(Relaxed) {
        let start = Instant::now();
        let client = router.get(&tenant).await?;
        client.query_typed(QUERY, &[]).await?;
        drop(client);
        if let Ok(mut times) = times.lock() {
            times.push(start.elapsed());
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// A calm turn and one with the campaign, again and again.
async fn turns(router: &TenantRouter, times: &Times) -> Result<Bystanders, BoxError> {
    let fleet = setup::fleet(router)?;
    let (mut calm, mut busy) = (Samples::default(), Samples::default());
    let mut ratios = Vec::new();
    sleep(TURN).await; // all connections are open
    for turn in 0..TURNS {
        let before = taken_in_a_turn(times).await;
        if turn == 0 {
            let campaign = Campaign::new().waves([100]).dormant(true);
            let paced = campaign
                .wakes_per_hour(WAKES * 3600)
                .awake_at_once(usize::MAX);
            fleet.migrate(paced).await?;
        } else {
            fleet.resume_campaign().await?;
        }
        let with_campaign = taken_in_a_turn(times).await;
        fleet.pause_campaign().await?;
        sleep(TURN / 5).await; // the migrations under way end
        ratios.push(with_campaign.at(0.99) / before.at(0.99));
        calm.merge(&before);
        busy.merge(&with_campaign);
    }
    let ended = fleet.cancel_campaign().await?;
    Ok(Bystanders {
        calm,
        busy,
        ratios,
        migrated: ended.migrated,
    })
}

async fn taken_in_a_turn(times: &Times) -> Samples {
    let take = || {
        times
            .lock()
            .map(|mut it| std::mem::take(&mut *it))
            .unwrap_or_default()
    };
    take();
    sleep(TURN).await;
    let mut samples = Samples::default();
    samples.extend(take());
    samples
}

impl Bystanders {
    pub(crate) fn print(&self) {
        println!(
            "\nCallers of {CALLERS} tenants, while a campaign wakes {WAKES} others a second ({} in all)",
            self.migrated
        );
        let mut table = Table::new(&["", "median", "p99"]);
        for (name, samples) in [("calm", &self.calm), ("with the campaign", &self.busy)] {
            let of = |share| format!("{:.3} ms", samples.at(share));
            table.row(&[name, &of(0.5), &of(0.99)]);
        }
        table.print();
        println!("bystanders_p99_over_calm {:.3}", self.over_calm());
    }

    fn over_calm(&self) -> f64 {
        median(self.ratios.iter().copied())
    }

    pub(crate) fn figures(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("bystanders_p99_over_calm", self.over_calm()),
            ("bystanders_calm_p99_ms", self.calm.at(0.99)),
            ("bystanders_campaign_p99_ms", self.busy.at(0.99)),
        ]
    }
}
