//! Replicas of one app on one catalog in Postgres: the load that they put on it, and how soon they hear of changes.
//!
//! Takes two to three minutes, and needs a Postgres server and a PgBouncer on the machine, as the emulator does.
//!
//! The catalog is a real Postgres on this machine, without `fsync`. Replicas are routers in this process, each with a
//! catalog of its own: its own sessions, through a relay that counts bytes and delays nothing. Tenants' databases are
//! scripts behind pipes. All tenants are preloaded, and each replica calls `get` 200 times a second, by Zipf's law.
//!
//! A writer beside them changes the limit of connections of so many tenants a second. Every fifth change is of a tenant
//! of which each replica has a pool: until that pool has the new limit it is *stale*. Every tenth holds a tenant,
//! until the last replica refuses it (*evicted*), and gives it back. Both are measured from the end of the write.
//!
//! Calls are those that the replicas count (`catalog_calls`). In the end Postgres's own count of transactions must be
//! theirs, the writer's, and one for each notification that a replica gets. The rows differ in one thing each, so that
//! they show what the load grows with: replicas, tenants, changes. Two replicas know only entries that are older than
//! `catalog_ttl`, which uses of the tenants read again. In the other rows no entry is old, as in the first minutes of a
//! process.
//!
//! The records have no passwords in Postgres, because sealing takes the crate's own code; they are added on this side.
//! Bytes are short of those by some 100 for each record.

#[path = "replicas/churn.rs"]
mod churn;
#[path = "replicas/place.rs"]
mod place;
#[path = "replicas/replica.rs"]
mod replica;

use std::{sync::Arc, time::Duration};

use tenantry::BoxError;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    rng::Zipf,
    support::{self, Samples, Table},
};

use churn::Churn;
use place::Place;
use replica::{Replica, totals};

/// Tenants, and the time for which each row of the table is measured.
pub(crate) const TENANTS: usize = 300_000;
pub(crate) const TIME: Duration = Duration::from_secs(8);
/// Factor of that time if nothing changes: a poll comes every 30 seconds.
const IDLE: u32 = 7;
/// Replicas: many, and few.
const MANY: usize = 8;
const FEW: usize = 2;
/// Share of the tenants that changes in a minute.
const CHURN: f64 = 0.01;
/// Time after which the entries of some replicas are old.
const SHORT_TTL: Duration = Duration::from_secs(1);
/// Time in which pools are made, and old entries found, before a row is measured.
const WARM_UP: Duration = Duration::from_secs(3);
/// Most by which the two counts of calls may differ.
const TOLERANCE: f64 = 0.03;

/// The number of replicas and tenants of one measurement, and what came of it.
struct Row {
    name: &'static str,
    replicas: usize,
    tenants: usize,
    seconds: f64,
    calls: f64,
    bytes: f64,
    churn: Churn,
}

/// The counts of one catalog.
struct Seen {
    /// Transactions, as Postgres counted them, over those that must have been by the replicas' own count of calls.
    transactions_over_expected: f64,
    sequential_scans: f64,
}

pub(crate) async fn run(tenants: usize, time: Duration) -> Result<(), BoxError> {
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let churn = tenants as f64 * CHURN / 60.0;
    let (mut rows, mut seen) = (Vec::new(), Vec::new());
    seen.push(on_few_tenants(tenants / 10, churn / 5.0, time, &mut rows).await?);
    seen.push(on_many_tenants(tenants, churn, time, &mut rows).await?);
    print(&rows, &seen);
    let figures = figures(&rows, &seen)?;
    println!();
    for (name, value) in &figures {
        println!("{name} {value:.3}");
    }
    support::write_figures("scale_replicas", &figures)?;
    let differs = |it: &Seen| (it.transactions_over_expected - 1.0).abs() > TOLERANCE;
    if seen.iter().any(differs) {
        return Err("Postgres and the replicas count differently".into());
    }
    Ok(())
}

/// Few replicas and many with the same changes, and few whose entries are old.
async fn on_few_tenants(
    tenants: usize,
    churn: f64,
    time: Duration,
    rows: &mut Vec<Row>,
) -> Result<Seen, BoxError> {
    let mut place = Place::new(tenants).await?;
    let mut replicas = place.start(FEW, None).await?;
    rows.push(measure("few replicas", &place, &replicas, churn, time).await?);
    replicas.extend(place.start(MANY - FEW, None).await?);
    rows.push(measure("few tenants", &place, &replicas, churn, time).await?);
    place.end(replicas).await;
    let replicas = place.start(FEW, Some(SHORT_TTL)).await?;
    rows.push(measure("old entries", &place, &replicas, 0.0, time).await?);
    place.end(replicas).await;
    place.seen().await
}

