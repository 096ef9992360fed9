//! The migration of tenants whose state a catalog keeps: under the lease, over kills, against a wrong catalog.

use futures_util::future::join_all;
use rustix::process::Signal;
use tenantry::{
    ErrorKind, Failpoint, Migrated, Moment, SchemaFault, catalog::SchemaState,
    tokio_postgres::Client,
};
use tokio::time::{Duration, timeout};

use crate::support::{Databases, LONG, column, counted_to};

fn versions(migrated: &Migrated) -> Vec<i64> {
    migrated.steps.iter().map(|step| step.version).collect()
}

async fn log(client: &Client) -> Vec<String> {
    column(client, "SELECT step FROM log ORDER BY 1").await
}

/// Every point at which a process is killed.
fn points() -> Vec<String> {
    let moments = Moment::ALL.map(|it| format!("{it:?}"));
    let failpoints = Failpoint::MIGRATION.map(|it| format!("{it:?}"));
    moments.into_iter().chain(failpoints).collect()
}

#[tokio::test]
async fn replicas_killed_at_each_point_leave_one_state_in_the_database_and_in_the_catalog() {
    let points = points();
    let tenants: Vec<_> = points.iter().map(|it| it.to_lowercase()).collect();
    let databases =
        Databases::recorded(&tenants.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let others = [
        databases.leased_router(counted_to(3)),
        databases.leased_router(counted_to(3)),
    ];
    let kills = points.iter().zip(&tenants).map(async |(point, tenant)| {
        let mut victim = databases.leased_process("counted", tenant, point);
        assert_eq!(victim.says().await, *point);
        let noted = databases.record(tenant).await.schema.version;
        match &**point {
            "SchemaNoted" => assert_eq!(noted, 1, "the catalog follows each step"),
            "SchemaWritten" => assert_eq!(noted, 3),
            _ => {}
        }
        let calls = join_all(others.iter().map(|router| router.migrate(tenant)));
        let (migrated, ()) = tokio::join!(calls, victim.kill());
        for migrated in migrated {
            assert_eq!(migrated.unwrap().to, 3, "{point}");
        }
        let client = databases.session(tenant).await;
        assert_eq!(log(&client).await, ["1", "2", "3"], "{point}");
        let record = databases.record(tenant).await;
        assert_eq!(
            (record.schema.version, &record.schema.failure),
            (3, &None),
            "{point}"
        );
        assert_eq!(record.leased_for, None, "{point}");
        let again = others[0].migrate(tenant).await.unwrap();
        assert!(!again.woke && again.steps.is_empty(), "{point}");
    });
    join_all(kills).await;
}

#[tokio::test]
async fn a_process_that_stands_still_in_a_step_is_overtaken_and_does_nothing_afterwards() {
    let databases = Databases::recorded(&["acme"]).await;
    let mut victim = databases.leased_process("counted", "acme", "StepWritten");
    assert_eq!(victim.says().await, "StepWritten");
    victim.signal(Signal::STOP);
    let router = databases.leased_router(counted_to(3));
    let migrated = timeout(LONG, router.migrate("acme"))
        .await
        .expect("it is overtaken");
    assert_eq!(migrated.unwrap().to, 3);
    victim.signal(Signal::CONT);
    let client = databases.session("acme").await;
    assert_eq!(log(&client).await, ["1", "2", "3"]);
    assert_eq!(victim.says().await, "3 to 3");
    assert_eq!(log(&client).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn replicas_that_wait_for_the_lease_open_no_session_and_run_nothing() {
    let databases = Databases::recorded(&["acme"]).await;
    let routers: Vec<_> = (0..4)
        .map(|_| databases.leased_router(counted_to(3)))
        .collect();
    let calls = routers
        .iter()
        .flat_map(|router| [router.migrate("acme"), router.migrate("acme")]);
    for migrated in join_all(calls).await {
        assert_eq!(migrated.unwrap().to, 3);
    }
    assert_eq!(databases.way.opened(), 1);
    assert_eq!(log(&databases.session("acme").await).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn the_history_wins_over_a_catalog_that_is_behind_or_was_told_to_forget() {
    let databases = Databases::recorded(&["acme", "globex"]).await;
    let router = databases.leased_router(counted_to(3));
    // The database is ahead: another application's router has migrated it, or the catalog was restored.
    for known in [0, 2, 3] {
        databases
            .router(counted_to(3))
            .migrate("acme")
            .await
            .unwrap();
        databases
            .change_record("acme", |record| record.schema.version = known)
            .await;
        let migrated = router.migrate("acme").await.unwrap();
        assert_eq!((migrated.from, versions(&migrated)), (3, vec![]), "{known}");
        let state = databases.record("acme").await.schema;
        assert_eq!(state.version, 3, "{known}");
        databases
            .change_record("acme", |record| record.schema.digest ^= 1)
            .await;
    }
    assert_eq!(log(&databases.session("acme").await).await, ["1", "2", "3"]);
    // The database is behind: it was restored where the catalog cannot see it.
    router.migrate("acme").await.unwrap();
    let current = databases.record("acme").await.schema;
    databases
        .router(counted_to(1))
        .migrate("globex")
        .await
        .unwrap();
    databases
        .change_record("globex", |record| record.schema = current)
        .await;
    let fleet = router.fleet().unwrap();
    assert!(fleet.schema_of("globex").await.unwrap().is_current);
    assert!(router.migrate("globex").await.unwrap().steps.is_empty());
    fleet.forget_schema("globex").await.unwrap();
    assert_eq!(fleet.schema_of("globex").await.unwrap().version, None);
    let migrated = router.migrate("globex").await.unwrap();
    assert_eq!((migrated.from, versions(&migrated)), (1, vec![2, 3]));
    assert_eq!(
        log(&databases.session("globex").await).await,
        ["1", "2", "3"]
    );
}

#[tokio::test]
async fn a_failure_is_kept_with_step_and_code_and_no_data_until_the_step_changes() {
    let databases = Databases::recorded(&["acme", "coded"]).await;
    let failing = |sql: &'static str| counted_to(2).step(3, "broken", sql);
    let router = databases.leased_router(failing("INSERT INTO log VALUES ('hunter2')"));
    let fleet = router.fleet().unwrap();
    let err = router.migrate("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Schema(SchemaFault::Failed));
    assert!(err.retry_after() > Some(Duration::from_secs(30)), "{err:?}");
    let known = fleet.schema_of("acme").await.unwrap();
    assert_eq!(
        (known.version, known.latest, known.is_current),
        (Some(2), 3, false)
    );
    assert_eq!((known.pending.len(), known.pending[0].version), (1, 3));
    let failure = known.failure.unwrap();
    assert_eq!((failure.step, failure.code.as_deref()), (3, Some("22P02")));
    assert_eq!((failure.attempts, failure.diverged), (1, false));
    assert!(
        failure.message.contains("step 3 (\"broken\") failed"),
        "{failure:?}"
    );
    // It is not tried again now, by no process. The tenant is asked nothing.
    let opened = databases.way.opened();
    let held_back = databases.leased_router(failing("INSERT INTO log VALUES ('hunter2')"));
    let err = held_back.migrate("acme").await.unwrap_err();
    assert!(err.to_string().contains("failures in a row: 1"), "{err}");
    assert_eq!(databases.way.opened(), opened);
    fleet.retry_schema("acme").await.unwrap();
    router.migrate("acme").await.unwrap_err();
    assert!(databases.way.opened() > opened);

    let coded = counted_to(1).run(2, "code", |_| async {
        Err("the password is hunter2".into())
    });
    databases
        .leased_router(coded)
        .migrate("coded")
        .await
        .unwrap_err();
    assert_eq!(
        databases.record("coded").await.schema.failure.unwrap().code,
        None
    );
    let kept = column(
        &databases.catalog_session().await,
        "SELECT t::text FROM tenantry.tenants t",
    )
    .await;
    assert!(
        kept.len() == 2 && !kept.join(" ").contains("hunter2"),
        "{kept:?}"
    );

    let mended = databases.leased_router(failing("INSERT INTO log VALUES (3)"));
    let migrated = mended.migrate("acme").await.unwrap();
    assert_eq!(versions(&migrated), [3]);
    assert_eq!(databases.record("acme").await.schema.failure, None);
    assert_eq!(log(&databases.session("acme").await).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn an_edited_step_is_found_in_a_current_tenant_and_concerns_that_release_alone() {
    let databases = Databases::recorded(&["acme"]).await;
    let router = databases.leased_router(counted_to(2));
    router.migrate("acme").await.unwrap();
    let edited = || counted_to(1).step(2, "more", "INSERT INTO log VALUES (22)");
    let err = databases
        .leased_router(edited())
        .migrate("acme")
        .await
        .unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Diverged),
        "{err:?}"
    );
    assert_eq!(err.retry_after(), None, "not by itself");
    let failure = databases.record("acme").await.schema.failure.unwrap();
    assert!(failure.diverged && failure.step == 2, "{failure:?}");
    assert!(router.migrate("acme").await.unwrap().steps.is_empty());
    let lock = counted_to(2).to_lock();
    let checksum = lock.lines().nth(1).unwrap().split(' ').nth(1).unwrap();
    let accepted = databases.leased_router(edited().accept(2, checksum));
    assert!(accepted.migrate("acme").await.unwrap().steps.is_empty());
    assert_eq!(databases.record("acme").await.schema.failure, None);
    let again = accepted.migrate("acme").await.unwrap();
    assert!(!again.woke && again.steps.is_empty());
}

#[tokio::test]
async fn steps_up_to_a_baseline_are_recorded_and_not_run() {
    let databases = Databases::recorded(&["acme"]).await;
    let client = databases.session("acme").await;
    client
        .batch_execute("CREATE TABLE log (step int)")
        .await
        .unwrap();
    let router = databases.leased_router(counted_to(3));
    let fleet = router.fleet().unwrap();
    let err = fleet.baseline("acme", 7).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misused, "{err:?}");
    fleet.baseline("acme", 2).await.unwrap();
    let known = fleet.schema_of("acme").await.unwrap();
    assert_eq!((known.version, known.baseline), (Some(2), Some(2)));
    // An older release records what it knows of it, and leaves the rest to the newer one.
    let older = databases.leased_router(counted_to(1));
    older.fleet().unwrap().forget_schema("acme").await.unwrap();
    assert!(older.migrate("acme").await.unwrap().steps.is_empty());
    assert_eq!(databases.record("acme").await.schema.baseline, Some(2));
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, versions(&migrated)), (2, vec![3]));
    assert_eq!(log(&client).await, ["3"]);
    let rows = "SELECT version || ' ' || by FROM tenantry.schema_history ORDER BY version LIMIT 2";
    assert_eq!(column(&client, rows).await, ["1 baseline", "2 baseline"]);
    assert_eq!(databases.record("acme").await.schema.baseline, None);
}

#[tokio::test]
async fn a_tenant_that_has_moved_is_migrated_where_it_lives_now() {
    for is_remembered in [true, false] {
        moved_tenant_is_migrated_where_it_lives_now(is_remembered).await;
    }
}

/// `is_remembered`: the router still has the tenant's former place in memory, and not only in the tenant's pool.
async fn moved_tenant_is_migrated_where_it_lives_now(is_remembered: bool) {
    let databases = Databases::recorded(&["acme", "elsewhere", "globex"]).await;
    let router = databases.uninformed_router(counted_to(3));
    router.migrate("acme").await.unwrap();
    if !is_remembered {
        router.migrate("globex").await.unwrap();
    }
    databases
        .change_record("acme", |record| {
            let endpoint = record.endpoint.as_mut().unwrap();
            "elsewhere".clone_into(&mut endpoint.database);
            record.schema = SchemaState::default();
        })
        .await;
    let migrated = router.migrate("acme").await.unwrap();
    assert_eq!((migrated.from, migrated.to), (0, 3));
    let client = databases.session("elsewhere").await;
    assert_eq!(log(&client).await, ["1", "2", "3"]);
}
