//! What other processes do to tenants and their databases.

use std::time::Duration;

use tenantry::{
    Catalog, Fleet, Plan, TenantId,
    catalog::{AfterWrite, Attempt, Lease, Leased, Record, State},
};
use tokio::time::{sleep, timeout};

use super::{
    caller::Lot,
    cloud::Cloud,
    step::{Job, Step, Trouble, Who},
    town::{BROKEN, MOMENT, Town, router},
};
use crate::support::{DOWN, GONE, Gate, WRONG_PASSWORD};

/// The other process that holds leases.
const OPERATOR: &str = "operator";
/// How long a lease lasts that is given back.
const LEASE: Duration = Duration::from_secs(60);
/// Time between two writes of one process.
const WORK: Duration = Duration::from_millis(2);

impl Town<'_> {
    fn tenant(&self, who: Who) -> TenantId {
        TenantId::parse(self.id(who)).unwrap()
    }

    async fn record(&self, who: Who) -> Option<Record> {
        let found = self.ledgers[who.namespace].find(&self.tenant(who)).await;
        found.unwrap()
    }

    async fn project(&self, who: Who) -> Option<String> {
        Some(self.record(who).await?.project()?.to_owned())
    }

    /// Does something to the database without telling the catalog.
    pub(super) async fn disturb(&self, who: Who, step: &Step) {
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

    /// Gives logins to the database trouble, which ends by itself.
    pub(super) async fn trouble(&mut self, who: Who, trouble: Trouble, lasts: Duration) {
        let Some(project) = self.project(who).await else {
            return;
        };
        let gate = match trouble {
            Trouble::Failing => Gate::Fail(BROKEN),
            Trouble::Password => Gate::Fail(WRONG_PASSWORD),
            Trouble::Gone => Gate::Fail(GONE),
            Trouble::Stuck => Gate::Stuck,
            Trouble::Slow(time) => Gate::Slow(time),
        };
        self.cloud.set_logins(&project, gate);
        let cloud = self.cloud.clone();
        self.callers.spawn(async move {
            sleep(lasts).await;
            cloud.set_logins(&project, Gate::Open);
        });
    }

    async fn lease(&self, who: Who, lasts: Duration) -> Option<(Lease, Record)> {
        let ledger = &self.ledgers[who.namespace];
        match ledger.lease(&self.tenant(who), OPERATOR, lasts).await {
            Ok(Leased::Granted(lease, record)) => Some((lease, *record)),
            Ok(_) => None,
            Err(err) => panic!("{err}"),
        }
    }

    /// Changes a record that may be used, unless another process is at it.
    pub(super) async fn rewrite(&self, who: Who, change: impl FnOnce(&mut Record)) -> bool {
        let ledger = &self.ledgers[who.namespace];
        let is_ready = |record: &Record| record.state == State::Ready;
        if !self.record(who).await.as_ref().is_some_and(is_ready) {
            return false;
        }
        let Some((lease, mut record)) = self.lease(who, LEASE).await else {
            return false;
        };
        if !is_ready(&record) {
            ledger.release(&lease).await.unwrap();
            return false;
        }
        change(&mut record);
        assert!(
            ledger
                .write(&lease, &record, AfterWrite::Release)
                .await
                .unwrap()
        );
        true
    }

    /// Leads the tenant to a copy of its database, as after a restore. Callers that come then must not see the old one.
    pub(super) async fn copy(&self, who: Who) {
        let mut number = None;
        let changed = self.rewrite(who, |record| {
            let Some(mut copy) = record.project().and_then(|old| self.cloud.copy(old)) else {
                return;
            };
            number = copy.placement.project.parse().ok();
            if who.namespace == 1 {
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

    /// Does `job` to its end.
    pub(super) async fn manage(&self, who: Who, fleet: &Fleet, job: Job) {
        self.unsettle(who).await;
        let done = self.run(who, fleet, job).await;
        let lot = self.settle(who).await;
        let wanted = match job {
            Job::Delete => Lot::Deleted,
            Job::Undelete | Job::Anew => Lot::Served,
        };
        if done.is_ok() && lot != wanted {
            let what = format!("{who:?} is {lot:?} after {job:?}");
            self.truth.wrong(what);
        }
    }

    async fn run(&self, who: Who, fleet: &Fleet, job: Job) -> Result<(), tenantry::Error> {
        let (id, drain) = (self.id(who), Duration::from_millis(500));
        match job {
            Job::Delete => fleet.delete_after(id, drain).await,
            Job::Undelete => fleet.undelete(id).await,
            Job::Anew => fleet.reprovision(id, &Plan::new()).await.map(drop),
        }
    }

    /// Has a process of its own begin `job`, and cuts it off from the catalog after a time.
    pub(super) async fn kill(&mut self, who: Who, job: Job, after: Duration) {
        self.unsettle(who).await;
        let ledger = self.ledgers[who.namespace].replica();
        let doomed = router(&self.cloud, ledger.clone(), who.namespace);
        let fleet = doomed.fleet().unwrap();
        let _ = timeout(after, self.run(who, &fleet, job)).await;
        ledger.set(DOWN);
        self.callers.spawn(async move { doomed.close().await });
        self.settle(who).await;
    }

    /// Brings the record of a tenant that has one so many states further, or as far as there are any.
    pub(super) async fn bring_further(
        &self,
        who: Who,
        forks: bool,
        states: usize,
        keeps: Duration,
    ) {
        if self.record(who).await.is_none() {
            return;
        }
        let ledger = &self.ledgers[who.namespace];
        self.unsettle(who).await;
        if let Some((lease, mut record)) = self.lease(who, LEASE).await {
            for left in (0..states).rev() {
                record.state = advance(&mut record, &self.cloud, who.namespace, forks);
                let ends = left == 0 && keeps.is_zero();
                let then = if ends {
                    AfterWrite::Release
                } else {
                    AfterWrite::Keep
                };
                assert!(ledger.write(&lease, &record, then).await.unwrap());
                sleep(WORK).await;
            }
            if !keeps.is_zero() {
                self.lease(who, keeps).await; // to run out by itself
            }
        }
        self.settle(who).await;
    }

    /// Says that nothing is certain of a tenant.
    async fn unsettle(&self, who: Who) {
        self.truth.turn(who, Lot::Unsure);
        if let Some(project) = self.project(who).await {
            self.cloud.set_closed(&project, false);
        }
    }

    /// Says what is certain of a tenant by its record, which nobody changes now but to finish it; waits until every router
    /// has heard of it.
    async fn settle(&self, who: Who) -> Lot {
        sleep(MOMENT).await;
        let record = self.record(who).await;
        let (lot, project) = match &record {
            None => (Lot::Served, None),
            Some(record) => (lot(record.state), record.project()),
        };
        if let Some(project) = project {
            self.cloud.set_closed(project, lot.refusal().is_some());
        }
        let condemned = record.iter().flat_map(|it| &it.condemned);
        let oldest = condemned.map(|it| number(it) + 1);
        let oldest = oldest.chain(project.filter(|_| lot == Lot::Served).map(number));
        self.truth.raise(who, oldest.max().unwrap_or_default());
        self.truth.turn(who, lot);
        lot
    }
}

fn number(project: &str) -> u64 {
    project.parse().unwrap()
}

/// What becomes of callers of a tenant whose record is in that state. One that is not finished is finished at an access.
fn lot(state: State) -> Lot {
    match state {
        State::Held => Lot::Held,
        State::Deleting | State::Deleted => Lot::Deleted,
        _ => Lot::Served,
    }
}

/// Does what leads to a record's next state, and says which that is. Where there are two ways, the usual one leads to a
/// deletion and a new database, and the other one `forks`.
fn advance(record: &mut Record, cloud: &Cloud, namespace: usize, forks: bool) -> State {
    match record.state {
        State::Ready if forks => State::Held,
        State::Held if forks => State::Ready,
        State::Ready | State::Held => State::Deleting,
        State::Deleting => {
            if let Some(project) = record.project() {
                cloud.destroy(project);
            }
            State::Deleted
        }
        State::Deleted => {
            let old = record.placement.take().map(|it| it.project);
            record.condemned.extend(old);
            record.endpoint = None;
            State::Claimed
        }
        State::Claimed => {
            let id = format!("{OPERATOR}-{}", record.attempts.len());
            record.attempt = Some(Attempt::new(&id, Duration::from_secs(10)));
            record.attempts.push(id);
            State::Creating
        }
        State::Creating => {
            let sent = record.attempts.iter().any(|it| !it.starts_with(OPERATOR));
            if forks && !sent {
                record.attempt = None;
                return State::Claimed;
            }
            let Some(mut database) = cloud.replacement(&record.condemned) else {
                return State::Creating;
            };
            if namespace == 1 {
                database.endpoint.password = "".into();
            }
            record.attempt = None;
            record.placement = Some(database.placement);
            record.endpoint = Some(database.endpoint);
            State::Preparing
        }
        State::Preparing => State::Ready,
        state => unreachable!("{state:?}"),
    }
}
