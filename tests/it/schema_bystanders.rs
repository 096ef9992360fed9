//! Callers of tenants that are current, while a campaign migrates others. In paused time: what they wait for is a
//! connection, and not a processor.

use std::time::Duration;

use futures_util::FutureExt;
use tenantry::{
    Endpoint, Schema, TenantRouter,
    fleet::{Campaign, CampaignState},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::support::{Backend, FakeCatalog, FakeControlPlane, Gate, Step};

/// The time for which requests keep coming.
const LOAD: Duration = Duration::from_secs(20);
/// Time between two requests for a tenant, on average.
const INTERVAL: Duration = Duration::from_millis(200);
/// The time that a login takes, and a query.
const SERVICE: Gate = Gate::Slow(Duration::from_millis(20));
/// The time of a login that wakes a database.
const WAKE: Gate = Gate::Slow(Duration::from_millis(500));
const CURRENT: usize = 50;
/// Fewer than tenants that are in use.
const CONNECTIONS: usize = 40;
/// More than a campaign gets to in that time.
const ASLEEP: usize = 1000;

fn schema() -> Schema {
    let notes = "CREATE TABLE notes (text text)";
    Schema::new().step(1, "notes", notes)
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n:04}")).collect()
}

/// A router with tenants that are current and awake, and others that are neither.
async fn router(backend: &Backend) -> TenantRouter {
    let catalog = FakeCatalog::new();
    backend.set(Step::Login, SERVICE);
    backend.set(Step::Query, SERVICE);
    for tenant in names("current", CURRENT) {
        catalog.publish(&tenant, &tenant).await;
    }
    for tenant in names("asleep", ASLEEP) {
        catalog.publish(&tenant, &tenant).await;
        let window = |it: &mut Endpoint| it.suspend_window = Some(Duration::from_secs(300));
        catalog.change_endpoint(&tenant, window).await;
        backend.set_at(&tenant, Step::Login, WAKE);
        backend.set_at(&tenant, Step::Query, SERVICE);
    }
    let provisioner = FakeControlPlane::provisioner(backend, catalog);
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let builder = builder.max_connections(CONNECTIONS).schema(schema());
    let router = builder.build().expect("router");
    for tenant in names("current", CURRENT) {
        router.migrate(&tenant).await.unwrap();
    }
    router
}

/// Sends requests for `tenant`, whether or not they are answered. Returns the time of each.
async fn send_load(router: TenantRouter, tenant: String, seed: u64) -> Vec<Duration> {
    let (mut chance, end) = (fastrand::Rng::with_seed(seed), Instant::now() + LOAD);
    let mut requests = JoinSet::new();
    let mut next = Instant::now() + 2 * INTERVAL.mul_f64(chance.f64());
    while next < end {
        sleep_until(next).await;
        let (router, tenant) = (router.clone(), tenant.clone());
        requests.spawn(async move {
            let began = Instant::now();
            let client = router.get(&tenant).await.unwrap();
            client.simple_query("SELECT 1").await.unwrap();
            began.elapsed()
        });
        next += 2 * INTERVAL.mul_f64(chance.f64());
    }
    requests.join_all().await
}

/// The time within which 99 of 100 callers of current tenants were answered.
async fn p99(router: &TenantRouter, turn: u64) -> Duration {
    let mut tenants = JoinSet::new();
    for (number, tenant) in names("current", CURRENT).into_iter().enumerate() {
        let seed = turn * 1000 + number as u64;
        tenants.spawn(send_load(router.clone(), tenant, seed));
    }
    let mut times = tenants.join_all().await.concat();
    assert!(times.len() > 4000, "{}", times.len());
    times.sort();
    times[times.len() * 99 / 100]
}

#[tokio::test(start_paused = true)]
async fn callers_of_current_tenants_hardly_feel_a_campaign_over_others() {
    let mut worst = Vec::new();
    for turn in 0..3 {
        let backend = Backend::default();
        let router = router(&backend).await;
        let calm = p99(&router, turn).await;
        let campaign = Campaign::new()
            .waves([100])
            .wakes_per_hour(u32::MAX)
            .awake_at_once(ASLEEP)
            .dormant(true);
        let fleet = router.fleet().unwrap();
        fleet.migrate(campaign).await.unwrap();
        let busy = p99(&router, turn).await;
        let status = fleet.campaign().await.unwrap().unwrap();
        assert_eq!(status.state, CampaignState::Running, "it is not over");
        let migrated = backend.steps().len();
        assert!(migrated > CURRENT + 100, "{migrated}");
        worst.push(busy.as_secs_f64() / calm.as_secs_f64());
    }
    worst.sort_by(f64::total_cmp);
    assert!(worst[1] <= 1.2, "{worst:?}");
}

#[tokio::test(start_paused = true)]
async fn a_get_of_a_current_tenant_allocates_nothing() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog);
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.schema(schema()).build().unwrap();
    drop(router.get("acme").await.unwrap());
    let get_once = || drop(router.get("acme").now_or_never().expect("at hand").unwrap());
    let counted = allocation_counter::measure(|| (0..1000).for_each(|_| get_once()));
    assert_eq!(counted.count_total, 0);
    assert_eq!(backend.steps().len(), 1, "it is current");
}
