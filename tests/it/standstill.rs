//! Many replicas of an application at once, and replicas that stand still in the midst of the work on a tenant's
//! database until others have done it.

use futures_util::future::join_all;
use tenantry::{Catalog, Failpoint, TenantId, catalog::Record, emulator::ApiFault};
use tokio::time::sleep;

use crate::support::{
    Answer, DelayProxy, Deployment, MOMENT, Replica, eventually, is_seed_of, query_text,
};

#[tokio::test]
async fn eight_replicas_with_fifty_callers_each_make_one_project() {
    let deployment = Deployment::new().await;
    let replicas = join_all((0..8).map(|_| deployment.replica())).await;
    let warm = replicas.iter().map(|it| it.ask("provision warm"));
    assert!(join_all(warm).await.iter().all(Result::is_ok));
    for tenant in ["acme", "globex", "initech"] {
        // Nobody is ahead: they all hear of it while they stand still.
        replicas.iter().for_each(Replica::freeze);
        let calls: Vec<_> = replicas
            .iter()
            .map(|it| spawn_callers(it, tenant, 50))
            .collect();
        sleep(MOMENT).await;
        replicas.iter().for_each(Replica::thaw);
        let answers: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
        assert_eq!(answers.len(), 400);
        let first = answers[0].clone().unwrap();
        assert!(is_seed_of(tenant, &first), "{first}");
        assert_all_equal(&answers, &first);
        assert_eq!(deployment.env.projects(tenant).len(), 1);
    }
    let statuses = join_all(replicas.iter().map(|it| it.ask("status"))).await;
    let published = |status: &Answer| -> u64 {
        let counts = status.as_ref().unwrap().split(' ');
        counts.map(|it| it.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(statuses.iter().map(published).sum::<u64>(), 4);
}

/// So many who want a connection to `tenant`.
fn spawn_callers(
    replica: &Replica,
    tenant: &str,
    count: usize,
) -> impl Future<Output = Vec<Answer>> + use<> {
    let command = format!("get {tenant}");
    let calls: Vec<_> = (0..count).map(|_| replica.ask(&command)).collect();
    join_all(calls)
}

async fn acme_record(deployment: &Deployment) -> Record {
    let acme = TenantId::parse("acme").unwrap();
    deployment
        .open_catalog()
        .find(&acme)
        .await
        .unwrap()
        .unwrap()
}

/// Each answer is that of the database which was served first.
fn assert_all_equal(answers: &[Answer], served: &str) {
    assert!(
        answers.iter().all(|it| it.as_deref() == Ok(served)),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_replica_that_stood_still_before_its_creation_does_not_send_it() {
    let deployment = Deployment::new().await;
    let (mut frozen, other) = tokio::join!(deployment.replica(), deployment.replica());
    frozen.stop_at(Failpoint::Ordering, 1).await;
    let callers = spawn_callers(&frozen, "acme", 10);
    frozen.stopped_at(Failpoint::Ordering).await;
    frozen.freeze();
    frozen.resume(); // which it reads once it runs again
    let served = other.ask("get acme").await.unwrap();
    assert!(is_seed_of("acme", &served), "{served}");
    frozen.thaw();
    assert_all_equal(&callers.await, &served);
    assert_eq!(deployment.env.projects("acme").len(), 1);
    assert_eq!(frozen.ask("status").await.unwrap(), "0 0");
}

#[tokio::test]
async fn a_creation_that_arrives_after_another_replica_has_published_is_never_served_and_is_removed()
 {
    check_late_creation(true).await;
}

#[tokio::test]
async fn a_creation_that_arrives_after_its_own_replica_has_published_is_never_served_and_is_removed()
 {
    check_late_creation(false).await;
}

/// A creation is under way for longer than it may be.
async fn check_late_creation(stands_still: bool) {
    let deployment = Deployment::new().await;
    let api = deployment.env.emulator.api_url();
    let network = DelayProxy::to(&api).await;
    let (sender, other) = tokio::join!(
        deployment.replica_at(network.url(&api)),
        deployment.replica()
    );
    let callers = spawn_callers(&sender, "acme", 10);
    network.creation_arrived().await;
    if stands_still {
        sender.freeze();
    }
    let served = other.ask("get acme").await.unwrap();
    assert!(is_seed_of("acme", &served), "{served}");
    let published = acme_record(&deployment).await;

    network.release();
    eventually("it arrives", || deployment.env.projects("acme").len() == 2).await;
    if stands_still {
        sleep(MOMENT).await; // the answer is there before the process goes on
        sender.thaw();
    }
    assert_all_equal(&callers.await, &served);
    let newcomer = deployment.replica().await;
    assert_all_equal(
        &[newcomer.ask("get acme").await, other.ask("get acme").await],
        &served,
    );

    let report = newcomer.ask("reconcile").await.unwrap();
    assert!(
        report.contains("Duplicate") && report.contains("Repaired"),
        "{report}"
    );
    assert_eq!(
        Some(deployment.env.witness("acme").project_id.as_str()),
        published.project()
    );
    let replicas = [sender, other, newcomer];
    assert_all_equal(
        &join_all(replicas.iter().map(|it| it.ask("get acme"))).await,
        &served,
    );
}

#[tokio::test]
async fn a_creation_that_is_answered_late_is_taken_over_by_another_replica() {
    let deployment = Deployment::new().await;
    let (frozen, other) = tokio::join!(deployment.replica(), deployment.replica());
    let late = ApiFault::Slow { milliseconds: 6000 };
    deployment.env.emulator.fail_api("POST /projects", late, 1);
    let callers = spawn_callers(&frozen, "acme", 10);
    eventually("it is sent", || deployment.env.projects("acme").len() == 1).await;
    frozen.freeze();
    let served = other.ask("get acme").await.unwrap();
    frozen.thaw();
    assert_all_equal(&callers.await, &served);
    assert_eq!(deployment.env.projects("acme").len(), 1);
    assert_eq!(other.ask("status").await.unwrap(), "0 1");
}

/// Waits in the server until there is a table of that name, and then writes.
const LATE: &str = "DO $$ BEGIN \
    WHILE to_regclass('gate') IS NULL LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; \
    INSERT INTO seed (tenant) VALUES ('late')";

#[tokio::test]
async fn a_hook_that_still_runs_is_cut_off_before_another_replica_prepares_the_database() {
    let deployment = Deployment::new().await;
    let (mut frozen, other) = tokio::join!(deployment.replica(), deployment.replica());
    frozen.ask(&format!("hook {LATE}")).await.unwrap();
    let callers = spawn_callers(&frozen, "acme", 10);
    assert_eq!(frozen.stopped_in("Hook").await, "acme");
    frozen.freeze(); // its statements run on in the server
    let served = other.ask("get acme").await.unwrap();
    assert!(is_seed_of("acme", &served), "{served}");

    let router = deployment.router(|provisioner| provisioner);
    let client = router.get("acme").await.unwrap();
    let late = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%'";
    assert_eq!(query_text(&client, late).await, "0");
    query_text(&client, "CREATE TABLE gate ()").await;
    frozen.thaw();
    assert_all_equal(&callers.await, &served);
    sleep(MOMENT).await; // in which it would write
    assert_eq!(query_text(&client, "SELECT count(*) FROM seed").await, "1");
    assert_eq!(frozen.ask("status").await.unwrap(), "0 0");
}
