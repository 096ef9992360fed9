//! The most connections that a tenant may have: by its entry in the catalog, and by its plan.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{
    Decision, ErrorKind, Failpoint as ProvisionStep, Fleet, Plan, Provisioner, Stage, TenantClient,
    TenantRouter, catalog::Memory, fleet::Provisioned,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::support::{
    Backend, Counts, FakeCatalog, FakeControlPlane, Gate, Step, TestEnv, current_database,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time, and for a notification to be followed soon after others.
const MOMENT: Duration = Duration::from_millis(101);

/// Callers who ask for `tenant` all at once, each for a query; and how long all of them take.
async fn run_callers(router: &TenantRouter, tenant: &str, callers: usize) -> Duration {
    let began = Instant::now();
    let calls = (0..callers).map(|_| async {
        let client = router.get(tenant).await.unwrap();
        client.batch_execute("UPDATE t SET a = 1").await.unwrap();
    });
    join_all(calls).await;
    began.elapsed()
}

/// So many connections of `tenant`, all of them in use.
async fn hold_connections(router: &TenantRouter, tenant: &str, count: usize) -> Vec<TenantClient> {
    let held = join_all((0..count).map(|_| router.get(tenant))).await;
    held.into_iter().map(Result::unwrap).collect()
}

/// Spawns a caller of `tenant` that returns the name of its database.
fn spawn_caller(router: &TenantRouter, tenant: &'static str) -> JoinHandle<String> {
    let router = router.clone();
    tokio::spawn(async move { current_database(&router.get(tenant).await.unwrap()).await })
}

fn opened_at(counts: &Counts, host: &str) -> u64 {
    counts.opened.get(host).copied().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn each_tenant_has_as_many_connections_as_its_entry_says_and_the_others_as_many_as_the_router()
 {
    let backend = Backend::default();
    let builder = backend.router_with_lookup(|tenant| {
        let endpoint = Backend::endpoint(tenant);
        Some(match tenant {
            "small" => endpoint.max_connections(1),
            "large" => endpoint.max_connections(6),
            _ => endpoint,
        })
    });
    let router = builder.pool_size(3).build().unwrap();
    backend.set(Step::Query, Gate::Slow(SECOND));
    let runs = ["small", "large", "usual"].map(|tenant| run_callers(&router, tenant, 12));
    let took = join_all(runs).await;
    assert_eq!(took, [12 * SECOND, 2 * SECOND, 4 * SECOND]);
    let counts = backend.counts();
    let opened = ["small", "large", "usual"].map(|tenant| opened_at(&counts, tenant));
    assert_eq!(opened, [1, 6, 3]);
}

#[tokio::test(start_paused = true)]
async fn connections_in_opening_are_counted_and_those_past_the_pooler_are_not() {
    let backend = Backend::default();
    let builder =
        backend.router_with_lookup(|tenant| Some(Backend::endpoint(tenant).max_connections(2)));
    let router = builder.pool_size(8).build().unwrap();
    let _held = hold_connections(&router, "acme", 1).await;
    let _direct = router.direct("acme").await.unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let callers: Vec<_> = (0..5).map(|_| spawn_caller(&router, "acme")).collect();
    sleep(SECOND).await;
    assert_eq!(backend.counts().waiting(Step::Login), 1);
    backend.set(Step::Login, Gate::Open);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "acme");
    }
    assert_eq!(backend.counts().open, 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_still_in_use_where_the_tenant_lived_counts_where_it_lives() {
    let (backend, host) = (Backend::default(), Arc::new(Mutex::new("old")));
    let now = Arc::clone(&host);
    let builder = backend.router_with_lookup(move |_| {
        let host = *now.lock().unwrap();
        Some(Backend::endpoint(host).max_connections(2))
    });
    let router = builder.build().unwrap();
    let mut at_old = hold_connections(&router, "acme", 2).await;
    *host.lock().unwrap() = "new";
    router.evict("acme");
    let callers = [spawn_caller(&router, "acme"), spawn_caller(&router, "acme")];
    sleep(SECOND).await;
    assert_eq!(router.status().moved, 1);
    assert_eq!(opened_at(&backend.counts(), "new"), 0);
    drop(at_old.pop());
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "new");
    }
    assert_eq!(opened_at(&backend.counts(), "new"), 1);
    assert_eq!(current_database(&at_old[0]).await, "old");
    drop(at_old);
    drop(hold_connections(&router, "acme", 2).await);
    assert_eq!(opened_at(&backend.counts(), "new"), 2);
}

