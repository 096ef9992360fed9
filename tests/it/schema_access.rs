//! Accesses to tenants whose schema is not current: too old, behind, or of a failed step.

use futures_util::future::join_all;
use tenantry::{
    ErrorKind, NextGet, OnAccess, Schema, SchemaFault, Stage, TenantRouter, tokio_postgres::Client,
};
use tokio::time::{Duration, Instant, sleep};

use crate::support::{Databases, LONG, column, counted_to, query_text};

const LOG: &str = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";
/// The end of a connection.
const GOODBYE: &[u8] = b"X\0\0\0\x04";
/// Makes the next step on the table wait.
const HOLD: &str = "BEGIN; LOCK TABLE log IN SHARE MODE";

/// Its last step fails until there is a table `mended`.
fn broken(latest: i64) -> Schema {
    counted_to(latest - 1).step(latest, "broken", "INSERT INTO mended VALUES (1)")
}

/// A router with the catalog, and one whose look-up is all it has.
fn both(databases: &Databases, schema: impl Fn() -> Schema) -> [TenantRouter; 2] {
    [
        databases.leased_router(schema()),
        databases.router(schema()),
    ]
}

async fn log_by(router: &TenantRouter, tenant: &str) -> String {
    let client = router.get(tenant).await.expect("a connection");
    query_text(&client, LOG).await
}

async fn log(client: &Client) -> String {
    column(client, LOG).await.concat()
}

