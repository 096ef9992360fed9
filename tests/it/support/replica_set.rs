//! Replicas that work on tenants while others are killed over the same work.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Mutex,
};

use futures_util::future::join_all;
use tenantry::{Catalog, Failpoint, TenantId, catalog::State};
use tokio::time::sleep;

use super::{Answer, Deployment, Replica, WINDOW, replica::LEASE};

/// Replicas that live, and what they have seen.
pub(crate) struct ReplicaSet<'a> {
    deployment: &'a Deployment,
    seeding: [Replica; 2],
    plain: [Replica; 2],
    // Held for a look or a change.
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    /// The steps at which replicas were killed.
    steps: HashSet<Failpoint>,
    /// The rows that are seeded in the databases that were served.
    rows: BTreeMap<String, String>,
    /// Tenants, with what was asked for last.
    tenants: BTreeMap<String, &'static str>,
    /// Those that nobody has asked for since a replica was killed over them.
    abandoned: BTreeSet<String>,
}

impl<'a> ReplicaSet<'a> {
    pub(crate) async fn new(deployment: &'a Deployment) -> Self {
        Self {
            deployment,
            seeding: [deployment.replica().await, deployment.replica().await],
            plain: [
                deployment.plain_replica().await,
                deployment.plain_replica().await,
            ],
            history: Mutex::default(),
        }
    }

    /// Has `tenants` with a second project each, and kills a replica that is about to delete one of those.
    pub(crate) async fn kill_before_delete(&self, tenants: Vec<String>) {
        let mut victim = self.deployment.plain_replica().await;
        for tenant in &tenants {
            self.record_answer(
                tenant,
                "provision",
                victim.ask(&format!("provision {tenant}")).await,
            );
            let id = TenantId::parse(tenant).unwrap();
            let record = self
                .deployment
                .open_catalog()
                .find(&id)
                .await
                .unwrap()
                .unwrap();
            let attempt = &record.attempts[0];
            self.deployment.env.second_project(tenant, attempt).await;
        }
        victim.stop_at(Failpoint::Condemned, 1).await;
        let call = victim.ask("reconcile");
        let condemned = victim.stopped_at(Failpoint::Condemned).await;
        victim.kill().await;
        assert_eq!(call.await, Err("killed".to_owned()));
        assert_eq!(self.deployment.env.projects(&condemned).len(), 2);
        self.history
            .lock()
            .unwrap()
            .steps
            .insert(Failpoint::Condemned);
    }

    /// Has something done to `tenants` by a replica that is killed as soon as two of them stay at the first of `steps`,
    /// by another that is killed at the next, and at last, except to one of the two, by two that live.
    pub(crate) async fn run_through_kills(
        &self,
        steps: &[Failpoint],
        verb: &'static str,
        tenants: Vec<String>,
    ) {
        let ask = |replica: &Replica, tenant: &str| {
            let (commands, tenant) = (replica.commands(), tenant.to_owned());
            tokio::spawn(async move { commands.ask_until_done(verb, &tenant).await })
        };
        let mut abandoned = String::new();
        for &step in steps {
            let mut victim = match verb {
                "get" => self.deployment.replica().await,
                _ => self.deployment.plain_replica().await,
            };
            victim.stop_at(step, 2).await;
            let calls = join_all(tenants.iter().map(|tenant| ask(&victim, tenant)));
            abandoned = victim.stopped_at(step).await;
            victim.stopped_at(step).await;
            victim.kill().await;
            for (tenant, answer) in tenants.iter().zip(calls.await) {
                let answer = answer.unwrap();
                if answer != Err("killed".to_owned()) {
                    self.record_answer(tenant, verb, answer);
                }
            }
            self.history.lock().unwrap().steps.insert(step);
        }
        let living = match verb {
            "get" => &self.seeding,
            _ => &self.plain,
        };
        let others = || tenants.iter().filter(|tenant| **tenant != abandoned);
        let calls = living
            .iter()
            .map(|replica| join_all(others().map(|it| ask(replica, it))));
        for answers in join_all(calls).await {
            for (tenant, answer) in others().zip(answers) {
                self.record_answer(tenant, verb, answer.unwrap());
            }
        }
        let mut history = self.history.lock().unwrap();
        history.tenants.insert(abandoned.clone(), verb);
        history.abandoned.insert(abandoned);
    }

