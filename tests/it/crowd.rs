//! Many tenants, more callers than connections, and everything that can go wrong: the budget holds on real Postgres
//! processes.

mod trouble;
mod visitor;

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

use crate::support::{LONG, Stage, eventually};

const TENANTS: usize = 200;
/// Tenants that have visitors at the same time: the next ones all the time, until each had its turn. No more than 40 are
/// awake then, unless the machine is too busy to suspend the others in time.
const VISITED: usize = 26;
const VISITORS: usize = 120;
const BUDGET: usize = 64;
/// How many of them are for tenants that have none.
const RESERVE: usize = 4;
/// How long visitors come at least.
const LOAD: Duration = Duration::from_secs(50);
/// How long they come at most, where the machine is too busy to get far in that time.
const LONGEST_LOAD: Duration = Duration::from_secs(300);
/// How long anybody waits.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a connection that was cut may look well to whoever gets it.
const UNNOTICED: Duration = Duration::from_secs(2);

/// A router with as many tenants as there are, and what happens there.
struct Town {
    stage: Stage,
    router: TenantRouter,
    tenants: Vec<Tenant>,
    opened: Instant,
    /// Whether no visitors come any more.
    closed: AtomicBool,
    report: Mutex<Report>,
}

struct Tenant {
    id: String,
    endpoint_id: String,
    /// Until when its connections are cut on purpose.
    cut: Mutex<Option<Instant>>,
}

/// What was seen.
#[derive(Debug, Default)]
struct Report {
    /// How often calls ended so.
    ends: BTreeMap<String, u32>,
    /// Ends that nobody should see.
    wrong: Vec<String>,
    most_awake: usize,
    looks: u32,
    /// Looks at which somebody waited because the budget was used up.
    full: u32,
}

impl Town {
    async fn new() -> Arc<Self> {
        // Nothing starts before it is visited, nor stops by itself.
        let stage = Stage::with(|emulator| emulator.start_on_create(false)).await;
        let neon = stage.neon();
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
        let router = stage.at(TenantRouter::builder(lookup));
        let router = router
            .max_connections(BUDGET)
            .wake_reserve(RESERVE)
            .max_pools(VISITED as u64 - 4) // so that pools are evicted while they are used
            .get_timeout(PATIENCE)
            .wake_timeout(PATIENCE);
        Arc::new(Self {
            router: router.build().unwrap(),
            stage,
            tenants,
            opened: Instant::now(),
            closed: AtomicBool::new(false),
            report: Mutex::default(),
        })
    }

    fn is_open(&self) -> bool {
        !self.closed.load(Relaxed)
    }

    /// Whether so much has happened that something is proved.
    fn has_seen_enough(&self) -> bool {
        let (status, report) = (self.router.status(), self.report.lock().unwrap());
        let witnesses = self.stage.emulator.witnesses().into_iter();
        let woken = witnesses.filter(|it| !it.wakes.is_empty()).count();
        let closed = [
            status.closed_for_others > 100,
            status.evicted > 50,
            status.discarded > 10,
        ];
        let is_full = report.full > report.looks / 4;
        is_full && woken > TENANTS * 9 / 10 && !closed.contains(&false)
    }

    /// The first tenant that has visitors now.
    fn first_visited(&self) -> usize {
        let step = LOAD.as_millis() / TENANTS as u128;
        usize::try_from(self.opened.elapsed().as_millis() / step).unwrap() % TENANTS
    }

    /// A tenant that has visitors now. A few have more than the others.
    fn pick(&self, rng: &mut Rng) -> usize {
        let place = if rng.u8(..3) == 0 {
            VISITED / 2 + rng.usize(..4)
        } else {
            rng.usize(..VISITED)
        };
        (self.first_visited() + place) % TENANTS
    }

    /// Takes note that connections of a tenant are cut, from now until then.
    fn cut(&self, tenant: usize, until: Instant) {
        let mut cut = self.tenants[tenant].cut.lock().unwrap();
        *cut = (*cut).max(Some(until));
    }

