//! Processes that are killed in the midst of a migration: the next one goes on, and no step runs twice.

use futures_util::future::join_all;
use tenantry::{Moment, Schema, tokio_postgres::Client};
use tokio::time::{Duration, sleep};

use crate::support::{ConnectionLoss, Databases, column, run_as_migration};

/// Each step writes its number, so that a step that ran twice is seen twice.
fn counted() -> Schema {
    Schema::new()
        .step(
            1,
            "log",
            "CREATE TABLE log (step int); INSERT INTO log VALUES (1)",
        )
        .step(2, "two", "INSERT INTO log VALUES (2)")
        .step(3, "three", "INSERT INTO log VALUES (3)")
}

/// A step whose COMMIT takes a second.
const SLOW_COMMIT: &str = "CREATE TABLE log (step int);
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION slow();
    INSERT INTO log VALUES (1)";

fn indexed() -> Schema {
    Schema::new()
        .step(1, "notes", "CREATE TABLE notes (day date)")
        .step(
            2,
            "by day",
            "CREATE INDEX CONCURRENTLY by_day ON notes (day)",
        )
        .outside_transaction()
}

fn schema(name: &str) -> Schema {
    match name {
        "counted" => counted(),
        "slow commit" => Schema::new().step(1, "slow", SLOW_COMMIT),
        "indexed" => indexed(),
        "killed" => crate::schema_kills::schema(),
        _ => panic!("no such schema: {name}"),
    }
}

#[tokio::test]
async fn a_process_migrates() {
    if run_as_migration(schema).await {
        return; // this process is one
    }
    let databases = Databases::of(&["acme"]).await;
    let mut process = databases.process("counted", "acme", None);
    assert_eq!(process.says().await, "0 to 3");
}

/// Checks that each step of the schema `counted` has run once, and is recorded as done.
async fn assert_counted(client: &Client, at: &str) {
    let log = column(client, "SELECT step FROM log ORDER BY 1").await;
    assert_eq!(log, ["1", "2", "3"], "{at}");
    let history = "SELECT version || ' ' || done FROM tenantry.schema_history ORDER BY version";
    let history = column(client, history).await;
    assert_eq!(history, ["1 true", "2 true", "3 true"], "{at}");
}

#[tokio::test]
async fn a_process_killed_at_each_moment_leaves_a_database_that_the_next_one_finishes() {
    let names = Moment::ALL.map(|moment| format!("{moment:?}").to_lowercase());
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let databases = Databases::of(&names).await;
    let router = databases.router(counted());
    let kills = Moment::ALL
        .into_iter()
        .zip(&names)
        .map(async |(moment, tenant)| {
            let mut process = databases.process("counted", tenant, Some(moment));
            assert_eq!(process.says().await, format!("{moment:?}"));
            process.kill().await;
            let migrated = router.migrate(tenant).await.unwrap();
            assert_eq!(migrated.to, 3);
            assert_counted(&databases.session(tenant).await, tenant).await;
        });
    join_all(kills).await;
}

#[tokio::test]
async fn a_process_killed_inside_commit_leaves_the_step_whole_or_undone() {
    let databases = Databases::of(&["acme"]).await;
    let client = databases.session("acme").await;
    let process = databases.process("slow commit", "acme", None);
    let committing =
        "SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'";
    while column(&client, committing).await.is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    process.kill().await;
    let router = databases.router(schema("slow commit"));
    assert_eq!(router.migrate("acme").await.unwrap().to, 1);
    assert_eq!(column(&client, "SELECT step FROM log").await, ["1"]);
}

#[tokio::test]
async fn a_commit_without_an_answer_is_settled_by_reading() {
    let databases = std::sync::Arc::new(Databases::of(&["acme"]).await);
    let losing = std::sync::Arc::clone(&databases);
    let schema = counted().at_each_moment(move |moment, _| {
        let losing = std::sync::Arc::clone(&losing);
        async move {
            if moment == Moment::StepWritten {
                losing.way.lose_open_connections(ConnectionLoss::Unanswered);
            }
        }
    });
    let router = databases.router(schema);
    let migrated = router.migrate("acme").await.unwrap();
    let versions: Vec<_> = migrated.steps.iter().map(|it| it.version).collect();
    assert_eq!(
        (migrated.from, migrated.to, versions),
        (0, 3, vec![1, 2, 3])
    );
    assert!(
        databases.way.opened() >= 4,
        "each COMMIT has lost its connection"
    );
    assert_counted(&databases.session("acme").await, "acme").await;
}

#[tokio::test]
async fn an_index_whose_build_was_killed_is_dropped_and_built_anew() {
    let databases = Databases::of(&["acme"]).await;
    let (client, reader) = (
        databases.session("acme").await,
        databases.session("acme").await,
    );
    let first = Schema::new().step(1, "notes", "CREATE TABLE notes (day date)");
    databases.router(first).migrate("acme").await.unwrap();
    reader
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM notes")
        .await
        .unwrap(); // the build waits for this transaction
    let process = databases.process("indexed", "acme", None);
    let building = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('by_day') AND NOT indisvalid \
                    AND EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock')";
    while column(&client, building).await.is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    process.kill().await;
    let router = databases.router(indexed());
    let migrating = router.migrate("acme");
    let release = async {
        let gone =
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND state = 'active'";
        while !column(&client, gone).await.is_empty() {
            sleep(Duration::from_millis(20)).await; // the server notices the end of its client
        }
        reader.batch_execute("COMMIT").await.unwrap();
    };
    let (migrated, ()) = tokio::join!(migrating, release);
    assert_eq!(migrated.unwrap().to, 2);
    let indexes = "SELECT relname || ' ' || indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid \
                   WHERE indrelid = 'notes'::regclass";
    assert_eq!(column(&client, indexes).await, ["by_day true"]);
}

#[tokio::test]
async fn an_index_that_was_built_before_the_kill_is_recorded_and_not_built_again() {
    let databases = Databases::of(&["acme"]).await;
    let first = Schema::new().step(1, "notes", "CREATE TABLE notes (day date)");
    databases.router(first).migrate("acme").await.unwrap();
    let mut process = databases.process("indexed", "acme", Some(Moment::StepRun));
    assert_eq!(process.says().await, "StepRun");
    process.kill().await;
    let client = databases.session("acme").await;
    let oid = "SELECT 'by_day'::regclass::oid";
    let before = column(&client, oid).await;
    let router = databases.router(indexed());
    assert_eq!(router.migrate("acme").await.unwrap().to, 2);
    assert_eq!(column(&client, oid).await, before);
    let row = "SELECT done FROM tenantry.schema_history WHERE version = 2";
    assert_eq!(column(&client, row).await, ["t"]);
}
