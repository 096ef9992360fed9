//! A campaign over a thousand tenants, most of them asleep, in paused time.

use std::collections::BTreeSet;

use tenantry::{
    Fleet, OnAccess, Schema, TenantRouter,
    fleet::{Campaign, CampaignState},
};
use tokio::time::{Duration, Instant};

use crate::support::{Backend, FakeCatalog, FakeControlPlane};

const TENANTS: usize = 1000;
const AWAKE: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);
const WAKES_PER_HOUR: usize = 600;

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

#[tokio::test(start_paused = true)]
async fn a_thousand_tenants_keep_to_the_budget_and_the_broken_ones_keep_nobody() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = |schema: Option<Schema>| {
        let provisioner = FakeControlPlane::provisioner(&backend, catalog.replica());
        let builder = backend.configure(TenantRouter::provisioning(provisioner));
        match schema {
            Some(schema) => builder.schema(schema).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let earlier = router(None);
    for n in 0..TENANTS {
        fleet(&earlier).provision(&name(n)).await.unwrap();
    }
    earlier.close().await;

    let router = router(Some(schema()));
    let used: BTreeSet<_> = (0..AWAKE).map(|n| name(998 - 7 * n)).collect();
    for tenant in &used {
        drop(router.get(tenant).await.unwrap());
    }
    let campaign = Campaign::new()
        .waves([100])
        .wakes_per_hour(u32::try_from(WAKES_PER_HOUR).unwrap())
        .awake_at_once(60)
        .stop_after(100)
        .dormant(true);
    let logins = backend.counts().login_times.len();
    let began = Instant::now();
    fleet(&router).migrate(campaign).await.unwrap();
    let ended = fleet(&router).wait_for_campaign(|_| ()).await.unwrap();

    let broken = unfit().len();
    assert_eq!(ended.state, CampaignState::Done, "{ended:?}");
    assert_eq!(ended.failed, broken as u64);
    assert_eq!(ended.migrated, (TENANTS - broken) as u64);
    let failed: BTreeSet<_> = ended.failures.iter().map(|it| it.tenant.clone()).collect();
    assert_eq!(failed, unfit().into_iter().collect());
    assert!(ended.failures[0].error.contains("23514"), "{ended:?}");

    let steps = backend.steps();
    assert_eq!(steps.len(), TENANTS - broken);
    let first: BTreeSet<_> = steps[..AWAKE].iter().map(|it| it.tenant.clone()).collect();
    assert_eq!(first, used, "those that are awake come first");
    assert!(steps[AWAKE - 1].at - began < Duration::from_secs(5));
    // Each sleeping tenant costs one login, which wakes it.
    let wakes = &backend.counts().login_times[logins + AWAKE..];
    assert_eq!(wakes.len(), TENANTS - AWAKE);
    for (n, wake) in wakes.iter().enumerate() {
        let within = |time| wakes[n..].iter().filter(|it| **it - *wake < time).count();
        assert!(within(HOUR) <= WAKES_PER_HOUR, "{}", within(HOUR));
    }
    let took = began.elapsed();
    let least = HOUR * u32::try_from(TENANTS - AWAKE - 1).unwrap() / 600;
    assert!(took >= least && took < least + HOUR / 10, "{took:?}");
}
