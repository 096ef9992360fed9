//! Several routers of two namespaces on one account, and what happens to them.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tenantry::{
    ErrorKind, Fleet, Plan, Provisioner, Records, TenantId, TenantRouter,
    record::{Leased, Record, State, Then},
};
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
use crate::support::{Failure, Gate, Ledger, Step as Place};

/// By then every router has heard of what was written.
const MOMENT: Duration = Duration::from_millis(100);
/// By then no refusal is remembered any more.
const CALM: Duration = Duration::from_secs(180);
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
}

/// Takes `steps` under paused time, until something is wrong.
pub(super) fn play(steps: &[Step], ids: &[String]) -> Outcome {
    let truth = Arc::<Truth>::default();
    let mut taken = 0;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut town = Town::new(Arc::clone(&truth), ids);
            for step in steps {
                town.take(taken, step).await;
                taken += 1;
                if !truth.is_well() {
                    return;
                }
            }
            town.come_to_rest(taken).await;
        });
    }));
    if played.is_err() {
        truth.wrong(format!("at step {taken}: a panic, told above"));
    }
    Outcome {
        wrongs: truth.wrongs(),
        answers: truth.answers(),
        taken,
    }
}

struct Town<'a> {
    truth: Arc<Truth>,
    ids: &'a [String],
    cloud: Cloud,
    ledgers: [Ledger; NAMESPACES.len()],
    routers: [[TenantRouter; REPLICAS]; NAMESPACES.len()],
    callers: JoinSet<()>,
}

