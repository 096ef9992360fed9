//! Steps that take away what earlier releases need: only a campaign applies them, and only without such releases.

use tenantry::{
    ErrorKind, Fleet, Schema, TenantRouter,
    fleet::{Campaign, CampaignState, CampaignStatus},
};
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::support::{Databases, LONG, TestEnv, column, query_text};

const LOG: &str = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";

/// Its third step takes a table away.
fn schema() -> Schema {
    Schema::new()
        .step(
            1,
            "log",
            "CREATE TABLE log (step int); INSERT INTO log VALUES (1)",
        )
        .step(2, "more", "CREATE TABLE old (); INSERT INTO log VALUES (2)")
        .step(3, "less", "DROP TABLE old; INSERT INTO log VALUES (3)")
        .contract()
}

/// The schema of the release before.
fn old_schema() -> Schema {
    Schema::new().step(
        1,
        "log",
        "CREATE TABLE log (step int); INSERT INTO log VALUES (1)",
    )
}

fn campaign() -> Campaign {
    Campaign::new()
        .waves([100])
        .wakes_per_hour(u32::MAX)
        .awake_at_once(1000)
        .dormant(true)
}

fn router(databases: &Databases, schema: Schema) -> TenantRouter {
    let builder = databases.leased_builder();
    let builder = builder.catalog_poll(Duration::from_millis(200));
    builder.schema(schema).build().expect("router")
}

fn fleet(router: &TenantRouter) -> Fleet {
    router.fleet().expect("a fleet")
}

async fn ended(fleet: &Fleet) -> CampaignStatus {
    let waited = timeout(4 * LONG, fleet.wait_for_campaign(|_| ()));
    waited.await.expect("it ends").expect("a campaign")
}

async fn log_of(databases: &Databases, tenant: &str) -> String {
    let client = databases.session(tenant).await;
    column(&client, LOG).await.concat()
}

/// Waits until the catalog has that many processes.
async fn until_registered(databases: &Databases, count: &str) {
    let catalog = databases.catalog_session().await;
    let began = Instant::now();
    let alive = "SELECT count(*) FROM tenantry.processes WHERE seen_at > now() - interval '1 day'";
    while column(&catalog, alive).await != [count] {
        assert!(began.elapsed() < 4 * LONG, "no process registers");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn only_a_campaign_that_names_the_step_applies_it() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    let router = router(&databases, schema());
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!(migrated.to, 2);
    let client = router.get("globex").await.unwrap();
    assert_eq!(query_text(&client, LOG).await, "1 2");
    drop(client);
    let known = fleet(&router).schema_of("acme").await.unwrap();
    assert_eq!((known.latest, known.is_current), (2, true));
    assert_eq!(known.pending, []);

    fleet(&router).migrate(campaign()).await.unwrap();
    let first = ended(&fleet(&router)).await;
    assert_eq!((first.state, first.target), (CampaignState::Done, 2));
    assert_eq!(log_of(&databases, "acme").await, "1 2");
    let wrong = fleet(&router).migrate(campaign().contract(2)).await;
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Misused);

    fleet(&router)
        .migrate(campaign().contract(3))
        .await
        .unwrap();
    let second = ended(&fleet(&router)).await;
    assert_eq!((second.state, second.target), (CampaignState::Done, 3));
    for tenant in ["acme", "globex"] {
        assert_eq!(log_of(&databases, tenant).await, "1 2 3");
        let state = databases.record(tenant).await.schema;
        assert_eq!((state.version, state.contracted), (3, 3));
        let client = router.get(tenant).await.unwrap();
        assert_eq!(query_text(&client, LOG).await, "1 2 3");
        assert_eq!(router.migrate(tenant).await.unwrap().steps, []);
    }
}

#[tokio::test]
async fn a_new_database_is_born_without_the_step() {
    let env = TestEnv::new().await;
    let router = env.provisioning(|provisioner| provisioner);
    let router = router.schema(schema()).build().unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, LOG).await, "1 2");
}

#[tokio::test]
async fn it_is_refused_as_long_as_an_old_process_lives() {
    let databases = Databases::recorded(&["acme"]).await;
    let old = router(&databases, old_schema());
    let new = router(&databases, schema());
    until_registered(&databases, "2").await;
    let begin = || async { fleet(&new).migrate(campaign().contract(3)).await };
    let err = begin().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict, "{err:?}");
    assert!(err.to_string().contains("works with version 1"), "{err}");
    assert!(err.retry_after().is_some_and(|it| it > 4 * LONG), "{err:?}");
    assert_eq!(fleet(&new).campaign().await.unwrap(), None);

    // A killed process counts as alive for some minutes.
    let killed = databases.catalog_session().await;
    let sql = "INSERT INTO tenantry.processes
               SELECT namespace, 'killed', 1, 1, now() - interval '290 s' FROM tenantry.processes LIMIT 1";
    killed.batch_execute(sql).await.unwrap();
    old.close_within(LONG).await;
    until_registered(&databases, "2").await;
    assert_eq!(begin().await.unwrap_err().kind(), ErrorKind::Conflict);
    let later =
        "UPDATE tenantry.processes SET seen_at = now() - interval '301 s' WHERE id = 'killed'";
    killed.batch_execute(later).await.unwrap();
    begin().await.unwrap();
    assert_eq!(ended(&fleet(&new)).await.state, CampaignState::Done);
    assert_eq!(log_of(&databases, "acme").await, "1 2 3");

    // A process takes the row of one that has ended, so the table does not grow.
    let next = router(&databases, schema());
    until_registered(&databases, "3").await;
    let rows = column(&killed, "SELECT count(*) FROM tenantry.processes").await;
    assert_eq!(rows, ["3"]);
    drop(next);
}

#[tokio::test]
async fn it_stops_when_an_old_process_turns_up() {
    let databases = Databases::recorded(&["acme", "globex", "t1", "t2"]).await;
    let new = router(&databases, schema());
    let slow = campaign()
        .canaries(["acme"])
        .soak(Duration::from_secs(3600))
        .contract(3);
    fleet(&new).migrate(slow).await.unwrap();
    let began = Instant::now();
    while databases.record("acme").await.schema.version != 3 {
        assert!(began.elapsed() < 4 * LONG);
        sleep(Duration::from_millis(5)).await;
    }
    let old = router(&databases, old_schema());
    let stopped = ended(&fleet(&new)).await;
    assert_eq!((stopped.state, stopped.failed), (CampaignState::Stopped, 0));
    let reason = stopped.reason.unwrap();
    assert!(reason.contains("works with version 1"), "{reason}");
    // It served the tenant that is ahead of it all the time.
    drop(old.get("acme").await.unwrap());

    fleet(&new).resume_campaign().await.unwrap();
    let again = ended(&fleet(&new)).await;
    assert_eq!(again.state, CampaignState::Stopped, "the process is alive");
    assert_eq!(databases.record("globex").await.schema.version, 0);
    old.close_within(LONG).await;
    fleet(&new).resume_campaign().await.unwrap();
    let began = Instant::now();
    loop {
        let status = fleet(&new).campaign().await.unwrap().unwrap();
        if status.soaks_for.is_some() && status.state == CampaignState::Running {
            break assert_eq!(status.reason, None);
        }
        assert!(began.elapsed() < 4 * LONG, "{status:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_program_that_needs_what_the_step_takes_away_cannot_name_it() {
    let databases = Databases::recorded(&["acme"]).await;
    let router = router(&databases, schema().requires(1));
    let err = fleet(&router).migrate(campaign().contract(3)).await;
    let err = err.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misused);
    assert!(err.to_string().contains("`requires(2)`"), "{err}");
}
