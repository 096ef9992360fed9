//! New databases: they have the application's schema before a caller gets a connection.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use futures_util::future::join_all;
use tenantry::{Baseline, ErrorKind, SchemaFault, catalog::State};
use tokio::time::Duration;

use crate::support::{TestEnv, counted, query_text};

const LOG: &str = "SELECT string_agg(step::text, ' ' ORDER BY step) FROM log";

#[tokio::test]
async fn a_new_database_gets_hook_and_schema_in_one_flight_over_one_connection() {
    let (env, hooks) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&hooks);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |database| {
            counter.fetch_add(1, Relaxed);
            async move {
                let left = "CREATE SCHEMA own; SET search_path = own; BEGIN";
                database.batch_execute(left).await?;
                Ok(())
            }
        })
    });
    let router = router.schema(counted()).build().unwrap();
    let calls = (0..20).map(|n| {
        let (router, tenant) = (router.clone(), ["acme", "globex"][n % 2]);
        tokio::spawn(async move {
            let client = router.get(tenant).await.unwrap();
            assert_eq!(query_text(&client, LOG).await, "1 3");
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    assert_eq!(hooks.load(Relaxed), 2);
    let status = router.status();
    let (fleet, migration) = (status.wakes_by_fleet, status.wakes_by_migration);
    assert_eq!(
        (fleet.started, fleet.succeeded),
        (2, 2),
        "a connection for each"
    );
    assert_eq!(migration.started, 0);
    let known = router.fleet().unwrap().schema_of("acme").await.unwrap();
    assert_eq!((known.version, known.is_current), (Some(3), true));
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, migrated.to, migrated.woke), (3, 3, false));
    assert_eq!(router.status().wakes_by_migration.started, 0);
}

#[tokio::test]
async fn a_step_that_fails_on_a_new_database_is_recorded_and_not_tried_by_each_access() {
    let (env, hooks) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&hooks);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |database| {
            let first = counter.fetch_add(1, Relaxed) == 0;
            async move {
                let sql = if first {
                    "CREATE TABLE days ()"
                } else {
                    "DROP TABLE days"
                };
                database.batch_execute(sql).await?;
                Ok(())
            }
        })
    });
    let schema = counted().step(4, "days", "CREATE TABLE days ()");
    let router = router.schema(schema).build().unwrap();
    let fleet = router.fleet().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Failed),
        "{err:?}"
    );
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!((record.state, record.leased_for), (State::Preparing, None));
    assert_eq!(record.schema.version, 3);
    let failure = record.schema.failure.unwrap();
    assert_eq!((failure.step, failure.code.as_deref()), (4, Some("42P07")));
    assert!(
        record
            .last_error
            .unwrap()
            .contains("step 4 (\"days\") failed")
    );

    let err = router.get("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Failed),
        "{err:?}"
    );
    assert!(
        err.retry_after()
            .is_some_and(|wait| wait <= Duration::from_secs(60))
    );
    assert_eq!(hooks.load(Relaxed), 1, "it is not due");
    fleet.retry_schema("acme").await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, LOG).await, "1 3");
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!((record.schema.version, record.schema.failure), (4, None));
    assert_eq!((record.state, record.last_error), (State::Ready, None));
}

#[tokio::test]
async fn tables_that_a_failed_hook_has_left_are_no_baseline() {
    let (env, hooks) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&hooks);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |database| {
            let first = counter.fetch_add(1, Relaxed) == 0;
            async move {
                let sql = "CREATE TABLE IF NOT EXISTS of_the_hook ()";
                database.batch_execute(sql).await?;
                if first {
                    Err("not today".into())
                } else {
                    Ok(())
                }
            }
        })
    });
    let schema = counted().baseline(Baseline::At(1));
    let router = router.schema(schema).build().unwrap();
    assert_eq!(
        router.get("acme").await.unwrap_err().kind(),
        ErrorKind::Query
    );
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, LOG).await, "1 3");
}

#[tokio::test]
async fn the_version_of_a_database_that_is_found_again_or_undeleted_is_read() {
    let env = TestEnv::new().await;
    let router = env.builder("test").schema(counted()).build().unwrap();
    drop(router.get("acme").await.unwrap());
    // A catalog that has lost everything. The program has another step.
    let grown = || counted().step(4, "four", "INSERT INTO log VALUES (4)");
    let router = env.builder("test").schema(grown()).build().unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, LOG).await, "1 3 4");
    drop(client);
    let fleet = router.fleet().unwrap();
    assert_eq!(fleet.schema_of("acme").await.unwrap().version, Some(4));
    fleet.delete_after("acme", Duration::ZERO).await.unwrap();
    fleet.undelete("acme").await.unwrap();
    let known = fleet.schema_of("acme").await.unwrap();
    assert_eq!((known.version, known.is_current), (None, false));
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, migrated.steps.len()), (4, 0));
    assert!(fleet.schema_of("acme").await.unwrap().is_current);
}

#[tokio::test]
async fn a_database_is_imported_at_a_version() {
    let env = TestEnv::new().await;
    let source = env.provisioning(|provisioner| {
        provisioner.prepare(|database| async move {
            database
                .batch_execute("CREATE TABLE log (step int)")
                .await?;
            Ok(())
        })
    });
    drop(source.build().unwrap().get("acme").await.unwrap());
    let project = env.witness("acme").project_id;
    let router = env.builder("test").schema(counted()).build().unwrap();
    let fleet = router.fleet().unwrap();
    fleet.import_at("acme", &project, None, 2).await.unwrap();
    let known = fleet.schema_of("acme").await.unwrap();
    assert_eq!((known.version, known.baseline), (Some(2), Some(2)));
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, migrated.to), (2, 3));
    assert_eq!(
        query_text(&router.get("acme").await.unwrap(), LOG).await,
        "3"
    );
}