    fn record_answer(&self, tenant: &str, verb: &'static str, answer: Answer) {
        let answer = answer.unwrap_or_else(|err| panic!("{verb} {tenant}: {err}"));
        let mut history = self.history.lock().unwrap();
        history.tenants.insert(tenant.to_owned(), verb);
        if verb == "get" {
            assert!(is_seed_of(tenant, &answer), "{tenant}: {answer}");
            let row = history.rows.entry(tenant.to_owned());
            assert_eq!(*row.or_insert(answer.clone()), answer, "another database");
        }
    }

    /// Some tenants that live and were not left as they were: of those with a row, and of those without.
    pub(crate) fn live_tenants(&self, with_row: usize, without: usize) -> Vec<String> {
        let history = self.history.lock().unwrap();
        let of = |verb, count| {
            let all = history.tenants.iter().filter(move |(_, it)| **it == verb);
            let whole = all
                .map(|(tenant, _)| tenant)
                .filter(|it| !history.abandoned.contains(*it));
            whole.take(count).cloned()
        };
        of("get", with_row)
            .chain(of("provision", without))
            .collect()
    }

    /// Tenants that were deleted by a replica that lives.
    pub(crate) fn deleted_tenants(&self) -> Vec<String> {
        let history = self.history.lock().unwrap();
        let deleted = history
            .tenants
            .iter()
            .filter(|(_, verb)| **verb == "delete");
        let deleted = deleted.map(|(tenant, _)| tenant);
        deleted
            .filter(|it| !history.abandoned.contains(*it))
            .cloned()
            .collect()
    }

    /// One reconcile, and all is as it should be: a database for each tenant that was not deleted, and no other.
    pub(crate) async fn assert_consistent(self) {
        let History {
            steps,
            rows,
            tenants,
            abandoned,
        } = self.history.into_inner().unwrap();
        assert_eq!(steps, HashSet::from(Failpoint::ALL));
        sleep(LEASE + WINDOW).await;
        for record in self.deployment.all_records().await {
            let (tenant, leased_for) = (record.tenant.as_str(), record.leased_for);
            assert_eq!(leased_for, None, "{tenant} is stuck: {:?}", record.state);
        }
        let replica = self.deployment.replica().await;
        let report = replica.ask("reconcile").await.unwrap();
        assert_eq!(
            check_projects(self.deployment).await.len(),
            tenants.len(),
            "{report}"
        );

        for (tenant, verb) in &tenants {
            // What nobody has brought to its end was taken back: a deletion that was about to be undone is done.
            let is_deleted = *verb == "delete" || *verb == "undelete" && abandoned.contains(tenant);
            let is_seeded = rows.contains_key(tenant);
            let answer = match (is_deleted, is_seeded) {
                (true, _) | (_, true) => replica.commands().ask_until_done("get", tenant).await,
                (false, false) => replica.commands().ask_until_done("provision", tenant).await,
            };
            match answer {
                Err(err) if is_deleted => assert!(err.starts_with("Deleted: "), "{tenant}: {err}"),
                Ok(row) if is_seeded => assert_eq!(row, rows[tenant]),
                Ok(_) if !is_deleted => {}
                answer => panic!("{tenant}: {answer:?} after {verb}"),
            }
        }
        let states = check_projects(self.deployment).await;
        assert!(
            states
                .iter()
                .all(|it| matches!(it, State::Ready | State::Deleted))
        );
    }
}

/// Returns whether what was seeded is one row, and that of `tenant`.
pub(crate) fn is_seed_of(tenant: &str, seeded: &str) -> bool {
    let rest = seeded.strip_prefix(tenant);
    let rest = rest.and_then(|it| it.strip_prefix(' '));
    rest.is_some_and(|id| uuid::Uuid::parse_str(id).is_ok())
}

/// Checks that each record which is ready has its project and no other, and no other record has any. The states of all
/// records.
async fn check_projects(deployment: &Deployment) -> Vec<State> {
    let mut projects = deployment.env.emulator.witnesses();
    let mut states = Vec::new();
    for record in deployment.all_records().await {
        let tenant = record.tenant.as_str();
        match record.state {
            State::Ready => {
                let found = projects
                    .iter()
                    .position(|it| Some(it.project_id.as_str()) == record.project());
                let project =
                    projects.swap_remove(found.unwrap_or_else(|| panic!("{tenant} has none")));
                assert_eq!(project.annotations["tenantry-tenant"], tenant);
            }
            State::Claimed | State::Deleted => {}
            state => panic!("{tenant} is {state:?}: {:?}", record.last_error),
        }
        states.push(record.state);
    }
    assert!(projects.is_empty(), "nobody's: {projects:?}");
    states
}