    /// Takes note of how a visit ended that began then: everybody is served, or told when to come back, or has lost a
    /// connection that was cut on purpose or for want of time.
    fn note(&self, tenant: usize, call: &str, began: Instant, end: &Result<(), Error>) {
        let cut = *self.tenants[tenant].cut.lock().unwrap();
        let is_cut = cut.is_some_and(|cut| cut + UNNOTICED >= began);
        let mut report = self.report.lock().unwrap();
        let (how, right) = match end {
            Ok(()) => ("served".to_owned(), true),
            Err(err) => {
                let told = err.retry_after().is_some();
                let how = format!("{:?}, told when: {told}", err.kind());
                // The time of a transaction may be over while its COMMIT is under way.
                let is_over = err.kind() == ErrorKind::CommitUnknown && began.elapsed() >= PATIENCE;
                (how, told || is_over || is_cut && is_about_a_loss(err))
            }
        };
        *report.ends.entry(format!("{call}: {how}")).or_default() += 1;
        if !right {
            let after = began.elapsed();
            let wrong = format!("{call} at tenant {tenant}, cut: {is_cut}, {after:?}: {end:?}");
            report.wrong.push(wrong);
        }
    }

    /// Visitors come, and everything goes wrong, until it is over.
    async fn live_through(self: &Arc<Self>, mut rng: Rng) {
        let spawn = |rng: Rng| tokio::spawn(visitor::come(Arc::clone(self), rng));
        let visitors: Vec<_> = (0..VISITORS).map(|_| spawn(rng.fork())).collect();
        let keeper = tokio::spawn(trouble::keep_most_asleep(Arc::clone(self)));
        let trouble = tokio::spawn(trouble::make(Arc::clone(self), rng));
        self.watch().await;
        for ended in [keeper, trouble] {
            ended.await.unwrap();
        }
        let gone = timeout(LONG, join_all(visitors)).await;
        for visitor in gone.expect("somebody waits for ever") {
            visitor.unwrap();
        }
    }

    /// More want a connection at once than there are, and keep it, while nothing goes wrong; then some who have none.
    async fn rush(self: &Arc<Self>) {
        let emulator = &self.stage.emulator;
        emulator.suspend_all().await;
        let (over, is_over) = watch::channel(false);
        let come = |tenant, direct| {
            tokio::spawn(visitor::stay(
                Arc::clone(self),
                tenant,
                direct,
                is_over.clone(),
            ))
        };
        let crowd = (0..3 * VISITED).map(|n| come(n % VISITED, n % 3 == 0));
        let mut callers: Vec<_> = crowd.collect();
        let all_but_the_reserve = || emulator.open_sessions() >= BUDGET - RESERVE;
        eventually("all but the reserve is used", all_but_the_reserve).await;
        callers.extend((VISITED..VISITED + 2 * RESERVE).map(|tenant| come(tenant, false)));
        let all = || emulator.open_sessions() >= BUDGET;
        eventually("all is used", all).await;
        sleep(Duration::from_secs(1)).await; // whoever comes now would be too many
        over.send(true).unwrap();
        for caller in callers {
            caller.await.unwrap();
        }
    }

    /// Looks at the router all the time, and closes the town when enough was seen.
    async fn watch(&self) {
        let mut is_over = false;
        while !is_over {
            let open_for = self.opened.elapsed();
            is_over = open_for > LOAD && self.has_seen_enough() || open_for > LONGEST_LOAD;
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

/// Whether it is what the user of a connection hears that ends under it.
fn is_about_a_loss(err: &Error) -> bool {
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
    let town = Town::new().await;
    town.live_through(Rng::with_seed(seed)).await;
    town.rush().await;
    town.router.close().await;
    let status = town.router.status();
    let emulator = &town.stage.emulator;
    eventually("no session is left", || emulator.open_sessions() == 0).await;
    let report = town.report.lock().unwrap();
    println!("{report:#?}\n{status:#?}"); // the same
    assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
    let left = (status.budget_used, status.budget_waiting);
    assert_eq!(left, (0, 0), "budget used, waiting");
    let most_open = emulator.most_open_sessions();
    assert_eq!(most_open, BUDGET, "as many as may be, and no more");
    drop(report);
    assert!(town.has_seen_enough(), "nothing is proved");
}