impl<'a> Town<'a> {
    fn new(truth: Arc<Truth>, ids: &'a [String]) -> Self {
        let cloud = Cloud::new();
        let ledgers = NAMESPACES.map(|_| Ledger::new());
        let routers = std::array::from_fn(|namespace| {
            std::array::from_fn(|_| router(&cloud, &ledgers[namespace], namespace))
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
            Step::Delete(at) | Step::Undelete(at) | Step::Anew(at) => self.manage(at, step).await,
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

    fn id(&self, who: Who) -> &str {
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
        let new = router(&self.cloud, &self.ledgers[namespace], namespace);
        let old = mem::replace(&mut self.routers[namespace][replica], new);
        self.callers.spawn(async move { old.close().await });
    }

    fn set(&self, weather: Weather) {
        let backend = &self.cloud.backend;
        for place in [Place::Open, Place::Login, Place::Query] {
            backend.set(place, Gate::Open);
        }
        let broken = Failure::Fatal {
            code: "XX000",
            text: "Couldn't connect to compute node",
        };
        match weather {
            Weather::Fine => {}
            Weather::SlowLogins(time) => backend.set(Place::Login, Gate::Slow(time)),
            Weather::StuckLogins => backend.set(Place::Login, Gate::Stuck),
            Weather::FailingLogins => backend.set(Place::Login, Gate::Fail(broken)),
            Weather::Unreachable => backend.set(Place::Open, Gate::Fail(Failure::Cut)),
            Weather::CutQueries => backend.set(Place::Query, Gate::Fail(Failure::Cut)),
            Weather::SlowQueries(time) => backend.set(Place::Query, Gate::Slow(time)),
        }
    }

    async fn record(&self, who: Who) -> Option<Record> {
        let id = TenantId::parse(self.id(who)).unwrap();
        self.ledgers[who.namespace].find(&id).await.unwrap()
    }

    async fn project(&self, who: Who) -> Option<String> {
        Some(self.record(who).await?.project()?.to_owned())
    }

    /// Does something to the database, of which nobody is told.
    async fn disturb(&self, who: Who, step: &Step) {
        let Some(project) = self.project(who).await else {
            return;
        };
        match *step {
            Step::Suspend(_) => self.cloud.suspend(&project),
            Step::Move(_) => self.cloud.move_host(&project),
            Step::Rotate(_) => self.cloud.rotate(&project),
            Step::Trade(_, other) => {
                if let Some(other) = self.project(other).await {
                    self.cloud.trade_hosts(&project, &other);
                }
            }
            _ => unreachable!("{step:?}"),
        }
    }

    /// Changes a record that may be used, unless somebody is at it.
    async fn rewrite(&self, who: Who, change: impl FnOnce(&mut Record)) -> bool {
        let (ledger, id) = (&self.ledgers[who.namespace], self.id(who));
        let id = TenantId::parse(id).unwrap();
        if self
            .record(who)
            .await
            .is_none_or(|it| it.state != State::Ready)
        {
            return false;
        }
        let leased = ledger.lease(&id, "operator", Duration::from_secs(60)).await;
        let Leased::Granted(lease, mut record) = leased.unwrap() else {
            return false;
        };
        if record.state != State::Ready {
            ledger.release(&lease).await.unwrap();
            return false;
        }
        change(&mut record);
        assert!(ledger.write(&lease, &record, Then::Release).await.unwrap());
        true
    }

    /// The tenant is led to a copy of its database, as after a restore. Whoever comes then must not see the old one.
    async fn copy(&self, who: Who) {
        let mut number = None;
        let changed = self.rewrite(who, |record| {
            let Some(mut copy) = record.project().and_then(|old| self.cloud.copy(old)) else {
                return;
            };
            number = copy.placement.project.parse().ok();
            if record
                .endpoint
                .as_ref()
                .is_some_and(|it| it.password.expose().is_empty())
            {
                copy.endpoint.password = "".into();
            }
            record.placement = Some(copy.placement);
            record.endpoint = Some(copy.endpoint);
        });
        if changed.await
            && let Some(number) = number
        {
            sleep(MOMENT).await;
            self.truth.raise(who, number);
        }
    }

    async fn manage(&self, at: At, step: &Step) {
        let (who, id, fleet) = (at.who, self.id(at.who), self.fleet(at));
        let before = self.truth.fact(who).lot;
        self.truth.turn(who, Lot::Unsure);
        let (done, lot) = match step {
            Step::Delete(_) => {
                let drain = Duration::from_millis(500);
                (fleet.delete_after(id, drain).await, Lot::Deleted)
            }
            Step::Undelete(_) => (fleet.undelete(id).await, Lot::Served),
            Step::Anew(_) => (fleet.provision_anew(id, &Plan::new()).await, Lot::Served),
            _ => unreachable!("{step:?}"),
        };
        sleep(MOMENT).await;
        match done.as_ref().map_err(tenantry::Error::kind) {
            Ok(()) => {
                if let Some(project) = self.project(who).await {
                    self.truth.raise(who, project.parse().unwrap());
                }
                self.truth.turn(who, lot);
            }
            // There was nothing to be done.
            Err(ErrorKind::UnknownTenant) => self.truth.turn(who, before),
            Err(ErrorKind::Conflict) if matches!(step, Step::Undelete(_)) => {
                self.truth.turn(who, before);
            }
            Err(_) => {}
        }
    }

    /// Lets all trouble end, after which everybody is served, everywhere by the same database.
    async fn come_to_rest(&mut self, step: usize) {
        self.set(Weather::Fine);
        while self.callers.join_next().await.is_some() {}
        sleep(CALM).await;
        for namespace in 0..NAMESPACES.len() {
            for tenant in 0..self.ids.len() {
                let who = Who { namespace, tenant };
                let mut numbers = Vec::new();
                for replica in 0..REPLICAS {
                    numbers.extend(self.in_the_end(step, At { who, replica }).await);
                }
                numbers.dedup();
                if numbers.len() > 1 {
                    let what = format!("at step {step}, {who:?} is led to {numbers:?} at once");
                    self.truth.wrong(what);
                }
            }
        }
        for intrusion in self.cloud.intrusions() {
            self.truth.wrong(intrusion);
        }
    }

    /// The number of the database to which somebody is led in the end. Whoever is not deleted is led to one.
    async fn in_the_end(&self, step: usize, at: At) -> Option<u64> {
        let caller = self.caller(step, at);
        let lot = caller.came.lot;
        let mut told = caller.get(MOMENT).await;
        for _ in 0..3 {
            if matches!(told, Ok(Some(_))) || lot == Lot::Deleted {
                break;
            }
            sleep(CALM).await;
            told = caller.get(MOMENT).await;
        }
        match (lot, told) {
            (Lot::Served | Lot::Unsure, Ok(Some(number))) => return Some(number),
            (Lot::Deleted | Lot::Unsure, Err(err)) if err.kind() == ErrorKind::Deleted => {}
            (_, told) => caller.wrong(&format!("in the end it is {lot:?}, and told {told:?}")),
        }
        None
    }
}

/// A router of few pools. One namespace keeps its passwords in the catalog, and the other does not.
fn router(cloud: &Cloud, ledger: &Ledger, namespace: usize) -> TenantRouter {
    let name = NAMESPACES[namespace];
    let mut provisioner = Provisioner::new(ledger.replica(), cloud.clone(), name);
    if namespace == 1 {
        provisioner = provisioner.passwords_from_control_plane();
    }
    let builder = cloud.backend.at(TenantRouter::provisioning(provisioner));
    builder.max_pools(5).pool_size(2).build().unwrap()
}