/// Many replicas with few changes, with many, and with none.
async fn on_many_tenants(
    tenants: usize,
    churn: f64,
    time: Duration,
    rows: &mut Vec<Row>,
) -> Result<Seen, BoxError> {
    let mut place = Place::new(tenants).await?;
    let replicas = place.start(MANY, None).await?;
    for (name, churn, time) in [
        ("few changes", churn / 5.0, time),
        ("1 % a minute", churn, time),
        ("no changes", 0.0, IDLE * time),
    ] {
        rows.push(measure(name, &place, &replicas, churn, time).await?);
    }
    place.end(replicas).await;
    place.seen().await
}

/// Measures `replicas` in use while so many tenants a second change.
async fn measure(
    name: &'static str,
    place: &Place,
    replicas: &[Arc<Replica>],
    churn: f64,
    time: Duration,
) -> Result<Row, BoxError> {
    let (places, mut traffic) = (Arc::new(Zipf::new(place.tenants)), JoinSet::new());
    for (seed, replica) in (1..).zip(replicas) {
        let (replica, places) = (Arc::clone(replica), Arc::clone(&places));
        traffic.spawn(async move { replica.use_tenants(seed, &places).await });
    }
    sleep(WARM_UP).await;
    let ((calls, bytes), start) = (totals(replicas), Instant::now());
    let churn = churn::run(place, replicas, churn, time).await?;
    let (seconds, after) = (start.elapsed().as_secs_f64(), totals(replicas));
    traffic.shutdown().await;
    Ok(Row {
        name,
        replicas: replicas.len(),
        tenants: place.tenants,
        seconds,
        calls: after.0 - calls,
        bytes: after.1 - bytes,
        churn,
    })
}

fn print(rows: &[Row], seen: &[Seen]) {
    println!("\nReplicas on one catalog in Postgres\n");
    let mut table = Table::new(&[
        "",
        "replicas",
        "tenants",
        "changes/s",
        "calls/s",
        "kB/s",
        "stale p50",
        "stale p99",
        "evicted p50",
        "evicted p99",
    ]);
    for it in rows {
        let Churn {
            changes,
            staleness,
            evictions,
        } = &it.churn;
        let ms = |of: &Samples, share| match of.count() {
            0 => "-".to_owned(),
            _ => of.ms(share),
        };
        table.row(&[
            it.name,
            &it.replicas.to_string(),
            &it.tenants.to_string(),
            &format!("{:.1}", changes / it.seconds),
            &format!("{:.1}", it.calls_per_second()),
            &format!("{:.1}", it.kilobytes_per_second()),
            &ms(staleness, 0.5),
            &ms(staleness, 0.99),
            &ms(evictions, 0.5),
            &ms(evictions, 0.99),
        ]);
    }
    table.print();
    for it in seen {
        println!(
            "\nPostgres counted {:.3} times as many transactions as the replicas' calls account for, and {} sequential scans.",
            it.transactions_over_expected, it.sequential_scans
        );
    }
}

impl Row {
    fn calls_per_second(&self) -> f64 {
        self.calls / self.seconds
    }

    fn kilobytes_per_second(&self) -> f64 {
        self.bytes / self.seconds / 1e3
    }
}

fn figures(rows: &[Row], seen: &[Seen]) -> Result<Vec<(&'static str, f64)>, BoxError> {
    let [few_replicas, few_tenants, old, few_changes, full, idle] = rows else {
        return Err("not everything was measured".into());
    };
    let of_each =
        |it: &Row| it.calls_per_second() / f64::from(u32::try_from(it.replicas).unwrap_or(1));
    let over = |it: &Row, other: &Row| it.calls_per_second() / other.calls_per_second();
    let scans = seen.iter().map(|it| it.sequential_scans).sum();
    let counts = seen.iter().map(|it| it.transactions_over_expected);
    let Churn {
        changes,
        staleness,
        evictions,
    } = &full.churn;
    Ok(vec![
        ("catalog_queries_per_s_8_replicas", full.calls_per_second()),
        ("catalog_kb_per_s_8_replicas", full.kilobytes_per_second()),
        ("catalog_queries_idle_per_min", 60.0 * of_each(idle)),
        ("catalog_queries_old_entries_per_s", of_each(old)),
        (
            "catalog_queries_300k_over_30k",
            over(few_changes, few_tenants),
        ),
        (
            "catalog_queries_8_over_2_replicas",
            over(few_tenants, few_replicas),
        ),
        (
            "catalog_queries_50_over_10_changes",
            over(full, few_changes),
        ),
        ("catalog_queries_per_change", full.calls / changes),
        (
            "catalog_transactions_over_expected",
            counts.fold(0.0, f64::max),
        ),
        ("catalog_seq_scans", scans),
        ("staleness_p50_ms", staleness.at(0.5)),
        ("staleness_p99_ms", staleness.at(0.99)),
        ("eviction_all_replicas_p50_ms", evictions.at(0.5)),
        ("eviction_all_replicas_p99_ms", evictions.at(0.99)),
    ])
}
