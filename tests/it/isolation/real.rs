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
    caller::{Caller, Lot, Truth},
    cloud::owner,
    step::{At, Job, NAMESPACES, Step, Who},
    town::Outcome,
};
use crate::support::{LONG, Pulse, Stage};

/// By how much everything is faster than where time is paused.
const FASTER: u32 = 400;

/// Takes those of `steps` that are not up to a script.
pub(super) async fn play(steps: &[Step], ids: &[String], pulse: &Pulse) -> Outcome {
    let mut town = Town::new(ids).await;
    let mut taken = 0;
    for step in steps {
        pulse.beat(taken);
        town.take(taken, step).await;
        taken += 1;
        if !town.truth.is_well() {
            break;
        }
    }
    town.come_to_rest(taken, pulse).await;
    Outcome {
        wrongs: town.truth.wrongs(),
        answers: town.truth.answers(),
        taken,
        stuck: false,
    }
}

struct Town<'a> {
    truth: Arc<Truth>,
    ids: &'a [String],
    stage: Stage,
    routers: [TenantRouter; NAMESPACES.len()],
    /// How many databases were made fit for use.
    prepared: Arc<AtomicU64>,
    callers: JoinSet<()>,
}

impl<'a> Town<'a> {
    async fn new(ids: &'a [String]) -> Self {
        let (stage, prepared) = (Stage::new().await, Arc::<AtomicU64>::default());
        let routers = NAMESPACES.map(|namespace| {
            let counter = Arc::clone(&prepared);
            let provisioner = Provisioner::new(Memory::new(), stage.neon(), namespace).on_first_access();
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
            let router = stage.at(TenantRouter::provisioning(provisioner));
            router.max_pools(2).pool_size(2).build().unwrap()
        });
        Self {
            truth: Arc::default(),
            ids,
            stage,
            routers,
            prepared,
            callers: JoinSet::new(),
        }
    }

    async fn take(&mut self, number: usize, step: &Step) {
        let router = |at: At| self.routers[at.who.namespace].clone();
        match *step {
            Step::Ask {
                at,
                way,
                holds,
                leaves_after,
            } => {
                let asks = self.caller(number, at.who).ask(way, holds / FASTER);
                let patience = leaves_after.map_or(LONG, |time| time / 10);
                self.callers.spawn(async move {
                    let _ = timeout(patience, asks).await;
                });
            }
            Step::Swap(one, other) => {
                let (ours, theirs) = (router(one), router(other));
                let ids = [one, other].map(|at| self.id(at.who).to_owned());
                self.callers.spawn(async move {
                    let got = tokio::join!(ours.get(&ids[0]), theirs.get(&ids[1]));
                    if let (Ok(mut one), Ok(mut other)) = got {
                        mem::swap(&mut *one, &mut *other);
                    }
                });
            }
            Step::Warm(at) => drop(router(at).warm(self.id(at.who))),
            Step::Evict(at) => drop(router(at).evict(self.id(at.who))),
            Step::SuspendAll => self.stage.emulator.suspend_all().await,
            Step::Suspend(who) | Step::Move(who) | Step::Rotate(who) => {
                self.disturb(who, step).await;
            }
            Step::Job(at, job) => self.manage(at.who, job).await,
            Step::Pass(time) => sleep(time / FASTER).await,
            _ => {} // is up to a script
        }
        while self.callers.len() > 20 {
            self.callers.join_next().await;
        }
    }

    fn id(&self, who: Who) -> &str {
        &self.ids[who.tenant]
    }

    fn caller(&self, step: usize, who: Who) -> Caller {
        let id = self.id(who);
        Caller {
            truth: Arc::clone(&self.truth),
            router: self.routers[who.namespace].clone(),
            who,
            id: id.to_owned(),
            owner: owner(NAMESPACES[who.namespace], id),
            step,
            came: self.truth.fact(who),
        }
    }

    async fn disturb(&self, who: Who, step: &Step) {
        let fleet = self.routers[who.namespace].fleet().unwrap();
        let record = fleet.record(self.id(who)).await.unwrap();
        let placement = record.and_then(|it| it.placement);
        let Some(endpoint) = placement.and_then(|it| it.endpoint) else {
            return;
        };
        let emulator = &self.stage.emulator;
        match *step {
            Step::Suspend(_) => drop(emulator.suspend(&endpoint).await),
            Step::Move(_) => drop(emulator.move_endpoint(&endpoint).await),
            Step::Rotate(_) => drop(emulator.rotate_password(&endpoint).await),
            _ => unreachable!("{step:?}"),
        }
    }

    async fn manage(&self, who: Who, job: Job) {
        let fleet = self.routers[who.namespace].fleet().unwrap();
        let (id, before) = (self.id(who), self.truth.fact(who).lot);
        let prepared = self.prepared.load(SeqCst);
        self.truth.turn(who, Lot::Unsure);
        let (done, lot) = match job {
            Job::Delete => {
                let drain = Duration::from_millis(20);
                (fleet.delete_after(id, drain).await, Lot::Deleted)
            }
            Job::Anew => {
                let done = fleet.reprovision(id, &Plan::new()).await;
                (done.map(drop), Lot::Served)
            }
            Job::Undelete => (fleet.undelete(id).await, Lot::Served),
        };
        match done.as_ref().map_err(tenantry::Error::kind) {
            Ok(()) => {
                if job == Job::Anew && before == Lot::Deleted {
                    self.truth.raise(who, prepared + 1);
                }
                self.truth.turn(who, lot);
            }
            // There was nothing to be done.
            Err(ErrorKind::UnknownTenant | ErrorKind::Conflict) => self.truth.turn(who, before),
            Err(_) => {}
        }
    }

    /// In the end everybody is served who is not deleted.
    async fn come_to_rest(&mut self, step: usize, pulse: &Pulse) {
        pulse.beat(step);
        while self.callers.join_next().await.is_some() {
            pulse.beat(step);
        }
        for namespace in 0..NAMESPACES.len() {
            for tenant in 0..self.ids.len() {
                pulse.beat(step);
                let caller = self.caller(step, Who { namespace, tenant });
                let is_deleted = caller.came.lot == Lot::Deleted;
                let began = Instant::now();
                let mut told = caller.get(Duration::ZERO).await;
                while !is_deleted && !matches!(told, Ok(Some(_))) && began.elapsed() < LONG {
                    sleep(Duration::from_millis(200)).await;
                    told = caller.get(Duration::ZERO).await;
                }
                let fits = match &told {
                    Ok(number) => number.is_some() && !is_deleted,
                    Err(err) => is_deleted && err.kind() == ErrorKind::Deleted,
                };
                if !fits {
                    caller.wrong(&format!("in the end it is told {told:?}"));
                }
            }
        }
    }
}
