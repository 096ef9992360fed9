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
    caller::{Caller, Oracle, TenantStatus},
    cloud::{Cloud, owner},
    step::{Conditions, NAMESPACES, REPLICAS, Step, Target, TenantKey},
};
use crate::support::{Failure, FakeCatalog, Gate, Heartbeat, Step as BackendStep, run_watched};

/// The time in which every router learns of a write.
pub(super) const MOMENT: Duration = Duration::from_millis(250);
/// The time after which no router remembers a refusal.
const REFUSAL_EXPIRY: Duration = Duration::from_secs(180);
/// As Neon's proxy says that it cannot start a compute.
pub(super) const COMPUTE_UNAVAILABLE: Failure = Failure::Fatal {
    code: "XX000",
    text: "Couldn't connect to compute node",
};
/// Callers at the same time.
const MOST_CALLERS: usize = 200;

/// The result of some steps.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    /// Answers that were right.
    pub(super) answers: u64,
    /// Steps that were taken.
    pub(super) applied: usize,
    /// `true` if the last one took longer than is waited for.
    pub(super) stuck: bool,
}

/// Takes `steps` under paused time, until something is wrong, or one of them takes longer than `patience` by a real
/// clock. `label` names the run where a step takes long. Returns also for how long a processor worked on them, however
/// busy the machine is.
pub(super) fn run(
    steps: &[Step],
    ids: &[String],
    label: &str,
    patience: Duration,
) -> (Outcome, Duration) {
    let (oracle, ours) = (Arc::<Oracle>::default(), (steps.to_vec(), ids.to_vec()));
    let theirs = Arc::clone(&oracle);
    let ran = run_watched(
        patience,
        |step| format!("{label}: {}", describe(steps, step)),
        move |heartbeat| {
            let began = processor_time();
            let (applied, stuck) = apply_all(&ours.0, &ours.1, &theirs, &heartbeat);
            (applied, stuck, processor_time().saturating_sub(began))
        },
    );
    let (applied, stuck, took) = ran.unwrap_or_else(|step| {
        oracle.report(format!("{} never ends", describe(steps, step)));
        (step, true, patience)
    });
    let outcome = Outcome {
        violations: oracle.violations(),
        answers: oracle.answers(),
        applied,
        stuck,
    };
    (outcome, took)
}

/// Returns the processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

/// Describes the step of that number, for a report that it takes long.
pub(super) fn describe(steps: &[Step], number: usize) -> String {
    match steps.get(number) {
        Some(step) => format!("step {number}, {step:?},"),
        None => "to come to rest".to_owned(),
    }
}

/// Takes `steps`; says how many, and whether one had to be stopped.
fn apply_all(
    steps: &[Step],
    ids: &[String],
    oracle: &Arc<Oracle>,
    heartbeat: &Heartbeat,
) -> (usize, bool) {
    let applied = AtomicUsize::new(0);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut simulation = Simulation::new(Arc::clone(oracle), ids);
            let counts = simulation.counts();
            tokio::select! {
                biased;
                () = heartbeat.stopped() => {
                    let what = describe(steps, applied.load(Relaxed));
                    oracle.report(format!("{what} spins: {}", counts()));
                    true
                }
                () = simulation.apply_all(steps, &applied, heartbeat) => false,
            }
        })
    }));
    let applied = applied.load(Relaxed);
    if ran.is_err() {
        oracle.report(format!("at step {applied}: a panic, told above"));
    }
    (applied, ran.unwrap_or_default())
}

pub(super) struct Simulation<'a> {
    pub(super) oracle: Arc<Oracle>,
    ids: &'a [String],
    pub(super) cloud: Cloud,
    /// Of another process than the routers.
    pub(super) catalogs: [FakeCatalog; NAMESPACES.len()],
    routers: [[TenantRouter; REPLICAS]; NAMESPACES.len()],
    pub(super) callers: JoinSet<()>,
}

