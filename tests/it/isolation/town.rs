//! Several routers of two namespaces on one account, and what happens to them.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tenantry::{Fleet, Provisioner, TenantRouter, catalog::Record};
use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    caller::{Caller, Lot, Truth},
    cloud::{Cloud, owner},
    step::{At, NAMESPACES, REPLICAS, Step, Weather, Who},
};
use crate::support::{Failure, Gate, Ledger, Pulse, Step as Place, watched};

/// By then every router has heard of what was written.
pub(super) const MOMENT: Duration = Duration::from_millis(100);
/// By then no refusal is remembered any more.
const CALM: Duration = Duration::from_secs(180);
/// As Neon's proxy says that it cannot start a compute.
pub(super) const BROKEN: Failure = Failure::Fatal {
    code: "XX000",
    text: "Couldn't connect to compute node",
};
/// Callers at the same time.
const MOST_CALLERS: usize = 200;

/// What became of some steps.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) wrongs: Vec<String>,
    /// Answers that were right.
    pub(super) answers: u64,
    /// Steps that were taken.
    pub(super) taken: usize,
    /// Whether the last one took longer than is waited for.
    pub(super) stuck: bool,
}

/// Takes `steps` under paused time, until something is wrong, or one of them takes longer than `patience` by a real clock.
/// `told` names the run where a step takes long. Returns also for how long a processor worked on them, however busy the
/// machine is.
pub(super) fn play(
    steps: &[Step],
    ids: &[String],
    told: &str,
    patience: Duration,
) -> (Outcome, Duration) {
    let (truth, ours) = (Arc::<Truth>::default(), (steps.to_vec(), ids.to_vec()));
    let theirs = Arc::clone(&truth);
    let played = watched(
        patience,
        |step| format!("{told}: {}", describe(steps, step)),
        move |pulse| {
            let began = processor_time();
            let (taken, stuck) = take_all(&ours.0, &ours.1, &theirs, &pulse);
            (taken, stuck, processor_time().saturating_sub(began))
        },
    );
    let (taken, stuck, took) = played.unwrap_or_else(|step| {
        truth.wrong(format!("{} never ends", describe(steps, step)));
        (step, true, patience)
    });
    let outcome = Outcome {
        wrongs: truth.wrongs(),
        answers: truth.answers(),
        taken,
        stuck,
    };
    (outcome, took)
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

/// What a step is that takes long.
pub(super) fn describe(steps: &[Step], number: usize) -> String {
    match steps.get(number) {
        Some(step) => format!("step {number}, {step:?},"),
        None => "to come to rest".to_owned(),
    }
}

/// Takes `steps`; says how many, and whether one had to be stopped.
fn take_all(steps: &[Step], ids: &[String], truth: &Arc<Truth>, pulse: &Pulse) -> (usize, bool) {
    let taken = AtomicUsize::new(0);
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut town = Town::new(Arc::clone(truth), ids);
            let counts = town.counts();
            tokio::select! {
                biased;
                () = pulse.stopped() => {
                    let what = describe(steps, taken.load(Relaxed));
                    truth.wrong(format!("{what} spins: {}", counts()));
                    true
                }
                () = town.take_all(steps, &taken, pulse) => false,
            }
        })
    }));
    let taken = taken.load(Relaxed);
    if played.is_err() {
        truth.wrong(format!("at step {taken}: a panic, told above"));
    }
    (taken, played.unwrap_or_default())
}

pub(super) struct Town<'a> {
    pub(super) truth: Arc<Truth>,
    ids: &'a [String],
    pub(super) cloud: Cloud,
    /// Of another process than the routers.
    pub(super) ledgers: [Ledger; NAMESPACES.len()],
    routers: [[TenantRouter; REPLICAS]; NAMESPACES.len()],
    pub(super) callers: JoinSet<()>,
}

