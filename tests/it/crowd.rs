//! Many tenants, more callers than connections, and everything that can go wrong: the budget holds on real Postgres
//! processes.

mod caller;
mod faults;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::{
    future::join_all,
    stream::{self, StreamExt},
};
use tenantry::{
    BoxError, Endpoint, Error, ErrorKind, TenantId, TenantRouter, neon::CreateProject,
    tokio_postgres,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::support::{LONG, TestEnv, eventually};

const TENANTS: usize = 200;
/// Tenants that have callers at the same time: a window that moves on until each tenant was in it. No more than 40 are
/// awake then, unless the machine is too busy to suspend the others in time.
const ACTIVE_TENANTS: usize = 26;
const CALLERS: usize = 120;
const BUDGET: usize = 64;
/// The connections of the budget that are kept for tenants that have none.
const RESERVE: usize = 4;
/// The shortest time of the load.
const LOAD: Duration = Duration::from_secs(50);
/// The longest time of the load, where the machine is too busy to get far in the shortest.
const MAX_LOAD: Duration = Duration::from_secs(300);
/// The fewest calls that are served before the next tenant becomes active, and before the next fault. On a machine that
/// serves slowly, both keep its pace.
const SERVED_BETWEEN: u64 = 2;
/// The longest time that a call waits.
const GET_TIMEOUT: Duration = Duration::from_secs(8);
/// The time for which a connection that was cut may look alive to its next caller.
const LOSS_GRACE: Duration = Duration::from_secs(2);

/// A router with as many tenants as there are, and what happens there.
struct LoadTest {
    env: TestEnv,
    router: TenantRouter,
    tenants: Vec<Tenant>,
    opened: Instant,
    /// `true` once the load is over.
    closed: AtomicBool,
    report: Mutex<Report>,
}

struct Tenant {
    id: String,
    endpoint_id: String,
    /// The time until which its connections are cut on purpose.
    cut: Mutex<Option<Instant>>,
}

/// The observations of a load test.
#[derive(Debug, Default)]
struct Report {
    /// The number of calls that ended in each way.
    ends: BTreeMap<String, u32>,
    /// Ends that nobody should see.
    wrong: Vec<String>,
    most_awake: usize,
    looks: u32,
    /// Samples at which a caller waited because the budget was used up.
    full: u32,
}

impl LoadTest {
    async fn new() -> Arc<Self> {
        // No compute starts before its first call, nor stops by itself.
        let env = TestEnv::with(|emulator| emulator.start_on_create(false)).await;
        let neon = env.neon();
        let create = |n| {
            let neon = &neon;
            async move {
                let id = format!("tenant-{n}");
                let created = neon.create_project(&CreateProject::new(&id)).await;
                (id, created.expect("a project"))
            }
        };
        let created: Vec<_> = stream::iter(0..TENANTS)
            .map(create)
            .buffered(8)
            .collect()
            .await;
        let mut tenants = Vec::new();
        let mut table = HashMap::new();
        for (id, project) in created {
            let at = &project.connection_uris[0].connection_parameters;
            let (host, pooled, password) = (&at.host, &at.pooler_host, at.password.clone());
            let endpoint = Endpoint::neon(host, pooled, &at.database, &at.role, password);
            table.insert(id.clone(), endpoint);
            let endpoint_id = project.endpoints[0].id.clone();
            let cut = Mutex::default();
            tenants.push(Tenant {
                id,
                endpoint_id,
                cut,
            });
        }
        let lookup = move |tenant: TenantId| {
            let endpoint = table.get(tenant.as_str()).cloned();
            async move { Ok::<_, BoxError>(endpoint) }
        };
        let router = env.configure(TenantRouter::builder(lookup));
        let router = router
            .max_connections(BUDGET)
            .wake_reserve(RESERVE)
            .max_pools(ACTIVE_TENANTS as u64 - 4) // so that pools are evicted while they are used
            .get_timeout(GET_TIMEOUT)
            .wake_timeout(2 * LONG); // a busy machine starts a compute slowly
        Arc::new(Self {
            router: router.build().unwrap(),
            env,
            tenants,
            opened: Instant::now(),
            closed: AtomicBool::new(false),
            report: Mutex::default(),
        })
    }

    fn is_open(&self) -> bool {
        !self.closed.load(Relaxed)
    }

    /// Returns whether enough has happened to prove something.
    fn has_enough_coverage(&self) -> bool {
        let (status, report) = (self.router.status(), self.report.lock().unwrap());
        let witnesses = self.env.emulator.witnesses().into_iter();
        let woken = witnesses.filter(|it| !it.wakes.is_empty()).count();
        let closed = [
            status.closed_for_others > 100,
            status.evicted > 50,
            status.discarded > 10,
        ];
        let is_full = report.full > report.looks / 4;
        is_full && woken > TENANTS * 9 / 10 && !closed.contains(&false)
    }

    /// The calls that got a connection so far.
    fn served(&self) -> u64 {
        let status = self.router.status();
        status.gets_warm + status.gets_reopened + status.gets_cold
    }

    /// The first tenant that has callers now.
    fn first_active(&self) -> usize {
        let step = LOAD.as_millis() / TENANTS as u128;
        let in_time = usize::try_from(self.opened.elapsed().as_millis() / step).unwrap();
        let served = usize::try_from(self.served() / SERVED_BETWEEN).unwrap();
        in_time.min(served) % TENANTS
    }

    /// A tenant that has callers now. A few have more than the others.
    fn pick_tenant(&self, rng: &mut Rng) -> usize {
        let place = if rng.u8(..3) == 0 {
            ACTIVE_TENANTS / 2 + rng.usize(..4)
        } else {
            rng.usize(..ACTIVE_TENANTS)
        };
        (self.first_active() + place) % TENANTS
    }

    /// Takes note that connections of a tenant are cut, from now until then.
    fn mark_cut(&self, tenant: usize, until: Instant) {
        let mut cut = self.tenants[tenant].cut.lock().unwrap();
        *cut = (*cut).max(Some(until));
    }

    /// Records how a call ended that began then: it was served, or told when to retry, or has lost a
    /// connection that was cut on purpose or for want of time.
    fn record_result(&self, tenant: usize, call: &str, began: Instant, end: &Result<(), Error>) {
        let cut = *self.tenants[tenant].cut.lock().unwrap();
        let is_cut = cut.is_some_and(|cut| cut + LOSS_GRACE >= began);
        let mut report = self.report.lock().unwrap();
        let (how, right) = match end {
            Ok(()) => ("served".to_owned(), true),
            Err(err) => {
                let says_when = err.retry_after().is_some();
                let how = format!("{:?}, told when: {says_when}", err.kind());
                // The time of a transaction may be over while its COMMIT is under way.
                let is_over =
                    err.kind() == ErrorKind::CommitUnknown && began.elapsed() >= GET_TIMEOUT;
                (
                    how,
                    says_when || is_over || is_cut && is_connection_loss(err),
                )
            }
        };
        *report.ends.entry(format!("{call}: {how}")).or_default() += 1;
        if !right {
            let after = began.elapsed();
            let wrong = format!("{call} at tenant {tenant}, cut: {is_cut}, {after:?}: {end:?}");
            report.wrong.push(wrong);
        }
    }

    /// Runs callers and random faults until the load is over.
    async fn run_random_load(self: &Arc<Self>, mut rng: Rng) {
        let spawn = |rng: Rng| tokio::spawn(caller::run(Arc::clone(self), rng));
        let callers: Vec<_> = (0..CALLERS).map(|_| spawn(rng.fork())).collect();
        let suspender = tokio::spawn(faults::keep_most_asleep(Arc::clone(self)));
        let faults = tokio::spawn(faults::inject(Arc::clone(self), rng));
        self.wait_until_done().await;
        for ended in [suspender, faults] {
            ended.await.unwrap();
        }
        let gone = timeout(LONG, join_all(callers)).await;
        for caller in gone.expect("a caller waits for ever") {
            caller.unwrap();
        }
    }

    /// More want a connection at once than there are, and keep it, while nothing goes wrong; then some who have none.
    async fn exhaust_budget(self: &Arc<Self>) {
        let emulator = &self.env.emulator;
        emulator.suspend_all().await;
        let (over, is_over) = watch::channel(false);
        let hold = |tenant, direct| {
            tokio::spawn(caller::hold_until_over(
                Arc::clone(self),
                tenant,
                direct,
                is_over.clone(),
            ))
        };
        let crowd = (0..3 * ACTIVE_TENANTS).map(|n| hold(n % ACTIVE_TENANTS, n % 3 == 0));
        let mut callers: Vec<_> = crowd.collect();
        let all_but_the_reserve = || emulator.open_sessions() >= BUDGET - RESERVE;
        eventually("all but the reserve is used", all_but_the_reserve).await;
        callers.extend(
            (ACTIVE_TENANTS..ACTIVE_TENANTS + 2 * RESERVE).map(|tenant| hold(tenant, false)),
        );
        let all = || emulator.open_sessions() >= BUDGET;
        eventually("all is used", all).await;
        sleep(Duration::from_secs(1)).await; // any further connection would be too many
        over.send(true).unwrap();
        for caller in callers {
            caller.await.unwrap();
        }
    }

    /// Samples the router's status, and ends the load when enough was covered.
    async fn wait_until_done(&self) {
        let mut is_over = false;
        while !is_over {
            let open_for = self.opened.elapsed();
            is_over = open_for > LOAD && self.has_enough_coverage() || open_for > MAX_LOAD;
            let status = self.router.status();
            {
                let mut report = self.report.lock().unwrap();
                report.looks += 1;
                report.full += u32::from(status.budget_waiting > 0);
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.closed.store(true, Relaxed);
    }
}

/// Returns whether `err` comes from a connection that ended while it was in use.
fn is_connection_loss(err: &Error) -> bool {
    let driver = err
        .source()
        .and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    match err.kind() {
        ErrorKind::CommitUnknown => true,
        ErrorKind::Query => driver.is_some_and(|err| {
            let code = err.code().map(tokio_postgres::error::SqlState::code);
            code.is_none_or(|code| code.starts_with("57P") || code.starts_with("08"))
        }),
        _ => false,
    }
}

/// The seed of what happens at random. As far as time allows, the same seed makes the same happen.
fn seed() -> u64 {
    let seed = env::var("TENANTRY_SEED").map(|seed| seed.parse().expect("a number"));
    seed.unwrap_or_else(|_| fastrand::u64(..))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_never_has_more_sessions_than_the_budget_allows() {
    let seed = seed();
    println!("to repeat this: TENANTRY_SEED={seed}"); // seen if it fails
    let load_test = LoadTest::new().await;
    load_test.run_random_load(Rng::with_seed(seed)).await;
    load_test.exhaust_budget().await;
    load_test.router.close().await;
    let status = load_test.router.status();
    let emulator = &load_test.env.emulator;
    eventually("no session is left", || emulator.open_sessions() == 0).await;
    let report = load_test.report.lock().unwrap();
    println!("{report:#?}\n{status:#?}"); // the same
    assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
    let left = (status.budget_used, status.budget_waiting);
    assert_eq!(left, (0, 0), "budget used, waiting");
    let most_open = emulator.most_open_sessions();
    assert_eq!(most_open, BUDGET, "as many as may be, and no more");
    drop(report);
    assert!(load_test.has_enough_coverage(), "nothing is proved");
}
