//! The work of other processes on tenants and their databases.

use std::time::Duration;

use tenantry::{
    Catalog, Fleet, Plan, TenantId,
    catalog::{AfterWrite, Attempt, Lease, Leased, Record, State},
};
use tokio::time::{sleep, timeout};

use super::{
    caller::TenantStatus,
    cloud::Cloud,
    simulation::{COMPUTE_UNAVAILABLE, MOMENT, Simulation, router},
    step::{Job, LoginFault, Step, TenantKey},
};
use crate::support::{DOWN, ENDPOINT_NOT_FOUND, Gate, WRONG_PASSWORD};

/// The other process that holds leases.
const OPERATOR: &str = "operator";
/// The time for which a lease lasts that is given back.
const LEASE: Duration = Duration::from_secs(60);
/// Time between two writes of one process.
const WORK: Duration = Duration::from_millis(2);

impl Simulation<'_> {
    fn tenant(&self, key: TenantKey) -> TenantId {
        TenantId::parse(self.id(key)).unwrap()
    }

    async fn record(&self, key: TenantKey) -> Option<Record> {
        let found = self.catalogs[key.namespace].find(&self.tenant(key)).await;
        found.unwrap()
    }

    async fn project(&self, key: TenantKey) -> Option<String> {
        Some(self.record(key).await?.project()?.to_owned())
    }

    /// Does something to the database without telling the catalog.
    pub(super) async fn disturb(&self, key: TenantKey, step: &Step) {
        let Some(project) = self.project(key).await else {
            return;
        };
        match *step {
            Step::Suspend(_) => self.cloud.suspend(&project),
            Step::Move(_) => self.cloud.move_host(&project),
            Step::Rotate(_) => self.cloud.rotate(&project),
            Step::SwapHosts(_, other) => {
                if let Some(other) = self.project(other).await {
                    self.cloud.swap_hosts(&project, &other);
                }
            }
            _ => unreachable!("{step:?}"),
        }
    }

    /// Gives logins to the database trouble, which ends by itself.
    pub(super) async fn fault_logins(
        &mut self,
        key: TenantKey,
        login_fault: LoginFault,
        lasts: Duration,
    ) {
        let Some(project) = self.project(key).await else {
            return;
        };
        let gate = match login_fault {
            LoginFault::Failing => Gate::Fail(COMPUTE_UNAVAILABLE),
            LoginFault::Password => Gate::Fail(WRONG_PASSWORD),
            LoginFault::Gone => Gate::Fail(ENDPOINT_NOT_FOUND),
            LoginFault::Stuck => Gate::Stuck,
            LoginFault::Slow(time) => Gate::Slow(time),
        };
        self.cloud.set_login_gate(&project, gate);
        let cloud = self.cloud.clone();
        self.callers.spawn(async move {
            sleep(lasts).await;
            cloud.set_login_gate(&project, Gate::Open);
        });
    }

    async fn lease(&self, key: TenantKey, lasts: Duration) -> Option<(Lease, Record)> {
        let catalog = &self.catalogs[key.namespace];
        match catalog.lease(&self.tenant(key), OPERATOR, lasts).await {
            Ok(Leased::Granted(lease, record)) => Some((lease, *record)),
            Ok(_) => None,
            Err(err) => panic!("{err}"),
        }
    }

    /// Changes a record that may be used, unless another process is at it.
    pub(super) async fn update_record(
        &self,
        key: TenantKey,
        change: impl FnOnce(&mut Record),
    ) -> bool {
        let catalog = &self.catalogs[key.namespace];
        let is_ready = |record: &Record| record.state == State::Ready;
        if !self.record(key).await.as_ref().is_some_and(is_ready) {
            return false;
        }
        let Some((lease, mut record)) = self.lease(key, LEASE).await else {
            return false;
        };
        if !is_ready(&record) {
            catalog.release(&lease).await.unwrap();
            return false;
        }
        change(&mut record);
        assert!(
            catalog
                .write(&lease, &record, AfterWrite::Release)
                .await
                .unwrap()
        );
        true
    }

    /// Leads the tenant to a copy of its database, as after a restore. Callers that come then must not see the old one.
    pub(super) async fn copy(&self, key: TenantKey) {
        let mut number = None;
        let changed = self.update_record(key, |record| {
            let Some(mut copy) = record.project().and_then(|old| self.cloud.copy(old)) else {
                return;
            };
            number = copy.placement.project.parse().ok();
            if key.namespace == 1 {
                copy.endpoint.password = "".into();
            }
            record.placement = Some(copy.placement);
            record.endpoint = Some(copy.endpoint);
        });
        if changed.await
            && let Some(number) = number
        {
            sleep(MOMENT).await;
            self.oracle.raise_oldest(key, number);
        }
    }

    /// Does `job` to its end.
    pub(super) async fn run_job(&self, key: TenantKey, fleet: &Fleet, job: Job) {
        self.mark_unknown(key).await;
        let done = self.call_fleet(key, fleet, job).await;
        let status = self.record_status(key).await;
        let wanted = match job {
            Job::Delete => TenantStatus::Deleted,
            Job::Undelete | Job::Recreate => TenantStatus::Served,
        };
        if done.is_ok() && status != wanted {
            let what = format!("{key:?} is {status:?} after {job:?}");
            self.oracle.report(what);
        }
    }

    async fn call_fleet(
        &self,
        key: TenantKey,
        fleet: &Fleet,
        job: Job,
    ) -> Result<(), tenantry::Error> {
        let (id, drain) = (self.id(key), Duration::from_millis(500));
        match job {
            Job::Delete => fleet.delete_after(id, drain).await,
            Job::Undelete => fleet.undelete(id).await,
            Job::Recreate => fleet.reprovision(id, &Plan::new()).await.map(drop),
        }
    }

    /// Has a process of its own begin `job`, and cuts it off from the catalog after a time.
    pub(super) async fn run_job_and_kill(&mut self, key: TenantKey, job: Job, after: Duration) {
        self.mark_unknown(key).await;
        let catalog = self.catalogs[key.namespace].replica();
        let killed_router = router(&self.cloud, catalog.clone(), key.namespace);
        let fleet = killed_router.fleet().unwrap();
        let _ = timeout(after, self.call_fleet(key, &fleet, job)).await;
        catalog.set(DOWN);
        self.callers
            .spawn(async move { killed_router.close().await });
        self.record_status(key).await;
    }

    /// Brings the record of a tenant that has one so many states further, or as far as there are any.
    pub(super) async fn advance_record(
        &self,
        key: TenantKey,
        forks: bool,
        states: usize,
        keeps: Duration,
    ) {
        if self.record(key).await.is_none() {
            return;
        }
        let catalog = &self.catalogs[key.namespace];
        self.mark_unknown(key).await;
        if let Some((lease, mut record)) = self.lease(key, LEASE).await {
            for left in (0..states).rev() {
                record.state = advance(&mut record, &self.cloud, key.namespace, forks);
                let ends = left == 0 && keeps.is_zero();
                let then = if ends {
                    AfterWrite::Release
                } else {
                    AfterWrite::Keep
                };
                assert!(catalog.write(&lease, &record, then).await.unwrap());
                sleep(WORK).await;
            }
            if !keeps.is_zero() {
                self.lease(key, keeps).await; // to run out by itself
            }
        }
        self.record_status(key).await;
    }

    /// Says that nothing is certain of a tenant.
    async fn mark_unknown(&self, key: TenantKey) {
        self.oracle.set_status(key, TenantStatus::Unknown);
        if let Some(project) = self.project(key).await {
            self.cloud.set_closed(&project, false);
        }
    }

    /// Says what is certain of a tenant by its record, which nobody changes now but to finish it; waits until every
    /// router has heard of it.
    async fn record_status(&self, key: TenantKey) -> TenantStatus {
        sleep(MOMENT).await;
        let record = self.record(key).await;
        let (status, project) = match &record {
            None => (TenantStatus::Served, None),
            Some(record) => (status_of(record.state), record.project()),
        };
        if let Some(project) = project {
            self.cloud.set_closed(project, status.refusal().is_some());
        }
        let condemned = record.iter().flat_map(|it| &it.condemned);
        let oldest = condemned.map(|it| project_number(it) + 1);
        let oldest = oldest.chain(
            project
                .filter(|_| status == TenantStatus::Served)
                .map(project_number),
        );
        self.oracle
            .raise_oldest(key, oldest.max().unwrap_or_default());
        self.oracle.set_status(key, status);
        status
    }
}

fn project_number(project: &str) -> u64 {
    project.parse().unwrap()
}

/// Returns the status of a tenant whose record is in `state`. A record that is not finished is finished at an access.
fn status_of(state: State) -> TenantStatus {
    match state {
        State::Held => TenantStatus::Held,
        State::Deleting | State::Deleted => TenantStatus::Deleted,
        _ => TenantStatus::Served,
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