impl<'a> Town<'a> {
    fn new(truth: Arc<Truth>, ids: &'a [String]) -> Self {
        let cloud = Cloud::new();
        let ledgers = NAMESPACES.map(|_| Ledger::new());
        let routers = std::array::from_fn(|namespace| {
            std::array::from_fn(|_| router(&cloud, ledgers[namespace].replica(), namespace))
        });
        Self {
            truth,
            ids,
            cloud,
            ledgers,
            routers,
            callers: JoinSet::new(),
        }
    }

    /// How much has happened so far, also while a step spins.
    fn counts(&self) -> impl Fn() -> String + use<> {
        let (backend, ledgers) = (self.cloud.backend.clone(), self.ledgers.clone());
        move || {
            let calls: u64 = ledgers.iter().map(Ledger::calls_of_all).sum();
            let logins = backend.counts().logins_started;
            format!("there were {logins} logins, and {calls} calls of the catalog")
        }
    }

    /// Takes `steps` until something is wrong. `taken` counts them.
    async fn take_all(&mut self, steps: &[Step], taken: &AtomicUsize, pulse: &Pulse) {
        for (number, step) in steps.iter().enumerate() {
            pulse.beat(number);
            self.take(number, step).await;
            taken.fetch_add(1, Relaxed);
            self.look_for_intrusions();
            if !self.truth.is_well() {
                return;
            }
        }
        self.come_to_rest(steps.len(), pulse).await;
    }

    fn look_for_intrusions(&self) {
        for intrusion in self.cloud.intrusions() {
            self.truth.wrong(intrusion);
        }
    }

    async fn take(&mut self, number: usize, step: &Step) {
        match *step {
            Step::Ask {
                at,
                way,
                holds,
                leaves_after,
            } => {
                let asks = self.caller(number, at).ask(way, holds);
                self.callers.spawn(async move {
                    match leaves_after {
                        Some(time) => drop(timeout(time, asks).await),
                        None => asks.await,
                    }
                });
            }
            Step::Swap(one, other) => self.swap(one, other),
            Step::Warm(at) => drop(self.router(at).warm(self.id(at.who))),
            Step::Hint(at) => drop(self.router(at).hint(self.id(at.who))),
            Step::Evict(at) => drop(self.router(at).evict(self.id(at.who))),
            Step::Restart(namespace, replica) => self.restart(namespace, replica),
            Step::Weather(weather) => self.set(weather),
            Step::Pass(time) => sleep(time).await,
            Step::Job(at, job) => self.manage(at.who, &self.fleet(at), job).await,
            Step::Killed(who, job, after) => self.kill(who, job, after).await,
            Step::Further {
                who,
                forks,
                states,
                keeps,
            } => self.bring_further(who, forks, states, keeps).await,
            Step::Trouble(who, trouble, lasts) => self.trouble(who, trouble, lasts).await,
            Step::Limit(who, most) => {
                let limit = |record: &mut Record| record.max_connections = most;
                self.rewrite(who, limit).await;
            }
            Step::Copy(who) => self.copy(who).await,
            Step::SuspendAll => self.cloud.backend.suspend(),
            Step::Suspend(who) | Step::Move(who) | Step::Trade(who, _) | Step::Rotate(who) => {
                self.disturb(who, step).await;
            }
        }
        // Sometimes others have a turn, and sometimes time passes too.
        match number % 4 {
            0 => {}
            1 | 2 => tokio::task::yield_now().await,
            _ => sleep(Duration::from_millis(1)).await,
        }
        while self.callers.len() > MOST_CALLERS {
            self.callers.join_next().await;
        }
    }

    fn router(&self, at: At) -> &TenantRouter {
        &self.routers[at.who.namespace][at.replica]
    }

    fn fleet(&self, at: At) -> Fleet {
        self.router(at).fleet().unwrap()
    }

    pub(super) fn id(&self, who: Who) -> &str {
        &self.ids[who.tenant]
    }

    fn caller(&self, step: usize, at: At) -> Caller {
        let (who, id) = (at.who, self.id(at.who));
        Caller {
            truth: Arc::clone(&self.truth),
            router: self.router(at).clone(),
            who,
            id: id.to_owned(),
            owner: owner(NAMESPACES[who.namespace], id),
            step,
            came: self.truth.fact(who),
        }
    }

