//! The application's work on a new database before any caller gets a connection to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    ErrorKind, Stage, TenantRouter,
    catalog::State,
    emulator::{Fault, Reason},
};

use crate::support::{TestEnv, query_text, retry_timeouts};

const SEED: &str = "CREATE TABLE IF NOT EXISTS seeds (tenant text PRIMARY KEY)";

#[tokio::test]
async fn no_caller_sees_a_database_before_it_is_prepared() {
    let env = TestEnv::new().await;
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(|mut database| async move {
            let tenant = database.tenant().to_string();
            let transaction = database.transaction().await?;
            transaction.batch_execute(SEED).await?;
            tokio::time::sleep(Duration::from_millis(100)).await; // other callers ask during this time
            let insert = "INSERT INTO seeds VALUES ($1) ON CONFLICT DO NOTHING";
            transaction.execute(insert, &[&tenant]).await?;
            transaction.commit().await?;
            Ok(())
        })
    });
    let router = router.build().unwrap();
    let calls = (0..20).map(|n| {
        let (router, tenant) = (router.clone(), ["acme", "globex"][n % 2]);
        tokio::spawn(async move {
            let client = router.get(tenant).await.unwrap();
            assert_eq!(
                query_text(&client, "SELECT tenant FROM seeds").await,
                tenant
            );
        })
    });
    for call in futures_util::future::join_all(calls).await {
        call.unwrap();
    }
    let fleet = router.status().wakes_by_fleet;
    assert_eq!((fleet.started, fleet.succeeded), (2, 2));
}

#[tokio::test]
async fn a_hook_that_fails_is_run_again_and_its_secrets_are_not_written_down() {
    let (env, runs) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |database| {
            let run = counter.fetch_add(1, Relaxed);
            async move {
                database.batch_execute(SEED).await?;
                if run == 0 {
                    return Err("CREATE ROLE app PASSWORD 'hunter2' failed".into());
                }
                Ok(())
            }
        })
    });
    let router = router.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Query);
    assert!(!err.kind().is_transient());
    let fleet = router.fleet().unwrap();
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!((record.state, record.leased_for), (State::Preparing, None));
    let last_error = record.last_error.unwrap();
    assert!(
        last_error.contains("prepare hook") && !last_error.contains("hunter2"),
        "{last_error}"
    );

    drop(router.get("acme").await.unwrap());
    assert_eq!(runs.load(Relaxed), 2);
    assert_eq!(
        env.emulator.witnesses().len(),
        1,
        "the same project goes on"
    );
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!((record.state, record.last_error), (State::Ready, None));
}

#[tokio::test]
async fn a_caller_that_runs_out_of_time_is_told_of_the_creation_and_when_to_retry() {
    let env = TestEnv::new().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |_| {
            let mut wait = wait.clone();
            async move {
                wait.wait_for(|go| *go).await?;
                Ok(())
            }
        })
    });
    let router = router
        .get_timeout(Duration::from_millis(800))
        .build()
        .unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Provisioning, "{err:?}");
    assert_eq!(err.stage(), Some(Stage::Provision));
    assert!(err.kind().is_transient() && err.retry_after().is_some());
    go.send_replace(true);
    let wait = err.retry_after().unwrap();
    tokio::time::sleep(wait).await; // as the error says
    drop(retry_timeouts(|| router.get("acme")).await);
}

#[tokio::test]
async fn a_tenant_deleted_before_its_preparation_is_prepared_after_the_undelete() {
    let (env, runs) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |database| {
            let run = counter.fetch_add(1, Relaxed);
            async move {
                if run == 0 {
                    return Err("not today".into());
                }
                database.batch_execute(SEED).await?;
                Ok(())
            }
        })
    });
    let router = router.build().unwrap();
    let fleet = router.fleet().unwrap();
    router.get("acme").await.unwrap_err();
    fleet.delete_after("acme", Duration::ZERO).await.unwrap();
    fleet.undelete("acme").await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT count(*) FROM seeds").await, "0");
    drop(client);
    fleet.delete_after("acme", Duration::ZERO).await.unwrap();
    fleet.undelete("acme").await.unwrap();
    assert_eq!(runs.load(Relaxed), 2, "and never again");
}

/// A router whose hook fails the first time, and how often it ran.
fn router_with_hook_failing_once(env: &TestEnv) -> (TenantRouter, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |_| {
            let run = counter.fetch_add(1, Relaxed);
            async move {
                match run {
                    0 => Err("not today".into()),
                    _ => Ok(()),
                }
            }
        })
    });
    (router.build().unwrap(), runs)
}

#[tokio::test]
async fn a_password_rotated_before_the_preparation_is_found() {
    let env = TestEnv::new().await;
    let (router, runs) = router_with_hook_failing_once(&env);
    router.get("acme").await.unwrap_err();
    let id = env.witness("acme").endpoint_id;
    env.emulator.rotate_password(&id).await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT 1").await, "1");
    assert_eq!(runs.load(Relaxed), 2);
}

#[tokio::test]
async fn a_database_that_cannot_be_prepared_says_why_and_at_which_stage() {
    let env = TestEnv::new().await;
    let (router, runs) = router_with_hook_failing_once(&env);
    router.get("acme").await.unwrap_err();
    let id = env.witness("acme").endpoint_id;
    let quota = Fault::wake_refused(Reason::ComputeTimeQuota, None);
    env.emulator.set_fault(&id, quota);
    env.emulator.suspend(&id).await;
    let err = router.get("acme").await.unwrap_err();
    assert!(
        matches!(err.kind(), ErrorKind::QuotaExhausted(_)),
        "{err:?}"
    );
    assert_eq!(err.stage(), Some(Stage::Provision));
    assert_eq!(runs.load(Relaxed), 1);
}

#[tokio::test]
async fn the_hook_never_runs_on_an_imported_project() {
    let (env, runs) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |_| {
            counter.fetch_add(1, Relaxed);
            async { Ok(()) }
        })
    });
    let router = router.build().unwrap();
    let project = env.project().await.project.id;
    let fleet = router.fleet().unwrap();
    fleet.import("acme", &project, None).await.unwrap();
    drop(router.get("acme").await.unwrap());
    assert_eq!(runs.load(Relaxed), 0);
}
