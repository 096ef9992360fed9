//! What the application runs on a new database before anybody is given a connection to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    ErrorKind, Stage as Where, TenantRouter,
    catalog::State,
    emulator::{Fault, Reason},
};

use crate::support::{Stage, in_the_end, run_on};

const SEED: &str = "CREATE TABLE IF NOT EXISTS seeds (tenant text PRIMARY KEY)";

#[tokio::test]
async fn nobody_sees_a_database_before_it_is_prepared() {
    let stage = Stage::new().await;
    let router = stage.provisioning(|provisioner| {
        provisioner.prepare(|mut database| async move {
            let tenant = database.tenant().to_string();
            let transaction = database.transaction().await?;
            transaction.batch_execute(SEED).await?;
            tokio::time::sleep(Duration::from_millis(100)).await; // others look meanwhile
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
            assert_eq!(run_on(&client, "SELECT tenant FROM seeds").await, tenant);
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
    let (stage, runs) = (Stage::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = stage.provisioning(|provisioner| {
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
    let told = record.last_error.unwrap();
    assert!(
        told.contains("prepare hook") && !told.contains("hunter2"),
        "{told}"
    );

    drop(router.get("acme").await.unwrap());
    assert_eq!(runs.load(Relaxed), 2);
    assert_eq!(
        stage.emulator.witnesses().len(),
        1,
        "the same project goes on"
    );
    let record = fleet.record("acme").await.unwrap().unwrap();
    assert_eq!((record.state, record.last_error), (State::Ready, None));
}

#[tokio::test]
async fn who_waits_is_told_that_the_database_is_being_created_and_when_to_come_back() {
    let stage = Stage::new().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let router = stage.provisioning(|provisioner| {
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
    assert_eq!(err.stage(), Some(tenantry::Stage::Provision));
    assert!(err.kind().is_transient() && err.retry_after().is_some());
    go.send_replace(true);
    let wait = err.retry_after().unwrap();
    tokio::time::sleep(wait).await; // as the error says
    drop(in_the_end(|| router.get("acme")).await);
}

#[tokio::test]
async fn what_was_deleted_before_it_was_prepared_is_prepared_when_that_is_taken_back() {
    let (stage, runs) = (Stage::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = stage.provisioning(|provisioner| {
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
    assert_eq!(run_on(&client, "SELECT count(*) FROM seeds").await, "0");
    drop(client);
    fleet.delete_after("acme", Duration::ZERO).await.unwrap();
    fleet.undelete("acme").await.unwrap();
    assert_eq!(runs.load(Relaxed), 2, "and never again");
}

/// A router whose hook fails the first time, and how often it ran.
fn failing_once(stage: &Stage) -> (TenantRouter, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&runs);
    let router = stage.provisioning(|provisioner| {
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
async fn a_password_that_was_rotated_before_it_was_prepared_is_found() {
    let stage = Stage::new().await;
    let (router, runs) = failing_once(&stage);
    router.get("acme").await.unwrap_err();
    let id = stage.witness("acme").endpoint_id;
    stage.emulator.rotate_password(&id).await.unwrap();
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT 1").await, "1");
    assert_eq!(runs.load(Relaxed), 2);
}

#[tokio::test]
async fn a_database_that_cannot_be_prepared_says_why_and_at_which_stage() {
    let stage = Stage::new().await;
    let (router, runs) = failing_once(&stage);
    router.get("acme").await.unwrap_err();
    let id = stage.witness("acme").endpoint_id;
    let quota = Fault::wake_refused(Reason::ComputeTimeQuota, None);
    stage.emulator.set_fault(&id, quota);
    stage.emulator.suspend(&id).await;
    let err = router.get("acme").await.unwrap_err();
    assert!(
        matches!(err.kind(), ErrorKind::QuotaExhausted(_)),
        "{err:?}"
    );
    assert_eq!(err.stage(), Some(Where::Provision));
    assert_eq!(runs.load(Relaxed), 1);
}

#[tokio::test]
async fn the_hook_never_runs_on_what_was_imported() {
    let (stage, runs) = (Stage::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&runs);
    let router = stage.provisioning(|provisioner| {
        provisioner.prepare(move |_| {
            counter.fetch_add(1, Relaxed);
            async { Ok(()) }
        })
    });
    let router = router.build().unwrap();
    let project = stage.project().await.project.id;
    let fleet = router.fleet().unwrap();
    fleet.import("acme", &project, None).await.unwrap();
    drop(router.get("acme").await.unwrap());
    assert_eq!(runs.load(Relaxed), 0);
}
