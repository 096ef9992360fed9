//! One tenant's way through the steps of a schema, on real Postgres: by call, with a look-up and with a provisioner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{Baseline, Error, ErrorKind, Migrated, Schema, SchemaFault, Stage};
use tokio::time::{Instant, timeout};

use crate::support::{Databases, LONG, TestEnv, column, counted};

const NOTES: &str = "CREATE TABLE notes (day date)";

fn versions(migrated: &Migrated) -> Vec<i64> {
    migrated.steps.iter().map(|step| step.version).collect()
}

async fn failure(databases: &Databases, tenant: &str, schema: Schema) -> Error {
    let router = databases.router(schema);
    router.migrate(tenant).await.unwrap_err()
}

#[tokio::test]
async fn a_new_tenant_gets_each_step_once_and_a_current_one_gets_nothing() {
    let databases = Databases::of(&["acme"]).await;
    let router = databases.router(counted());
    let first = router.migrate("acme").await.unwrap();
    assert_eq!(
        (first.from, first.to, versions(&first)),
        (0, 3, vec![1, 2, 3])
    );
    assert_eq!(first.steps[0].name, "log");
    let second = router.migrate("acme").await.unwrap();
    assert_eq!((second.from, second.to, versions(&second)), (3, 3, vec![]));
    let client = databases.session("acme").await;
    assert_eq!(
        column(&client, "SELECT step FROM log ORDER BY 1").await,
        ["1", "3"]
    );
    let grown = databases.router(counted().step(4, "four", "INSERT INTO log VALUES (4)"));
    let third = grown.migrate("acme").await.unwrap();
    assert_eq!((third.from, third.to, versions(&third)), (3, 4, vec![4]));
    let older = router.migrate("acme").await.unwrap();
    assert_eq!((older.from, older.to), (4, 4), "a newer release was here");
    assert_eq!(
        router.status().wakes_by_migration.started,
        router.status().wakes_by_migration.succeeded
    );
}

#[tokio::test]
async fn many_processes_at_once_run_each_step_once_also_an_index_built_beside_other_work() {
    let databases = Databases::of(&["acme"]).await;
    let routers: Vec<_> = (0..4).map(|_| databases.router(counted())).collect();
    let calls = routers
        .iter()
        .flat_map(|router| [router.migrate("acme"), router.migrate("acme")]);
    for migrated in timeout(2 * LONG, join_all(calls))
        .await
        .expect("no deadlock")
    {
        assert_eq!(migrated.unwrap().to, 3);
    }
    let client = databases.session("acme").await;
    assert_eq!(
        column(&client, "SELECT step FROM log ORDER BY 1").await,
        ["1", "3"]
    );
}

#[tokio::test]
async fn a_provisioners_tenant_is_created_and_migrated_by_one_call_and_served() {
    let env = TestEnv::new().await;
    let router = env.builder("test").schema(counted()).build().unwrap();
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, migrated.to), (3, 3), "it was created so");
    let client = router.get("acme").await.unwrap();
    let rows = client.query("SELECT step FROM log", &[]).await.unwrap();
    assert_eq!(rows.len(), 2);
    drop(client);
    env.suspend("acme").await;
    let again = router.migrate("acme").await.unwrap();
    assert!(again.steps.is_empty() && !again.woke);
    let wakes = router.status().wakes_by_migration;
    assert_eq!(wakes.started, 0, "the catalog says that it is current");
    router.fleet().unwrap().forget_schema("acme").await.unwrap();
    let read = router.migrate("acme").await.unwrap();
    assert!(read.steps.is_empty() && read.woke);
    let wakes = router.status().wakes_by_migration;
    assert!(wakes.succeeded >= 1, "{wakes:?}");
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_and_concerns_no_other_tenant() {
    let databases = Databases::of(&["acme", "globex"]).await;
    let acme = databases.session("acme").await;
    acme.batch_execute("CREATE TABLE days (day date)")
        .await
        .unwrap();
    let schema = || {
        Schema::new().step(1, "notes", NOTES).step(
            2,
            "days",
            "INSERT INTO notes VALUES (now()); CREATE TABLE days ()",
        )
    };
    let router = databases.router(schema());
    let (failed, fine) = tokio::join!(router.migrate("acme"), router.migrate("globex"));
    assert_eq!(fine.unwrap().to, 2);
    let err = failed.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
    assert_eq!(
        (err.stage(), err.kind().is_transient()),
        (Some(Stage::Migrate), false)
    );
    let said = err.to_string();
    assert!(
        said.contains("tenant \"acme\": step 2 (\"days\") failed"),
        "{said}"
    );
    assert!(said.contains("SQLSTATE 42P07"), "{said}");
    assert_eq!(column(&acme, "SELECT day FROM notes").await, [""; 0]);
    acme.batch_execute("DROP TABLE days").await.unwrap();
    let mended = router.migrate("acme").await.unwrap();
    assert_eq!((mended.from, versions(&mended)), (1, vec![2]));
}