/// Waits until the steps in the database are these.
async fn until_log_is(client: &Client, steps: &str) {
    let began = Instant::now();
    while log(client).await != steps {
        assert!(began.elapsed() < 4 * LONG, "{}", log(client).await);
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nobody_gets_a_connection_to_a_tenant_that_is_too_old() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    databases
        .leased_router(counted_to(1))
        .migrate("acme")
        .await
        .unwrap();
    let routers: Vec<_> = (0..3)
        .map(|_| databases.leased_router(counted_to(3)))
        .collect();
    let calls = (0..60).map(|n| {
        let (router, tenant) = (routers[n % 3].clone(), ["acme", "globex"][n % 2]);
        tokio::spawn(async move { log_by(&router, tenant).await })
    });
    for seen in join_all(calls).await {
        assert_eq!(seen.unwrap(), "1 2 3");
    }
    for tenant in ["acme", "globex"] {
        assert_eq!(databases.record(tenant).await.schema.version, 3);
    }
    let started = routers
        .iter()
        .map(|it| it.status().wakes_by_migration.started);
    let started: u64 = started.sum();
    assert!((2..=6).contains(&started), "{started}");
}

#[tokio::test]
async fn without_a_catalog_the_first_access_reads_the_history() {
    let databases = Databases::of(&["acme"]).await;
    let router = databases.router(counted_to(2));
    let calls = join_all((0..10).map(|_| log_by(&router, "acme"))).await;
    assert!(calls.iter().all(|it| it == "1 2"), "{calls:?}");
    let newer = databases.router(counted_to(3));
    assert_eq!(log_by(&newer, "acme").await, "1 2 3");
    let opened = databases.way.opened();
    let next = databases.router(counted_to(3));
    assert_eq!(log_by(&next, "acme").await, "1 2 3");
    assert_eq!(databases.way.opened(), opened + 2, "one for the history");
    assert_eq!(log_by(&next, "acme").await, "1 2 3");
    assert_eq!(databases.way.opened(), opened + 2);
}

#[tokio::test]
async fn a_tenant_that_is_only_behind_is_served_at_once_and_migrated_beside() {
    let databases = Databases::recorded(&["acme"]).await;
    databases
        .leased_router(counted_to(1))
        .migrate("acme")
        .await
        .unwrap();
    let client = databases.session("acme").await;
    client.batch_execute(HOLD).await.unwrap();
    let router = databases.leased_router(counted_to(3).requires(1).lock_timeout(LONG));
    assert_eq!(log_by(&router, "acme").await, "1");
    assert_eq!(log_by(&router, "acme").await, "1");
    client.batch_execute("COMMIT").await.unwrap();
    until_log_is(&client, "1 2 3").await;
    let migrated = router.migrate("acme").await.unwrap();
    assert!(migrated.steps.iter().all(|step| step.version > 1));
    assert_eq!(databases.record("acme").await.schema.version, 3);
    assert_eq!(log(&client).await, "1 2 3");
}

#[tokio::test]
async fn a_process_of_the_last_release_goes_on_beside_one_of_the_next() {
    let databases = Databases::recorded(&["acme"]).await;
    let old = databases.leased_router(counted_to(2));
    assert_eq!(log_by(&old, "acme").await, "1 2");
    let new = databases.leased_router(counted_to(3));
    assert_eq!(log_by(&new, "acme").await, "1 2 3");
    old.evict("acme");
    assert_eq!(log_by(&old, "acme").await, "1 2 3");
    assert_eq!(databases.record("acme").await.schema.version, 3);
}

#[tokio::test]
async fn a_current_tenant_costs_the_same_bytes_as_one_without_a_schema() {
    let databases = Databases::recorded(&["acme"]).await;
    databases
        .leased_router(counted_to(3))
        .migrate("acme")
        .await
        .unwrap();
    let mut sent = Vec::new();
    let plain = databases.leased_builder().build().expect("router");
    for router in [plain, databases.leased_router(counted_to(3))] {
        databases.way.take_sent();
        let opened = databases.way.opened();
        assert_eq!(log_by(&router, "acme").await, "1 2 3");
        assert_eq!(databases.way.opened(), opened + 1);
        let all = databases.way.take_sent();
        let own = all.strip_prefix(GOODBYE).unwrap_or(&all); // the router before it may have ended late
        sent.push(own.to_vec());
    }
    assert!(!sent[0].is_empty());
    assert_eq!(sent[0], sent[1]);
}

#[tokio::test]
async fn callers_wait_to_their_own_deadlines_and_the_migration_goes_on() {
    let databases = Databases::recorded(&["acme"]).await;
    databases
        .leased_router(counted_to(1))
        .migrate("acme")
        .await
        .unwrap();
    let client = databases.session("acme").await;
    client.batch_execute(HOLD).await.unwrap();
    let builder = databases.leased_builder();
    let builder = builder.schema(counted_to(2).lock_timeout(LONG));
    let builder = builder.get_timeout(Duration::from_millis(300));
    let router = builder.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    let stages = [Stage::Migrate, Stage::Wake]; // the login of the migration is a wake
    assert!(
        matches!(err.kind(), ErrorKind::Timeout(stage) if stages.contains(&stage)),
        "{err:?}"
    );
    assert!(err.retry_after().is_some(), "{err:?}");
    assert!(err.to_string().contains("acme"), "{err}");
    client.batch_execute("COMMIT").await.unwrap();
    until_log_is(&client, "1 2").await;
    let served = crate::support::retry_timeouts(|| router.get("acme")).await;
    assert_eq!(query_text(&served, LOG).await, "1 2");
}

#[tokio::test]
async fn a_tenant_whose_step_fails_is_refused_below_what_is_required_and_served_above() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    let strict = databases.leased_router(broken(3));
    let err = strict.get("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Failed),
        "{err:?}"
    );
    assert!(err.to_string().contains("step 3"), "{err}");
    let opened = databases.way.opened();
    for _ in 0..3 {
        let err = strict.get("acme").await.unwrap_err();
        assert_eq!(
            err.kind(),
            ErrorKind::Schema(SchemaFault::Failed),
            "{err:?}"
        );
        assert!(err.retry_after().is_some());
    }
    assert_eq!(databases.way.opened(), opened, "it is not tried again");
    let lenient = databases.leased_router(broken(3).requires(2));
    assert_eq!(log_by(&lenient, "globex").await, "1 2", "never migrated");
    assert_eq!(log_by(&lenient, "acme").await, "1 2", "failed before");
    let failure = databases.record("globex").await.schema.failure.unwrap();
    assert_eq!((failure.step, failure.attempts), (3, 1));

    let client = databases.session("acme").await;
    client
        .batch_execute("CREATE TABLE mended (a int)")
        .await
        .unwrap();
    let fleet = strict.fleet().unwrap();
    fleet.retry_schema("acme").await.unwrap();
    strict.evict("acme");
    assert_eq!(log_by(&strict, "acme").await, "1 2");
    assert_eq!(databases.record("acme").await.schema.version, 3);
}

#[tokio::test]
async fn without_a_catalog_a_failed_step_is_not_tried_by_each_access() {
    let databases = Databases::of(&["acme"]).await;
    let router = databases.router(broken(2));
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Failed),
        "{err:?}"
    );
    let opened = databases.way.opened();
    let err = router.get("acme").await.unwrap_err();
    let wait = err.retry_after().expect("a time");
    assert!(wait <= Duration::from_secs(60) && wait > Duration::from_secs(30));
    assert_eq!(databases.way.opened(), opened);
    let lenient = databases.router(broken(2).requires(1));
    assert_eq!(log_by(&lenient, "acme").await, "1");
    let client = databases.session("acme").await;
    client
        .batch_execute("CREATE TABLE mended (a int)")
        .await
        .unwrap();
    router.evict("acme");
    assert_eq!(log_by(&router, "acme").await, "1");
    assert_eq!(
        column(&client, "SELECT count(*) FROM mended").await,
        ["1"],
        "the step ran"
    );
}

