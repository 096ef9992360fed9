//! A busy tenant cannot starve a quiet one.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tenantry::{ErrorKind, Provisioner, TenantRouter};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::support::{Backend, Failure, Gate, Ledger, Reply, ScriptedApi, Step, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// How long requests keep coming.
const LOAD: Duration = Duration::from_secs(20);
/// Time between two requests of a tenant at normal load, on average.
const NORMAL: Duration = Duration::from_millis(200);
/// What a login and a query take.
const SERVICE: Duration = Duration::from_millis(20);
const QUIET_TENANTS: usize = 50;

/// Numbers by chance, the same in every run.
struct Chance(u64);

impl Chance {
    /// A time, exponentially distributed.
    fn time(&mut self, mean: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let even = f64::from(u32::try_from(self.0 >> 32).unwrap()) / f64::from(u32::MAX);
        mean.mul_f64(-(even.max(1e-9)).ln())
    }
}

/// Sends one request; how long it waited for its connection.
async fn request(router: &TenantRouter, tenant: &str) -> Result<Duration, tenantry::Error> {
    let began = Instant::now();
    let client = router.get(tenant).await?;
    let waited = began.elapsed();
    client.simple_query("SELECT 1").await.unwrap();
    Ok(waited)
}

/// Sends requests for `tenant` with `interval` between them on average, whether or not they are answered. How long each
/// waited.
async fn load(
    router: TenantRouter,
    tenant: String,
    interval: Duration,
    seed: u64,
) -> Vec<Duration> {
    let (mut chance, end) = (Chance(seed), Instant::now() + LOAD);
    let mut requests = JoinSet::new();
    let mut next = Instant::now() + chance.time(interval);
    while next < end {
        sleep_until(next).await;
        let (router, tenant) = (router.clone(), tenant.clone());
        requests.spawn(async move { request(&router, &tenant).await.unwrap() });
        next += chance.time(interval);
    }
    requests.join_all().await
}

/// The time within which 99 of 100 quiet callers had their connection.
async fn p99_of_quiet(router: &TenantRouter) -> Duration {
    let mut tenants = JoinSet::new();
    for n in 1..=QUIET_TENANTS {
        let name = format!("quiet-{n}");
        tenants.spawn(load(router.clone(), name, NORMAL, n as u64 * 7919));
    }
    let mut waits = tenants.join_all().await.concat();
    assert!(waits.len() > 4000, "{}", waits.len());
    waits.sort();
    waits[waits.len() * 99 / 100]
}

fn router(backend: &Backend, connections: usize, ceiling: usize) -> TenantRouter {
    backend.set(Step::Login, Gate::Slow(SERVICE));
    backend.set(Step::Query, Gate::Slow(SERVICE));
    let builder = backend.router().max_connections(connections);
    let builder = builder.pool_size(ceiling).waiting_per_tenant(100);
    builder.build().unwrap()
}

/// One caller of the surplus: comes until it is served, whenever it is told to come back. How often it was turned away,
/// and how often of these when the storm that ends at `end` was over.
async fn persist(router: Arc<TenantRouter>, end: Instant) -> (usize, usize) {
    let (mut turned_away, mut afterwards) = (0, 0);
    loop {
        let came = Instant::now();
        let Err(err) = request(&router, "hot").await else {
            return (turned_away, afterwards);
        };
        assert_eq!(err.kind(), ErrorKind::Overloaded, "{err:?}");
        assert_eq!(came.elapsed(), Duration::ZERO, "it is told at once");
        turned_away += 1;
        // For a moment the last of the storm still wait.
        afterwards += usize::from(came > end + SECOND);
        sleep(err.retry_after().unwrap()).await;
    }
}

/// What became of a hundredfold load of one tenant, and what the others had of it.
struct Storm {
    calm_p99: Duration,
    stormy_p99: Duration,
    callers: Vec<(usize, usize)>,
    most_open: u64,
}