#[tokio::test]
async fn a_database_with_other_steps_is_left_alone_until_they_are_accepted() {
    let databases = Databases::of(&["acme"]).await;
    let old = Schema::new()
        .step(1, "notes", NOTES)
        .step(3, "three", "SELECT 3");
    databases.router(old.clone()).migrate("acme").await.unwrap();
    let edited = || {
        let edited = Schema::new().step(1, "notes", "CREATE TABLE notes (day date, text text)");
        edited
            .step(3, "three", "SELECT 3")
            .step(4, "four", "CREATE TABLE four ()")
    };
    let err = failure(&databases, "acme", edited()).await;
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Diverged));
    let lock = old.to_lock();
    let checksum = lock.split(' ').nth(1).unwrap();
    assert!(err.to_string().contains(checksum), "{err}");
    let accepted = databases.router(edited().accept(1, checksum));
    assert_eq!(accepted.migrate("acme").await.unwrap().to, 4);

    let late = || {
        Schema::new()
            .step(1, "notes", NOTES)
            .step(2, "two", "CREATE TABLE two ()")
            .step(3, "three", "SELECT 3")
    };
    let err = failure(&databases, "acme", late()).await;
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Diverged));
    let allowed = databases.router(late().out_of_order());
    assert_eq!(versions(&allowed.migrate("acme").await.unwrap()), [2]);
}