#[tokio::test]
async fn accesses_refuse_what_is_too_old_if_they_are_told_to() {
    let databases = Databases::recorded(&["acme"]).await;
    let routers = both(&databases, || counted_to(2).on_access(OnAccess::Refuse));
    for router in &routers {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(
            err.kind(),
            ErrorKind::Schema(SchemaFault::TooOld),
            "{err:?}"
        );
        assert!(err.to_string().contains("version 2"), "{err}");
    }
    let client = databases.session("acme").await;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'tenantry')";
    assert_eq!(column(&client, tables).await, ["0"], "nothing was changed");
    routers[0].migrate("acme").await.unwrap();
    for router in &routers {
        router.evict("acme");
        assert_eq!(log_by(router, "acme").await, "1 2");
    }
}

#[tokio::test]
async fn accesses_serve_whatever_there_is_if_they_are_told_to() {
    let databases = Databases::recorded(&["acme"]).await;
    for router in both(&databases, || counted_to(2).on_access(OnAccess::Serve)) {
        let client = router.get("acme").await.unwrap();
        let is_there = query_text(&client, "SELECT to_regclass('log') IS NULL").await;
        assert_eq!(is_there, "t");
        assert_eq!(router.status().wakes_by_migration.started, 0);
    }
}

#[tokio::test]
async fn a_connection_that_a_hint_or_a_warm_up_opened_is_not_lent_before_the_migration() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    let router = databases.leased_router(counted_to(2));
    assert!(router.hint("acme"));
    crate::support::eventually("a connection is open", || databases.way.opened() > 0).await;
    assert_eq!(log_by(&router, "acme").await, "1 2");
    router.warm("globex").wait().await.unwrap();
    let client = databases.session("globex").await;
    assert_eq!(log(&client).await, "1 2");
    assert_eq!(log_by(&router, "globex").await, "1 2");
}

#[tokio::test]
async fn a_version_that_was_forgotten_is_read_before_the_next_caller_is_served() {
    let databases = Databases::recorded(&["acme"]).await;
    let router = databases.leased_router(counted_to(2));
    assert_eq!(log_by(&router, "acme").await, "1 2");
    // As after a restore: the database is that of a time before the steps.
    let client = databases.session("acme").await;
    let undo = "DROP SCHEMA tenantry CASCADE; DROP TABLE log";
    client.batch_execute(undo).await.unwrap();
    let handle = router.handle("acme").unwrap();
    drop(handle.get().await.unwrap());
    let fleet = router.fleet().unwrap();
    fleet.forget_schema("acme").await.unwrap();
    let served = || async {
        let client = handle.get().await.unwrap();
        query_text(&client, "SELECT to_regclass('log') IS NOT NULL").await
    };
    let began = Instant::now();
    // The router hears of the change by its follower.
    while served().await != "t" {
        assert!(began.elapsed() < 4 * LONG, "never migrated");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log(&client).await, "1 2");
}

#[tokio::test]
async fn the_step_at_which_a_tenant_stands_is_explained() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    databases
        .router(counted_to(1))
        .migrate("acme")
        .await
        .unwrap();
    let router = databases.leased_router(counted_to(2).lock_timeout(4 * LONG));
    assert_eq!(router.explain("acme").unwrap().schema, None);
    let holder = databases.session("acme").await;
    holder.batch_execute(HOLD).await.unwrap();
    let call = tokio::spawn({
        let router = router.clone();
        async move { log_by(&router, "acme").await }
    });
    let position = || router.explain("acme").unwrap().schema;
    let began = Instant::now();
    while position().is_none_or(|it| it.step != Some(2)) {
        assert!(began.elapsed() < 4 * LONG, "{:?}", position());
        sleep(Duration::from_millis(5)).await;
    }
    let known = router.explain("acme").unwrap();
    assert_eq!(known.next, NextGet::Migrate);
    let text = known.to_string();
    let expected =
        "schema: too old, or not known; requires 2, latest is 2; step 2 is being applied";
    assert!(text.contains(expected), "{text}");
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(call.await.unwrap(), "1 2");
    let known = router.explain("acme").unwrap();
    let schema = known.schema.unwrap();
    assert_eq!((schema.standing, schema.step), ("current", None));
    assert_eq!((known.next, schema.failure), (NextGet::Reuse, None));

    let failing = databases.leased_router(broken(2));
    failing.get("globex").await.unwrap_err();
    let failure = failing.explain("globex").unwrap().schema.unwrap().failure;
    let failure = failure.expect("the failure is remembered");
    assert!(failure.contains("step 2 (\"broken\")"), "{failure}");
}
