//! A campaign over a thousand tenants, most of them asleep, in paused time.

use std::collections::BTreeSet;

use tenantry::{
    Fleet, OnAccess, Schema, TenantRouter,
    fleet::{Campaign, CampaignState, CampaignStatus},
};
use tokio::time::{Duration, Instant, sleep};

use crate::support::{Backend, FakeCatalog, FakeControlPlane, FaultyCatalog};

const TENANTS: usize = 1000;
const AWAKE: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

fn name(n: usize) -> String {
    format!("t{n:03}")
}

/// One tenant in a hundred is not fit for its step.
fn unfit() -> Vec<String> {
    (0..TENANTS).step_by(100).map(|n| name(n + 50)).collect()
}

fn schema() -> Schema {
    let names: Vec<_> = unfit().iter().map(|name| format!("'{name}'")).collect();
    let sql = format!("CALL refuse({})", names.join(", "));
    Schema::new()
        .step(1, "check", sql)
        .on_access(OnAccess::Serve)
}

fn fleet(router: &TenantRouter) -> Fleet {
    router.fleet().expect("a fleet")
}

/// A thousand tenants, of which a few are awake.
struct Stage {
    backend: Backend,
    router: TenantRouter,
    /// Those that are awake.
    used: BTreeSet<String>,
    /// The logins before the campaign.
    logins: usize,
}

impl Stage {
    async fn new() -> Self {
        let (backend, catalog) = (Backend::default(), FakeCatalog::new());
        let builder = || {
            let provisioner = FakeControlPlane::provisioner(&backend, catalog.replica());
            backend.configure(TenantRouter::provisioning(provisioner))
        };
        let earlier = builder().build().unwrap();
        for n in 0..TENANTS {
            fleet(&earlier).provision(&name(n)).await.unwrap();
        }
        earlier.close().await;
        let router = builder().schema(schema()).build().unwrap();
        let used: BTreeSet<_> = (0..AWAKE).map(|n| name(998 - 7 * n)).collect();
        for tenant in &used {
            drop(router.get(tenant).await.unwrap());
        }
        let logins = backend.counts().login_times.len();
        Self {
            backend,
            router,
            used,
            logins,
        }
    }

    async fn run(&self, campaign: Campaign) -> CampaignStatus {
        let campaign = campaign.waves([100]).dormant(true);
        fleet(&self.router).migrate(campaign).await.unwrap();
        let ended = fleet(&self.router).wait_for_campaign(|_| ()).await;
        ended.unwrap()
    }

    /// The most wakes within any span of `time`. Each sleeping tenant costs one login, which wakes it.
    fn most_wakes_within(&self, time: Duration) -> usize {
        let wakes = &self.backend.counts().login_times[self.logins + AWAKE..];
        assert_eq!(wakes.len(), TENANTS - AWAKE);
        let within = |n: usize| {
            let from = wakes[n];
            wakes[n..].iter().filter(|it| **it - from < time).count()
        };
        (0..wakes.len()).map(within).max().unwrap()
    }
}

/// Few enough that none of them decides.
fn unlimited() -> Campaign {
    let campaign = Campaign::new().wakes_per_hour(u32::MAX);
    campaign.awake_at_once(TENANTS).stop_after(TENANTS as u64)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tenants_keep_to_the_budget_and_the_broken_ones_keep_nobody() {
    let stage = Stage::new().await;
    let began = Instant::now();
    let ended = stage.run(unlimited().wakes_per_hour(600)).await;
    let broken = unfit().len();
    assert_eq!(ended.state, CampaignState::Done, "{ended:?}");
    assert_eq!(ended.failed, broken as u64);
    assert_eq!(ended.migrated, (TENANTS - broken) as u64);
    let failed: BTreeSet<_> = ended.failures.iter().map(|it| it.tenant.clone()).collect();
    assert_eq!(failed, unfit().into_iter().collect());
    assert!(ended.failures[0].error.contains("23514"), "{ended:?}");

    let steps = stage.backend.steps();
    assert_eq!(steps.len(), TENANTS - broken);
    assert!(steps.iter().all(|it| it.version == 1));
    let first: BTreeSet<_> = steps[..AWAKE].iter().map(|it| it.tenant.clone()).collect();
    assert_eq!(first, stage.used, "those that are awake come first");
    assert!(steps[AWAKE - 1].at - began < Duration::from_secs(5));
    assert_eq!(stage.most_wakes_within(HOUR), 600);
    let took = began.elapsed();
    let least = HOUR * u32::try_from(TENANTS - AWAKE - 1).unwrap() / 600;
    assert!(took >= least && took < least + HOUR / 10, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_databases_are_awake_by_its_wakes_than_a_campaign_may_have() {
    let stage = Stage::new().await;
    let ended = stage.run(unlimited().awake_at_once(50)).await;
    assert_eq!(ended.state, CampaignState::Done, "{ended:?}");
    assert_eq!(stage.most_wakes_within(Duration::from_secs(300)), 50);
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_stops_a_campaign() {
    let stage = Stage::new().await;
    // One in a hundred fails; the first one among the first hundred.
    let campaign = unlimited().concurrency(1).stop_at_share(0.012);
    let ended = stage.run(campaign).await;
    assert_eq!(ended.state, CampaignState::Stopped, "{ended:?}");
    assert_eq!(ended.failed, 1);
    let visited = ended.migrated + ended.failed;
    assert!((20..100).contains(&visited), "{visited}");
    assert!(ended.reason.is_some_and(|it| it.contains("1 tenant")));
}

#[tokio::test(start_paused = true)]
async fn a_catalog_without_notes_is_not_asked_for_any() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let without = FaultyCatalog::new(&catalog);
    let provisioner = FakeControlPlane::provisioner(&backend, without);
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.schema(schema()).build().unwrap();
    sleep(HOUR).await;
    assert_eq!(router.status().catalog_failures, 0);
    let err = fleet(&router).migrate(Campaign::new()).await.unwrap_err();
    assert!(format!("{err:?}").contains("keeps no notes"), "{err:?}");
}