#[tokio::test]
async fn a_step_that_waits_for_a_table_gives_up_and_lets_readers_pass() {
    let databases = Databases::of(&["acme"]).await;
    databases
        .router(Schema::new().step(1, "notes", NOTES))
        .migrate("acme")
        .await
        .unwrap();
    let (holder, reader) = (
        databases.session("acme").await,
        databases.session("acme").await,
    );
    holder
        .batch_execute("BEGIN; SELECT * FROM notes")
        .await
        .unwrap();
    let schema =
        Schema::new()
            .step(1, "notes", NOTES)
            .step(2, "text", "ALTER TABLE notes ADD text text");
    let router = databases.router(schema.lock_timeout(Duration::from_millis(100)));
    let mut longest = Duration::ZERO;
    let reading = async {
        loop {
            let began = Instant::now();
            column(&reader, "SELECT * FROM notes").await;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let err = tokio::select! {
        migrated = router.migrate("acme") => migrated.unwrap_err(),
        () = reading => unreachable!("it goes on for ever"),
    };
    assert!(err.to_string().contains("SQLSTATE 55P03"), "{err}");
    assert!(longest < Duration::from_secs(5), "{longest:?}"); // for ever without a limit
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(router.migrate("acme").await.unwrap().to, 2);
}

#[tokio::test]
async fn a_step_of_code_is_repeated_until_it_returns_ok_and_leaves_no_trace_in_the_session() {
    let databases = Databases::of(&["acme"]).await;
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let schema = Schema::new()
        .step(1, "notes", NOTES)
        .run(2, "fill", move |mut client| {
            let run = counter.fetch_add(1, Relaxed);
            async move {
                assert_eq!((client.tenant().as_str(), client.version()), ("acme", 2));
                client.batch_execute("SET search_path = nowhere").await?;
                if run == 0 {
                    client.batch_execute("SELECT 1 FROM notes").await?; // not found there
                }
                let transaction = client.transaction().await?;
                transaction
                    .batch_execute("INSERT INTO public.notes VALUES (now())")
                    .await?;
                transaction.commit().await?;
                let left = "SET default_transaction_read_only = on; BEGIN";
                client.batch_execute(left).await?;
                Ok(())
            }
        })
        .step(3, "after", "CREATE TABLE after AS SELECT * FROM notes");
    let router = databases.router(schema);
    let err = router.migrate("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
    assert!(
        err.to_string().contains("step 2 (\"fill\") failed"),
        "{err}"
    );
    assert!(err.to_string().contains("SQLSTATE 42P01"), "{err}");
    assert_eq!(versions(&router.migrate("acme").await.unwrap()), [2, 3]);
    assert_eq!(runs.load(Relaxed), 2);
    let client = databases.session("acme").await;
    assert_eq!(
        column(&client, "SELECT count(*) FROM public.after").await,
        ["1"]
    );
}

#[tokio::test]
async fn code_that_was_done_when_its_connection_ended_does_not_run_again() {
    let databases = Databases::of(&["acme"]).await;
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let schema = Schema::managed(7, move |client| {
        counter.fetch_add(1, Relaxed);
        async move {
            let _ = client
                .batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")
                .await;
            Ok(())
        }
    });
    let migrated = databases.router(schema).migrate("acme").await.unwrap();
    assert_eq!((migrated.to, runs.load(Relaxed)), (7, 1));
}

#[tokio::test]
async fn a_step_that_ends_its_own_transaction_or_gives_the_lock_away_is_found_out() {
    let databases = Databases::of(&["acme"]).await;
    for sql in [
        "SELECT pg_advisory_unlock_all()",
        "SELECT '\\'; COMMIT; BEGIN",
    ] {
        let err = failure(&databases, "acme", Schema::new().step(1, "odd", sql)).await;
        assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
        let said = err.to_string();
        assert!(
            said.contains("ended its own transaction or lost the lock"),
            "{sql}: {said}"
        );
    }
    let client = databases.session("acme").await;
    assert_eq!(
        column(&client, "SELECT count(*) FROM tenantry.schema_history").await,
        ["0"]
    );
}

#[tokio::test]
async fn a_database_of_another_tool_begins_where_that_has_stopped() {
    let databases = Databases::of(&["fresh", "old", "refined", "squared", "broken"]).await;
    let schema = || {
        Schema::new()
            .step(1, "notes", NOTES)
            .step(2, "days", "CREATE TABLE days ()")
            .step(3, "text", "ALTER TABLE notes ADD text text")
    };
    let prepare = async |tenant: &str, sql: &str| {
        let client = databases.session(tenant).await;
        client
            .batch_execute(&format!("{NOTES}; CREATE TABLE days (); {sql}"))
            .await
            .unwrap();
    };
    prepare("old", "").await;
    prepare("refined", "CREATE TABLE refinery_schema_history (version int PRIMARY KEY, name varchar(255), applied_on varchar(255), \
        checksum varchar(255)); INSERT INTO refinery_schema_history VALUES (1, 'notes', '', ''), (2, 'days', '', '')").await;
    let sqlx = |second: &str| {
        format!(
            "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text, \
        success boolean, checksum bytea); INSERT INTO _sqlx_migrations VALUES (1, '', true, sha384('{NOTES}')), \
        (2, '', true, sha384('{second}'))"
        )
    };
    prepare("squared", &sqlx("CREATE TABLE days ()")).await;
    prepare("broken", &sqlx("another text")).await;
    for (tenant, baseline, from) in [
        ("fresh", Baseline::At(2), 0),
        ("old", Baseline::At(2), 2),
        ("refined", Baseline::Refinery, 2),
        ("squared", Baseline::Sqlx, 2),
    ] {
        let router = databases.router(schema().baseline(baseline));
        let migrated = router.migrate(tenant).await.unwrap();
        assert_eq!((migrated.from, migrated.to), (from, 3), "{tenant}");
        let client = databases.session(tenant).await;
        let rows = column(&client, "SELECT version FROM tenantry.schema_history").await;
        assert_eq!(rows.len(), 3, "{tenant}");
    }
    let err = failure(&databases, "broken", schema().baseline(Baseline::Sqlx)).await;
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Diverged),
        "{err}"
    );
}

#[tokio::test]
async fn the_time_for_a_tenant_is_bounded_and_the_step_in_progress_is_cancelled() {
    let databases = Databases::of(&["acme"]).await;
    let schema = || {
        Schema::new()
            .step(1, "notes", NOTES)
            .step(2, "endless", "SELECT pg_sleep(3600)")
    };
    let limit = Duration::from_secs(3);
    let err = failure(&databases, "acme", schema().timeout(limit)).await;
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Migrate), "{err}");
    let client = databases.session("acme").await;
    let running =
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    while !column(&client, running).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let slow = schema().step_statement_timeout(Duration::from_millis(50));
    let err = failure(&databases, "acme", slow).await;
    assert!(err.to_string().contains("SQLSTATE 57014"), "{err}");
}

#[tokio::test]
async fn a_call_without_a_schema_and_a_schema_that_cannot_work_are_told_apart() {
    let env = TestEnv::new().await;
    let err = env.router().migrate("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misused);
    let err = env
        .builder("test")
        .schema(Schema::new())
        .build()
        .unwrap_err();
    assert!(err.to_string().contains("no step"), "{err}");
}
