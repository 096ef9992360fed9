//! Many replicas of an application at once, and replicas that stand still in the midst of the work on a tenant's database
//! until others have done it.

use futures_util::future::join_all;
use tenantry::{Catalog, Failpoint, TenantId, catalog::Record, emulator::ApiFault};
use tokio::time::sleep;

use crate::support::{Answer, HeldUp, MOMENT, Replica, Site, eventually, is_own, run_on};

#[tokio::test]
async fn eight_replicas_with_fifty_callers_each_make_one_project() {
    let site = Site::new().await;
    let replicas = join_all((0..8).map(|_| site.replica())).await;
    let warm = replicas.iter().map(|it| it.ask("provision warm"));
    assert!(join_all(warm).await.iter().all(Result::is_ok));
    for tenant in ["acme", "globex", "initech"] {
        // Nobody is ahead: they all hear of it while they stand still.
        replicas.iter().for_each(Replica::freeze);
        let calls: Vec<_> = replicas.iter().map(|it| callers(it, tenant, 50)).collect();
        sleep(MOMENT).await;
        replicas.iter().for_each(Replica::thaw);
        let answers: Vec<_> = join_all(calls).await.into_iter().flatten().collect();
        assert_eq!(answers.len(), 400);
        let first = answers[0].clone().unwrap();
        assert!(is_own(tenant, &first), "{first}");
        assert_all_are(&answers, &first);
        assert_eq!(site.stage.projects(tenant).len(), 1);
    }
    let statuses = join_all(replicas.iter().map(|it| it.ask("status"))).await;
    let published = |status: &Answer| -> u64 {
        let counts = status.as_ref().unwrap().split(' ');
        counts.map(|it| it.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(statuses.iter().map(published).sum::<u64>(), 4);
}

/// So many who want a connection to `tenant`.
fn callers(
    replica: &Replica,
    tenant: &str,
    count: usize,
) -> impl Future<Output = Vec<Answer>> + use<> {
    let command = format!("get {tenant}");
    let calls: Vec<_> = (0..count).map(|_| replica.ask(&command)).collect();
    join_all(calls)
}

async fn record(site: &Site) -> Record {
    let acme = TenantId::parse("acme").unwrap();
    site.records().find(&acme).await.unwrap().unwrap()
}

/// Each answer is that of the database which was served first.
fn assert_all_are(answers: &[Answer], served: &str) {
    assert!(
        answers.iter().all(|it| it.as_deref() == Ok(served)),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_replica_that_stood_still_before_its_creation_does_not_send_it() {
    let site = Site::new().await;
    let (mut still, other) = tokio::join!(site.replica(), site.replica());
    still.stop_at(Failpoint::Ordering, 1).await;
    let callers = callers(&still, "acme", 10);
    still.stopped_at(Failpoint::Ordering).await;
    still.freeze();
    still.go_on(); // which it hears together with the signal
    let served = other.ask("get acme").await.unwrap();
    assert!(is_own("acme", &served), "{served}");
    still.thaw();
    assert_all_are(&callers.await, &served);
    assert_eq!(site.stage.projects("acme").len(), 1);
    assert_eq!(still.ask("status").await.unwrap(), "0 0");
}

#[tokio::test]
async fn a_creation_that_arrives_after_another_replica_has_published_is_never_served_and_is_removed()
 {
    duplicate(true).await;
}

#[tokio::test]
async fn a_creation_that_arrives_after_its_own_replica_has_published_is_never_served_and_is_removed()
 {
    duplicate(false).await;
}

/// A creation is under way for longer than it may be.
async fn duplicate(stands_still: bool) {
    let site = Site::new().await;
    let api = site.stage.emulator.api_url();
    let network = HeldUp::to(&api).await;
    let (sender, other) = tokio::join!(site.replica_at(network.url(&api)), site.replica());
    let callers = callers(&sender, "acme", 10);
    network.came().await;
    if stands_still {
        sender.freeze();
    }
    let served = other.ask("get acme").await.unwrap();
    assert!(is_own("acme", &served), "{served}");
    let published = record(&site).await;

    network.open();
    eventually("it arrives", || site.stage.projects("acme").len() == 2).await;
    if stands_still {
        sleep(MOMENT).await; // the answer is there before the process goes on
        sender.thaw();
    }
    assert_all_are(&callers.await, &served);
    let newcomer = site.replica().await;
    assert_all_are(
        &[newcomer.ask("get acme").await, other.ask("get acme").await],
        &served,
    );

    let report = newcomer.ask("reconcile").await.unwrap();
    assert!(
        report.contains("Duplicate") && report.contains("Repaired"),
        "{report}"
    );
    assert_eq!(
        Some(site.stage.witness("acme").project_id.as_str()),
        published.project()
    );
    let replicas = [sender, other, newcomer];
    assert_all_are(
        &join_all(replicas.iter().map(|it| it.ask("get acme"))).await,
        &served,
    );
}

#[tokio::test]
async fn a_creation_that_is_answered_late_is_taken_over_by_another_replica() {
    let site = Site::new().await;
    let (still, other) = tokio::join!(site.replica(), site.replica());
    let late = ApiFault::Slow { milliseconds: 6000 };
    site.stage.emulator.fail_api("POST /projects", late, 1);
    let callers = callers(&still, "acme", 10);
    eventually("it is sent", || site.stage.projects("acme").len() == 1).await;
    still.freeze();
    let served = other.ask("get acme").await.unwrap();
    still.thaw();
    assert_all_are(&callers.await, &served);
    assert_eq!(site.stage.projects("acme").len(), 1);
    assert_eq!(other.ask("status").await.unwrap(), "0 1");
}

/// Waits in the server until there is a table of that name, and then writes.
const LATE: &str = "DO $$ BEGIN \
    WHILE to_regclass('gate') IS NULL LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; \
    INSERT INTO seed (tenant) VALUES ('late')";

#[tokio::test]
async fn a_hook_that_still_runs_is_cut_off_before_another_replica_prepares_the_database() {
    let site = Site::new().await;
    let (mut still, other) = tokio::join!(site.replica(), site.replica());
    still.ask(&format!("hook {LATE}")).await.unwrap();
    let callers = callers(&still, "acme", 10);
    assert_eq!(still.stopped("Hook").await, "acme");
    still.freeze(); // its statements run on in the server
    let served = other.ask("get acme").await.unwrap();
    assert!(is_own("acme", &served), "{served}");

    let router = site.router(|provisioner| provisioner);
    let client = router.get("acme").await.unwrap();
    let late = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%'";
    assert_eq!(run_on(&client, late).await, "0");
    run_on(&client, "CREATE TABLE gate ()").await;
    still.thaw();
    assert_all_are(&callers.await, &served);
    sleep(MOMENT).await; // in which it would write
    assert_eq!(run_on(&client, "SELECT count(*) FROM seed").await, "1");
    assert_eq!(still.ask("status").await.unwrap(), "0 0");
}