impl<'a> Simulation<'a> {
    fn new(oracle: Arc<Oracle>, ids: &'a [String]) -> Self {
        let cloud = Cloud::new();
        let catalogs = NAMESPACES.map(|_| FakeCatalog::new());
        let routers = std::array::from_fn(|namespace| {
            std::array::from_fn(|_| router(&cloud, catalogs[namespace].replica(), namespace))
        });
        Self {
            oracle,
            ids,
            cloud,
            catalogs,
            routers,
            callers: JoinSet::new(),
        }
    }

    /// Returns a function that tells how much has happened so far, also while a step spins.
    fn counts(&self) -> impl Fn() -> String + use<> {
        let (backend, catalogs) = (self.cloud.backend.clone(), self.catalogs.clone());
        move || {
            let calls: u64 = catalogs.iter().map(FakeCatalog::total_calls).sum();
            let logins = backend.counts().logins_started;
            format!("there were {logins} logins, and {calls} calls of the catalog")
        }
    }

    /// Takes `steps` until something is wrong. `applied` counts them.
    async fn apply_all(&mut self, steps: &[Step], applied: &AtomicUsize, heartbeat: &Heartbeat) {
        for (number, step) in steps.iter().enumerate() {
            heartbeat.beat(number);
            self.apply(number, step).await;
            applied.fetch_add(1, Relaxed);
            self.collect_intrusions();
            if !self.oracle.is_clean() {
                return;
            }
        }
        self.finish(steps.len(), heartbeat).await;
    }

    fn collect_intrusions(&self) {
        for intrusion in self.cloud.intrusions() {
            self.oracle.report(intrusion);
        }
    }

