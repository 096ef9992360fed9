//! The same on the emulator: real databases, real sessions, real time, and so fewer of everything.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tenantry::{ErrorKind, Plan, Provisioner, TenantRouter, catalog::Memory};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    caller::{Caller, Oracle, TenantStatus},
    cloud::owner,
    simulation::Outcome,
    step::{Job, NAMESPACES, Step, Target, TenantKey},
};
use crate::support::{Heartbeat, LONG, TestEnv};

/// By how much everything is faster than where time is paused.
const SPEEDUP: u32 = 400;

/// Runs those of `steps` that need no scripted backend.
pub(super) async fn run(steps: &[Step], ids: &[String], heartbeat: &Heartbeat) -> Outcome {
    let mut simulation = Simulation::new(ids).await;
    let mut applied = 0;
    for step in steps {
        heartbeat.beat(applied);
        simulation.apply(applied, step).await;
        applied += 1;
        if !simulation.oracle.is_clean() {
            break;
        }
    }
    simulation.finish(applied, heartbeat).await;
    Outcome {
        violations: simulation.oracle.violations(),
        answers: simulation.oracle.answers(),
        applied,
        stuck: false,
    }
}

struct Simulation<'a> {
    oracle: Arc<Oracle>,
    ids: &'a [String],
    env: TestEnv,
    routers: [TenantRouter; NAMESPACES.len()],
    /// The number of databases that were prepared for use.
    prepared: Arc<AtomicU64>,
    callers: JoinSet<()>,
}

impl<'a> Simulation<'a> {
    async fn new(ids: &'a [String]) -> Self {
        let (env, prepared) = (TestEnv::new().await, Arc::<AtomicU64>::default());
        let routers = NAMESPACES.map(|namespace| {
            let counter = Arc::clone(&prepared);
            let provisioner = Provisioner::new(Memory::new(), env.neon(), namespace).on_first_access();
            let provisioner = provisioner.prepare(move |database| {
                let owner = owner(namespace, database.tenant().as_str());
                let number = counter.fetch_add(1, SeqCst) + 1;
                async move {
                    let seed = format!(
                        "CREATE TABLE IF NOT EXISTS seed AS SELECT '{owner}@{number}' AS owner, 0 AS number"
                    );
                    Ok(database.batch_execute(&seed).await?)
                }
            });
            let router = env.configure(TenantRouter::provisioning(provisioner));
            router.max_pools(2).pool_size(2).build().unwrap()
        });
        Self {
            oracle: Arc::default(),
            ids,
            env,
            routers,
            prepared,
            callers: JoinSet::new(),
        }
    }

    async fn apply(&mut self, number: usize, step: &Step) {
        let router = |target: Target| self.routers[target.key.namespace].clone();
        match *step {
            Step::Ask {
                target,
                kind,
                holds,
                leaves_after,
            } => {
                let asks = self.caller(number, target.key).run(kind, holds / SPEEDUP);
                let patience = leaves_after.map_or(LONG, |time| time / 10);
                self.callers.spawn(async move {
                    let _ = timeout(patience, asks).await;
                });
            }
            Step::SwapConnections(one, other) => {
                let (ours, theirs) = (router(one), router(other));
                let ids = [one, other].map(|target| self.id(target.key).to_owned());
                self.callers.spawn(async move {
                    let got = tokio::join!(ours.get(&ids[0]), theirs.get(&ids[1]));
                    if let (Ok(mut one), Ok(mut other)) = got {
                        mem::swap(&mut *one, &mut *other);
                    }
                });
            }
            Step::Warm(target) => drop(router(target).warm(self.id(target.key))),
            Step::Evict(target) => drop(router(target).evict(self.id(target.key))),
            Step::SuspendAll => self.env.emulator.suspend_all().await,
            Step::Suspend(key) | Step::Move(key) | Step::Rotate(key) => {
                self.disturb(key, step).await;
            }
            Step::Job(target, job) => self.run_job(target.key, job).await,
            Step::Wait(time) => sleep(time / SPEEDUP).await,
            _ => {} // needs a scripted backend
        }
        while self.callers.len() > 20 {
            self.callers.join_next().await;
        }
    }

    fn id(&self, key: TenantKey) -> &str {
        &self.ids[key.tenant]
    }

    fn caller(&self, step: usize, key: TenantKey) -> Caller {
        let id = self.id(key);
        Caller {
            oracle: Arc::clone(&self.oracle),
            router: self.routers[key.namespace].clone(),
            key,
            id: id.to_owned(),
            owner: owner(NAMESPACES[key.namespace], id),
            step,
            known_at_start: self.oracle.known(key),
        }
    }

    async fn disturb(&self, key: TenantKey, step: &Step) {
        let fleet = self.routers[key.namespace].fleet().unwrap();
        let record = fleet.record(self.id(key)).await.unwrap();
        let placement = record.and_then(|it| it.placement);
        let Some(endpoint) = placement.and_then(|it| it.endpoint) else {
            return;
        };
        let emulator = &self.env.emulator;
        match *step {
            Step::Suspend(_) => drop(emulator.suspend(&endpoint).await),
            Step::Move(_) => drop(emulator.move_endpoint(&endpoint).await),
            Step::Rotate(_) => drop(emulator.rotate_password(&endpoint).await),
            _ => unreachable!("{step:?}"),
        }
    }

    async fn run_job(&self, key: TenantKey, job: Job) {
        let fleet = self.routers[key.namespace].fleet().unwrap();
        let (id, before) = (self.id(key), self.oracle.known(key).status);
        let prepared = self.prepared.load(SeqCst);
        self.oracle.set_status(key, TenantStatus::Unknown);
        let (done, status) = match job {
            Job::Delete => {
                let drain = Duration::from_millis(20);
                (fleet.delete_after(id, drain).await, TenantStatus::Deleted)
            }
            Job::Recreate => {
                let done = fleet.reprovision(id, &Plan::new()).await;
                (done.map(drop), TenantStatus::Served)
            }
            Job::Undelete => (fleet.undelete(id).await, TenantStatus::Served),
        };
        match done.as_ref().map_err(tenantry::Error::kind) {
            Ok(()) => {
                if job == Job::Recreate && before == TenantStatus::Deleted {
                    self.oracle.raise_oldest(key, prepared + 1);
                }
                self.oracle.set_status(key, status);
            }
            // There was nothing to be done.
            Err(ErrorKind::UnknownTenant | ErrorKind::Conflict) => {
                self.oracle.set_status(key, before);
            }
            Err(_) => {}
        }
    }

    /// Checks that every tenant that is not deleted is served in the end.
    async fn finish(&mut self, step: usize, heartbeat: &Heartbeat) {
        heartbeat.beat(step);
        while self.callers.join_next().await.is_some() {
            heartbeat.beat(step);
        }
        for namespace in 0..NAMESPACES.len() {
            for tenant in 0..self.ids.len() {
                heartbeat.beat(step);
                let caller = self.caller(step, TenantKey { namespace, tenant });
                let is_deleted = caller.known_at_start.status == TenantStatus::Deleted;
                let began = Instant::now();
                let mut result = caller.get(Duration::ZERO).await;
                while !is_deleted && !matches!(result, Ok(Some(_))) && began.elapsed() < LONG {
                    sleep(Duration::from_millis(200)).await;
                    result = caller.get(Duration::ZERO).await;
                }
                let fits = match &result {
                    Ok(number) => number.is_some() && !is_deleted,
                    Err(err) => is_deleted && err.kind() == ErrorKind::Deleted,
                };
                if !fits {
                    caller.report(&format!("in the end it is told {result:?}"));
                }
            }
        }
    }
}