impl Storm {
    /// With so many connections in all, and at most so many for each tenant.
    async fn over(connections: usize, ceiling: usize) -> Self {
        let calm = router(&Backend::default(), connections, ceiling);
        let normal = load(calm.clone(), "hot".into(), NORMAL, 1);
        let (calm_p99, _) = tokio::join!(p99_of_quiet(&calm), normal);

        let backend = Backend::default();
        let stormy = router(&backend, connections, ceiling);
        let hot = {
            let (router, end) = (Arc::new(stormy.clone()), Instant::now() + LOAD);
            async move {
                let (mut chance, mut callers) = (Chance(1), JoinSet::new());
                let mut next = Instant::now();
                while next < end {
                    sleep_until(next).await;
                    callers.spawn(persist(Arc::clone(&router), end));
                    next += chance.time(NORMAL / 100);
                }
                callers.join_all().await
            }
        };
        let (stormy_p99, callers) = tokio::join!(p99_of_quiet(&stormy), hot);
        Self {
            calm_p99,
            stormy_p99,
            callers,
            most_open: backend.counts().most_open,
        }
    }

    /// The others wait no longer than in calm, a tenth more at most; and whoever was turned away is served when told to come
    /// back, all but one in a thousand.
    fn passes_by(self) {
        let Self {
            calm_p99,
            stormy_p99,
            callers,
            ..
        } = self;
        assert!(
            stormy_p99.as_secs_f64() <= 1.1 * calm_p99.as_secs_f64(),
            "{calm_p99:?} in calm, {stormy_p99:?} in storm"
        );
        let surplus = callers.iter().filter(|(turned_away, _)| *turned_away > 0);
        assert!(surplus.count() > callers.len() / 3, "it is too much");
        let in_vain: usize = callers.iter().map(|(_, afterwards)| afterwards).sum();
        assert!(
            1000 * in_vain <= callers.len(),
            "{in_vain} came back in vain after the storm"
        );
        let most = callers.iter().map(|(turned_away, _)| *turned_away).max();
        assert!(most <= Some(8), "nobody is sent away for ever: {most:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundredfold_load_of_one_tenant_is_not_felt_by_the_others() {
    let storm = Storm::over(40, 4).await;
    assert_eq!(storm.most_open, 40);
    storm.passes_by();
}

#[tokio::test(start_paused = true)]
async fn nor_if_that_tenant_may_have_every_connection_there_is() {
    let storm = Storm::over(20, 20).await;
    assert_eq!(storm.most_open, 20);
    storm.passes_by();
}

#[tokio::test]
async fn a_wave_of_wrong_passwords_does_not_keep_a_creation_waiting() {
    const TENANTS: u64 = 200;
    const WRONG: Gate = Gate::Fail(Failure::Error {
        code: "28P01",
        text: "password authentication failed for user 'app'",
    });
    let gone = json!({ "code": "", "message": "not found" });
    let api = ScriptedApi::endless(Reply::Json(404, gone)).await;
    // Some at once, then one each second and a half: longer than anything else takes here on a busy machine.
    let neon = api.client().requests_per_minute(40).build().unwrap();
    let (ledger, backend) = (Ledger::silent(), Backend::default());
    backend.set(Step::Login, WRONG);
    let provisioner = Provisioner::new(ledger.replica(), neon, "test").on_first_access();
    let router = backend.at(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    let mut wave = JoinSet::new();
    for n in 0..TENANTS {
        let tenant = format!("wrong-{n}");
        ledger.publish(&tenant, &tenant).await;
        let router = router.clone();
        wave.spawn(async move { router.get(&tenant).await.map(drop) });
    }
    backend
        .until("all have tried", |it| it.logins_started >= TENANTS)
        .await;
    eventually("their calls wait", || api.seen().len() >= 2).await;
    let before = api.seen().len();
    let fleet = router.fleet().unwrap();
    fleet.provision("new").await.unwrap_err();
    let seen = api.seen();
    let is_recovery = |it: &String| it.contains("/branches");
    let creation = seen.iter().position(|it| !is_recovery(it));
    // One that was on its way, and one that passed while the catalog was asked.
    let in_time = creation.is_some_and(|it| it <= before + 2);
    assert!(in_time, "{before}: {seen:?}");
    while wave.join_next().await.is_some() {}
}