    async fn apply(&mut self, number: usize, step: &Step) {
        match *step {
            Step::Ask {
                target,
                kind,
                holds,
                leaves_after,
            } => {
                let asks = self.caller(number, target).run(kind, holds);
                self.callers.spawn(async move {
                    match leaves_after {
                        Some(time) => drop(timeout(time, asks).await),
                        None => asks.await,
                    }
                });
            }
            Step::SwapConnections(one, other) => self.swap(one, other),
            Step::Warm(target) => drop(self.router(target).warm(self.id(target.key))),
            Step::Hint(target) => drop(self.router(target).hint(self.id(target.key))),
            Step::Evict(target) => drop(self.router(target).evict(self.id(target.key))),
            Step::Restart(namespace, replica) => self.restart(namespace, replica),
            Step::Conditions(conditions) => self.set_conditions(conditions),
            Step::Wait(time) => sleep(time).await,
            Step::Job(target, job) => self.run_job(target.key, &self.fleet(target), job).await,
            Step::KillDuring(key, job, after) => self.run_job_and_kill(key, job, after).await,
            Step::AdvanceState {
                key,
                forks,
                states,
                keeps,
            } => self.advance_record(key, forks, states, keeps).await,
            Step::LoginFault(key, login_fault, lasts) => {
                self.fault_logins(key, login_fault, lasts).await;
            }
            Step::Limit(key, most) => {
                let limit = |record: &mut Record| record.max_connections = most;
                self.update_record(key, limit).await;
            }
            Step::Copy(key) => self.copy(key).await,
            Step::SuspendAll => self.cloud.backend.suspend(),
            Step::Suspend(key) | Step::Move(key) | Step::SwapHosts(key, _) | Step::Rotate(key) => {
                self.disturb(key, step).await;
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

    fn router(&self, target: Target) -> &TenantRouter {
        &self.routers[target.key.namespace][target.replica]
    }

    fn fleet(&self, target: Target) -> Fleet {
        self.router(target).fleet().unwrap()
    }

    pub(super) fn id(&self, key: TenantKey) -> &str {
        &self.ids[key.tenant]
    }

    fn caller(&self, step: usize, target: Target) -> Caller {
        let (key, id) = (target.key, self.id(target.key));
        Caller {
            oracle: Arc::clone(&self.oracle),
            router: self.router(target).clone(),
            key,
            id: id.to_owned(),
            owner: owner(NAMESPACES[key.namespace], id),
            step,
            known_at_start: self.oracle.known(key),
        }
    }

    /// A caller takes two connections and returns each in place of the other.
    fn swap(&mut self, one: Target, other: Target) {
        let (ours, theirs) = (self.router(one).clone(), self.router(other).clone());
        let ids = [one, other].map(|target| self.id(target.key).to_owned());
        self.callers.spawn(async move {
            let got = tokio::join!(ours.get(&ids[0]), theirs.get(&ids[1]));
            if let (Ok(mut one), Ok(mut other)) = got {
                mem::swap(&mut *one, &mut *other);
            }
        });
    }

    fn restart(&mut self, namespace: usize, replica: usize) {
        let catalog = self.catalogs[namespace].replica();
        let new = router(&self.cloud, catalog, namespace);
        let old = mem::replace(&mut self.routers[namespace][replica], new);
        self.callers.spawn(async move { old.close().await });
    }

    fn set_conditions(&self, conditions: Conditions) {
        let backend = &self.cloud.backend;
        for step in [BackendStep::Open, BackendStep::Login, BackendStep::Query] {
            backend.set(step, Gate::Open);
        }
        match conditions {
            Conditions::Fine => {}
            Conditions::SlowLogins(time) => backend.set(BackendStep::Login, Gate::Slow(time)),
            Conditions::StuckLogins => backend.set(BackendStep::Login, Gate::Stuck),
            Conditions::FailingLogins => {
                backend.set(BackendStep::Login, Gate::Fail(COMPUTE_UNAVAILABLE));
            }
            Conditions::Unreachable => backend.set(BackendStep::Open, Gate::Fail(Failure::Cut)),
            Conditions::CutQueries => backend.set(BackendStep::Query, Gate::Fail(Failure::Cut)),
            Conditions::SlowQueries(time) => backend.set(BackendStep::Query, Gate::Slow(time)),
        }
    }

    /// Ends all faults, and then checks that every tenant is served, by the same database at every router.
    async fn finish(&mut self, step: usize, heartbeat: &Heartbeat) {
        heartbeat.beat(step);
        self.set_conditions(Conditions::Fine);
        while self.callers.join_next().await.is_some() {
            heartbeat.beat(step);
        }
        sleep(REFUSAL_EXPIRY).await;
        for namespace in 0..NAMESPACES.len() {
            for tenant in 0..self.ids.len() {
                let key = TenantKey { namespace, tenant };
                let mut numbers = Vec::new();
                for replica in 0..REPLICAS {
                    heartbeat.beat(step);
                    numbers.extend(self.final_database(step, Target { key, replica }).await);
                }
                numbers.dedup();
                if numbers.len() > 1 {
                    let what = format!("at step {step}, {key:?} is led to {numbers:?} at once");
                    self.oracle.report(what);
                }
            }
        }
        self.collect_intrusions();
    }

    /// Returns the number of the database that serves a caller in the end. Every tenant that is not deleted has one.
    async fn final_database(&self, step: usize, target: Target) -> Option<u64> {
        let caller = self.caller(step, target);
        let status = caller.known_at_start.status;
        let mut result = caller.get(MOMENT).await;
        for _ in 0..3 {
            if matches!(result, Ok(Some(_))) || status.refusal().is_some() {
                break;
            }
            sleep(REFUSAL_EXPIRY).await;
            result = caller.get(MOMENT).await;
        }
        match (status, result) {
            (TenantStatus::Served, Ok(Some(number))) => return Some(number),
            (_, Err(err)) if status.refusal() == Some(err.kind()) => {}
            (_, result) => {
                caller.report(&format!("in the end it is {status:?}, and told {result:?}"));
            }
        }
        None
    }
}

/// A router of few pools. One namespace keeps its passwords in the catalog, and the other does not.
pub(super) fn router(cloud: &Cloud, catalog: FakeCatalog, namespace: usize) -> TenantRouter {
    let name = NAMESPACES[namespace];
    let mut provisioner = Provisioner::new(catalog, cloud.clone(), name).on_first_access();
    if namespace == 1 {
        provisioner = provisioner.passwords_from_control_plane();
    }
    let builder = cloud
        .backend
        .configure(TenantRouter::provisioning(provisioner));
    builder.max_pools(5).pool_size(2).build().unwrap()
}
