//! A whole rollout under load: expand, backfill and contract, with processes of three releases beside each other.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use futures_util::{StreamExt, future::join_all, stream};
use tenantry::{
    Error, ErrorKind, Fleet, Schema, TenantRouter,
    fleet::{Campaign, CampaignState, CampaignStatus},
};
use tokio::{
    task::JoinHandle,
    time::{Duration, timeout},
};

use crate::support::{Databases, LONG, column};

const TENANTS: usize = 60;
/// Each release runs so many processes.
const PROCESSES: usize = 3;

/// The schema of the first release. Each step writes its number, so that a step that ran twice is seen twice.
fn first() -> Schema {
    let sql =
        "CREATE TABLE log (step int); CREATE TABLE notes (day text); INSERT INTO log VALUES (1)";
    Schema::new().step(1, "notes", sql)
}

/// The schema of both later releases: a column is added, filled, and the one that it replaces is dropped.
fn expanded() -> Schema {
    first()
        .step(
            2,
            "date",
            "ALTER TABLE notes ADD COLUMN date date; INSERT INTO log VALUES (2)",
        )
        .run(3, "dates", |client| async move {
            let fill = "UPDATE notes SET date = day::date WHERE date IS NULL";
            client.batch_execute(fill).await?;
            Ok(())
        })
        .step(
            4,
            "no day",
            "ALTER TABLE notes DROP COLUMN day; INSERT INTO log VALUES (4)",
        )
        .contract()
}

/// A release: its schema, and the statement by which its callers write.
#[derive(Clone, Copy, Debug)]
enum Release {
    /// Knows the old column.
    First,
    /// Works with and without the new column.
    Second,
    /// Does not know the old column.
    Third,
}

impl Release {
    fn schema(self) -> Schema {
        match self {
            Self::First => first(),
            Self::Second => expanded().requires(1),
            Self::Third => expanded().requires(3),
        }
    }

    fn insert(self) -> &'static str {
        match self {
            Self::First | Self::Second => "INSERT INTO notes (day) VALUES ('2026-01-01')",
            Self::Third => "INSERT INTO notes (date) VALUES ('2026-01-01')",
        }
    }
}

/// The processes of one release, each with a caller that visits tenants all the time.
struct Running {
    routers: Vec<TenantRouter>,
    callers: Vec<JoinHandle<Result<u64, Error>>>,
    is_over: Arc<AtomicBool>,
}

impl Running {
    fn start(databases: &Databases, release: Release, names: &Arc<Vec<String>>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let routers: Vec<_> = (0..PROCESSES)
            .map(|_| {
                let builder = databases.leased_builder().max_connections(5);
                let builder = builder.catalog_poll(Duration::from_millis(300));
                builder.schema(release.schema()).build().unwrap()
            })
            .collect();
        let callers = routers.iter().enumerate().map(|(n, router)| {
            let (router, names) = (router.clone(), Arc::clone(names));
            let is_over = Arc::clone(&is_over);
            tokio::spawn(async move {
                let mut calls = 0;
                // Each caller has an order of its own.
                for at in (0..).map(|call| (call * 37 + n * 61) % TENANTS) {
                    if is_over.load(Relaxed) {
                        break;
                    }
                    visit(&router, &names[at], release).await?;
                    calls += 1;
                }
                Ok(calls)
            })
        });
        let callers = callers.collect();
        Self {
            routers,
            callers,
            is_over,
        }
    }

    fn fleet(&self) -> Fleet {
        self.routers[0].fleet().expect("a fleet")
    }

    /// Ends callers and processes. No caller had an error.
    async fn end(self, release: Release) {
        self.is_over.store(true, Relaxed);
        for ended in join_all(self.callers).await {
            let calls = ended
                .unwrap()
                .unwrap_or_else(|err| panic!("{release:?}: {err:?}"));
            assert!(calls > 0, "{release:?}: no call");
        }
        for router in self.routers {
            router.close_within(LONG).await;
        }
    }
}

/// Writes a note and reads the number of notes.
async fn visit(router: &TenantRouter, tenant: &str, release: Release) -> Result<(), Error> {
    let handle = router.handle(tenant)?;
    let insert = release.insert();
    handle
        .transaction(|tx| async move { Ok::<_, Error>(tx.execute(insert, &[]).await?) })
        .await?;
    let count = "SELECT count(*) FROM notes";
    handle
        .read(|tx| async move { Ok::<_, Error>(tx.query_one(count, &[]).await?) })
        .await?;
    Ok(())
}

fn campaign() -> Campaign {
    Campaign::new()
        .canaries(["t000"])
        .waves([10, 100])
        .soak(Duration::from_millis(100))
        .wakes_per_hour(u32::MAX)
        .awake_at_once(TENANTS)
        .dormant(true)
}

async fn ended(fleet: &Fleet) -> CampaignStatus {
    let waited = timeout(8 * LONG, fleet.wait_for_campaign(|_| ()));
    waited.await.expect("it ends").expect("a campaign")
}

/// The steps in the databases of all tenants, by the log that each step writes and by the history.
async fn steps(databases: &Databases, names: &[String]) -> Vec<String> {
    let mut all: Vec<_> = stream::iter(names)
        .map(|name| async move {
            let client = databases.session(name).await;
            let log = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";
            let history = "SELECT string_agg(version::text, ' ' ORDER BY version) FROM tenantry.schema_history";
            let (log, history) = (column(&client, log).await, column(&client, history).await);
            format!("{} / {}", log.concat(), history.concat())
        })
        .buffer_unordered(4)
        .collect()
        .await;
    all.sort();
    all.dedup();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_goes_through_expand_and_contract_under_load_without_an_error() {
    let names: Arc<Vec<_>> = Arc::new((0..TENANTS).map(|n| format!("t{n:03}")).collect());
    let databases =
        Databases::recorded(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let old = Running::start(&databases, Release::First, &names);
    let moved = AtomicU64::new(0);
    let migrated = stream::iter(names.iter()).for_each_concurrent(4, |name| {
        let (router, moved) = (&old.routers[0], &moved);
        async move {
            router.migrate(name).await.unwrap();
            moved.fetch_add(1, Relaxed);
        }
    });
    migrated.await;
    assert_eq!(moved.into_inner(), TENANTS as u64);

    let new = Running::start(&databases, Release::Second, &names);
    new.fleet().migrate(campaign()).await.unwrap();
    let expand = ended(&new.fleet()).await;
    let outcome = (expand.state, expand.target, expand.failed, expand.unreached);
    assert_eq!(outcome, (CampaignState::Done, 3, 0, 0));
    assert_eq!(steps(&databases, &names).await, ["1 2 / 1 2 3"]);

    let newer = Running::start(&databases, Release::Third, &names);
    let contract = || async { newer.fleet().migrate(campaign().contract(4)).await };
    let err = contract().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "old processes live: {err}");
    old.end(Release::First).await;
    let err = contract().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "they still do: {err}");
    new.end(Release::Second).await;
    contract().await.unwrap();
    let contracted = ended(&newer.fleet()).await;
    let outcome = (contracted.state, contracted.failed, contracted.unreached);
    assert_eq!(outcome, (CampaignState::Done, 0, 0));
    assert_eq!(steps(&databases, &names).await, ["1 2 4 / 1 2 3 4"]);
    newer.end(Release::Third).await;
}