/// A router that follows `catalog`, where `acme` has as many connections as the router says.
async fn following_router(
    catalog: &FakeCatalog,
    set_up: fn(Provisioner) -> Provisioner,
) -> (Backend, TenantRouter) {
    let backend = Backend::default();
    catalog.publish("acme", "acme").await;
    let provisioner = set_up(FakeControlPlane::provisioner(&backend, catalog.clone()));
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.build().unwrap();
    sleep(MOMENT).await;
    (backend, router)
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_that_changes_closes_what_is_too_many_and_nothing_else() {
    let kept: fn(Provisioner) -> Provisioner = |it| it;
    let not_kept = Provisioner::passwords_from_control_plane;
    for (set_up, keeps_none) in [(kept, false), (not_kept, true)] {
        let catalog = FakeCatalog::new();
        let (backend, router) = following_router(&catalog, set_up).await;
        if keeps_none {
            let change = catalog.change_endpoint("acme", |it| it.password = "".into());
            change.await;
            sleep(MOMENT).await;
        }
        let mut leased = hold_connections(&router, "acme", 4).await;
        drop(leased.split_off(3));
        sleep(MOMENT).await;
        assert_eq!(backend.counts().open, 4);
        // One is idle, and goes at once; the others go when they come back.
        catalog.set_max_connections("acme", Some(2)).await;
        sleep(MOMENT).await;
        assert_eq!(backend.counts().open, 3);
        for client in &leased {
            assert_eq!(current_database(client).await, "acme");
        }
        drop(leased.pop());
        sleep(MOMENT).await;
        assert_eq!(backend.counts().open, 2);
        drop(leased);
        sleep(MOMENT).await;
        assert_eq!(backend.counts().open, 2);
        let mut leased = hold_connections(&router, "acme", 2).await;
        assert_eq!(backend.counts().logins_done, 4);

        let callers = [spawn_caller(&router, "acme"), spawn_caller(&router, "acme")];
        sleep(SECOND).await;
        assert!(callers.iter().all(|it| !it.is_finished()));
        catalog.set_max_connections("acme", Some(3)).await;
        sleep(MOMENT).await;
        assert!(callers.iter().all(JoinHandle::is_finished));
        leased.push(router.get("acme").await.unwrap());
        assert_eq!(backend.counts().logins_done, 5);
        assert_eq!(router.status().moved, 0);

        // The place changes at the same time as the number, and by itself.
        catalog.set_max_connections("acme", None).await;
        let change = catalog.change_endpoint("acme", |it| it.role = "other".into());
        change.await;
        sleep(MOMENT).await;
        // Where the control plane has the password, the next caller has it read, and no caller waits for it before.
        assert_eq!(router.status().moved, u64::from(!keeps_none));
        leased.push(router.get("acme").await.unwrap());
        assert_eq!(router.status().moved, 1);
        assert_eq!(backend.counts().open, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_lowered_under_a_login_holds_for_what_that_brings() {
    let catalog = FakeCatalog::new();
    let (backend, router) = following_router(&catalog, |it| it).await;
    let leased = hold_connections(&router, "acme", 1).await;
    backend.set(Step::Login, Gate::Stuck);
    let callers: Vec<_> = (0..3).map(|_| spawn_caller(&router, "acme")).collect();
    backend.until_waiting(Step::Login).await;
    catalog.set_max_connections("acme", Some(1)).await;
    sleep(MOMENT).await;
    backend.set(Step::Login, Gate::Open);
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 1);
    assert!(callers.iter().all(|it| !it.is_finished()));
    drop(leased);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "acme");
    }
    assert_eq!(backend.counts().logins_done, 4);
    assert_eq!(backend.counts().open, 1);
}

/// Returns the most connections that the catalog lets `tenant` have.
async fn recorded_limit(fleet: &Fleet, tenant: &str) -> Option<usize> {
    let record = fleet.record(tenant).await.unwrap().unwrap();
    assert_eq!(record.endpoint.unwrap().max_connections, None);
    record.max_connections
}

#[tokio::test(start_paused = true)]
async fn two_plans_are_two_ceilings() {
    let backend = Backend::default();
    let router = FakeControlPlane::router_with(&backend, |provisioner| {
        provisioner.decide(|tenant| async move {
            let plan = if tenant.as_str().starts_with("free") {
                Plan::new().named("free").max_connections(1)
            } else {
                Plan::new().named("pro").max_connections(4)
            };
            Ok(Decision::Create(plan))
        })
    });
    let router = router.pool_size(2).build().unwrap();
    for turn in 0..2 {
        backend.set(Step::Query, Gate::Slow(SECOND));
        let runs = ["free-acme", "pro-acme"].map(|tenant| run_callers(&router, tenant, 8));
        assert_eq!(join_all(runs).await, [8 * SECOND, 2 * SECOND], "{turn}");
        router.evict("free-acme");
        router.evict("pro-acme");
    }
    let fleet = router.fleet().unwrap();
    assert_eq!(recorded_limit(&fleet, "free-acme").await, Some(1));
    assert_eq!(recorded_limit(&fleet, "pro-acme").await, Some(4));
    let huge = Plan::new().max_connections(7);
    let done = fleet.provision_with("huge", &huge).await.unwrap();
    assert_eq!(done, Provisioned::Created);
    assert_eq!(recorded_limit(&fleet, "huge").await, Some(7));
    drop(hold_connections(&router, "huge", 7).await);
    assert_eq!(opened_at(&backend.counts(), "huge"), 7);
}

#[tokio::test(start_paused = true)]
async fn a_resumed_creation_keeps_the_ceiling_it_was_ordered_with() {
    for stop_at in [
        ProvisionStep::Created,
        ProvisionStep::Placed,
        ProvisionStep::Prepared,
    ] {
        let (backend, stopped) = (Backend::default(), Arc::new(AtomicBool::new(false)));
        let once = Arc::clone(&stopped);
        let usual = Plan::new().max_connections(1);
        let router = FakeControlPlane::router_with(&backend, |provisioner| {
            let stopping = provisioner.at_each_step(move |step, _| {
                assert!(
                    step != stop_at || once.swap(true, SeqCst),
                    "stopped by the test"
                );
                std::future::ready(())
            });
            stopping.plan(usual).explicit()
        });
        let router = router
            .get_timeout(300 * SECOND)
            .provision_timeout(300 * SECOND)
            .build()
            .unwrap();
        let fleet = router.fleet().unwrap();
        let plan = Plan::new().max_connections(3);
        let err = fleet.provision_with("acme", &plan).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Internal);
        drop(hold_connections(&router, "acme", 3).await);
        assert_eq!(recorded_limit(&fleet, "acme").await, Some(3), "{stop_at:?}");
    }
}