    /// Somebody mistakes two connections for one another.
    fn swap(&mut self, one: At, other: At) {
        let (ours, theirs) = (self.router(one).clone(), self.router(other).clone());
        let ids = [one, other].map(|at| self.id(at.who).to_owned());
        self.callers.spawn(async move {
            let got = tokio::join!(ours.get(&ids[0]), theirs.get(&ids[1]));
            if let (Ok(mut one), Ok(mut other)) = got {
                mem::swap(&mut *one, &mut *other);
            }
        });
    }

    fn restart(&mut self, namespace: usize, replica: usize) {
        let ledger = self.ledgers[namespace].replica();
        let new = router(&self.cloud, ledger, namespace);
        let old = mem::replace(&mut self.routers[namespace][replica], new);
        self.callers.spawn(async move { old.close().await });
    }

    fn set(&self, weather: Weather) {
        let backend = &self.cloud.backend;
        for place in [Place::Open, Place::Login, Place::Query] {
            backend.set(place, Gate::Open);
        }
        match weather {
            Weather::Fine => {}
            Weather::SlowLogins(time) => backend.set(Place::Login, Gate::Slow(time)),
            Weather::StuckLogins => backend.set(Place::Login, Gate::Stuck),
            Weather::FailingLogins => backend.set(Place::Login, Gate::Fail(BROKEN)),
            Weather::Unreachable => backend.set(Place::Open, Gate::Fail(Failure::Cut)),
            Weather::CutQueries => backend.set(Place::Query, Gate::Fail(Failure::Cut)),
            Weather::SlowQueries(time) => backend.set(Place::Query, Gate::Slow(time)),
        }
    }

    /// Lets all trouble end, after which everybody is served, everywhere by the same database.
    async fn come_to_rest(&mut self, step: usize, pulse: &Pulse) {
        pulse.beat(step);
        self.set(Weather::Fine);
        while self.callers.join_next().await.is_some() {
            pulse.beat(step);
        }
        sleep(CALM).await;
        for namespace in 0..NAMESPACES.len() {
            for tenant in 0..self.ids.len() {
                let who = Who { namespace, tenant };
                let mut numbers = Vec::new();
                for replica in 0..REPLICAS {
                    pulse.beat(step);
                    numbers.extend(self.in_the_end(step, At { who, replica }).await);
                }
                numbers.dedup();
                if numbers.len() > 1 {
                    let what = format!("at step {step}, {who:?} is led to {numbers:?} at once");
                    self.truth.wrong(what);
                }
            }
        }
        self.look_for_intrusions();
    }

    /// The number of the database to which somebody is led in the end. Whoever is not deleted is led to one.
    async fn in_the_end(&self, step: usize, at: At) -> Option<u64> {
        let caller = self.caller(step, at);
        let lot = caller.came.lot;
        let mut told = caller.get(MOMENT).await;
        for _ in 0..3 {
            if matches!(told, Ok(Some(_))) || lot.refusal().is_some() {
                break;
            }
            sleep(CALM).await;
            told = caller.get(MOMENT).await;
        }
        match (lot, told) {
            (Lot::Served, Ok(Some(number))) => return Some(number),
            (_, Err(err)) if lot.refusal() == Some(err.kind()) => {}
            (_, told) => caller.wrong(&format!("in the end it is {lot:?}, and told {told:?}")),
        }
        None
    }
}

/// A router of few pools. One namespace keeps its passwords in the catalog, and the other does not.
pub(super) fn router(cloud: &Cloud, ledger: Ledger, namespace: usize) -> TenantRouter {
    let name = NAMESPACES[namespace];
    let mut provisioner = Provisioner::new(ledger, cloud.clone(), name).on_first_access();
    if namespace == 1 {
        provisioner = provisioner.passwords_from_control_plane();
    }
    let builder = cloud.backend.at(TenantRouter::provisioning(provisioner));
    builder.max_pools(5).pool_size(2).build().unwrap()
}