#[tokio::test]
async fn a_database_that_is_adopted_or_imported_has_the_ceiling_of_the_provisioners_plan() {
    let env = TestEnv::new().await;
    let router = |most| {
        let plan = Plan::new().max_connections(most);
        let router = env.provisioning(|provisioner| provisioner.plan(plan));
        router.build().unwrap()
    };
    drop(router(1).get("acme").await.unwrap());
    let restarted = router(2); // its catalog is empty
    drop(restarted.get("acme").await.unwrap());
    let fleet = restarted.fleet().unwrap();
    assert_eq!(recorded_limit(&fleet, "acme").await, Some(2));
    assert_eq!(restarted.status().adopted, 1);

    let project = env.project().await.project.id;
    fleet.import("globex", &project, None).await.unwrap();
    assert_eq!(recorded_limit(&fleet, "globex").await, Some(2));
    drop(hold_connections(&restarted, "globex", 2).await);
    assert_eq!(restarted.status().connections, 3);
    // Moved by Neon, which knows nothing of it.
    let id = env.witness("acme").endpoint_id;
    env.emulator.move_endpoint(&id).await.unwrap();
    restarted.evict("acme");
    drop(restarted.get("acme").await.unwrap());
    assert_eq!(recorded_limit(&fleet, "acme").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_of_zero_is_refused_wherever_it_is_set() {
    let backend = Backend::default();
    let none = || Plan::new().max_connections(0);
    let provisioner = FakeControlPlane::provisioner(&backend, Memory::new()).plan(none());
    let err = TenantRouter::provisioning(provisioner).build().unwrap_err();
    assert!(err.to_string().contains("max_connections"), "{err}");

    let router = FakeControlPlane::router_with(&backend, |provisioner| {
        provisioner.decide(move |_| async move { Ok(Decision::Create(none())) })
    });
    let router = router.build().unwrap();
    let fleet = router.fleet().unwrap();
    for result in [
        router.get("acme").await.map(drop),
        fleet.provision_with("acme", &none()).await.map(drop),
    ] {
        let err = result.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Refused);
        assert!(err.to_string().contains("max_connections"), "{err}");
    }
    assert_eq!(backend.counts().created, 0);

    let table =
        backend.router_with_lookup(|tenant| Some(Backend::endpoint(tenant).max_connections(0)));
    let catalog = FakeCatalog::new();
    let (_backend, follower) = following_router(&catalog, |it| it).await;
    catalog.set_max_connections("acme", Some(0)).await;
    for router in [table.build().unwrap(), follower] {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadRecord);
        assert_eq!(err.stage(), Some(Stage::Lookup));
        assert!(err.to_string().contains("max_connections"), "{err}");
    }
}

#[tokio::test]
async fn a_password_that_was_rotated_and_is_read_again_leaves_the_ceiling() {
    let env = TestEnv::new().await;
    let router = env.provisioning(|provisioner| {
        let provisioner = provisioner.passwords_from_control_plane();
        provisioner.plan(Plan::new().max_connections(1))
    });
    let router = router.build().unwrap();
    drop(router.get("acme").await.unwrap());
    let id = env.witness("acme").endpoint_id;
    env.emulator.rotate_password(&id).await.unwrap();
    env.suspend("acme").await;
    let _held = router.get("acme").await.unwrap();
    assert_eq!(router.status().moved, 1);
    let second = timeout(Duration::from_millis(300), router.get("acme"));
    assert!(second.await.is_err(), "it has a second connection");
}
