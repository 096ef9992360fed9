//! Several runtimes in one process, and what remains when one of them ends.

use std::time::Duration;

use tokio::time::Instant;

use tenantry::{ErrorKind, TenantRouter};
use tokio::runtime::{Builder, Runtime};

use crate::support::{Stage, run_on};

/// A runtime that stands still for this long is noticed.
const UNDRIVEN: Duration = Duration::from_secs(8);

#[test]
fn when_a_callers_runtime_ends_the_rest_go_on() {
    let (home, guest) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let stage = home.block_on(Stage::with(|emulator| {
        emulator.wake_delay(Duration::from_millis(300))
    }));
    let router = home.block_on(async { stage.router() });
    home.block_on(stage.asleep(&router, "acme"));

    // The guest starts the wake, and waits for it when its runtime ends.
    let client = router.clone();
    guest.spawn(async move { client.get("acme").await.map(drop) });
    while router.status().wakes_by_request.started < 2 {
        std::thread::yield_now();
    }
    guest.shutdown_background();
    let answer =
        home.block_on(async { run_on(&router.get("acme").await.unwrap(), "SELECT 1").await });
    assert_eq!(answer, "1");
    assert_eq!(
        stage.witness("acme").wakes.len(),
        2,
        "the guest's wake was the one that served"
    );

    let other = Runtime::new().unwrap();
    assert_eq!(
        other.block_on(async { run_on(&router.get("acme").await.unwrap(), "SELECT 2").await }),
        "2"
    );
    assert_eq!(
        stage.witness("acme").sessions.len(),
        2,
        "runtimes share connections"
    );
}

#[test]
fn when_the_routers_own_runtime_ends_every_call_says_closed() {
    let (home, guest) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let stage = guest.block_on(Stage::new());
    let router = home.block_on(async { stage.router() });
    guest.block_on(stage.asleep(&router, "acme"));
    let held = guest.block_on(router.get("acme")).unwrap();
    guest.block_on(stage.asleep(&router, "globex"));
    stage.emulator.set_wake_delay(Duration::from_secs(20));
    let waiting = guest.spawn({
        let router = router.clone();
        async move { router.get("globex").await.map(drop) }
    });
    let new = guest.spawn({
        let router = router.clone();
        async move { router.get("initech").await.map(drop) }
    });
    while router.status().wakes_by_request.started < 4 {
        std::thread::yield_now();
    }
    let start = Instant::now();
    home.shutdown_background();
    for call in [waiting, new] {
        assert_eq!(
            guest.block_on(call).unwrap().unwrap_err().kind(),
            ErrorKind::Closed
        );
    }
    for tenant in ["acme", "globex", "nobody-yet"] {
        assert_eq!(
            guest.block_on(router.get(tenant)).unwrap_err().kind(),
            ErrorKind::Closed,
            "{tenant}"
        );
    }
    assert!(
        guest.block_on(held.batch_execute("SELECT 1")).is_err(),
        "its socket went with the runtime"
    );
    drop(held);
    drop(router);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "no hang: {:?}",
        start.elapsed()
    );
}

#[test]
fn an_idle_router_notices_the_end_of_its_runtime() {
    let (home, guest) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let stage = guest.block_on(Stage::new());
    let router = home.block_on(async { stage.router() });
    drop(guest.block_on(router.get("acme")).unwrap());
    home.shutdown_timeout(Duration::from_secs(5));
    for tenant in ["acme", "nobody-yet"] {
        assert_eq!(
            guest.block_on(router.get(tenant)).unwrap_err().kind(),
            ErrorKind::Closed,
            "{tenant}"
        );
    }
}

#[tokio::test]
async fn close_ends_waiting_calls_and_all_connections() {
    let stage = Stage::new().await;
    let router = stage.router();
    stage.asleep(&router, "acme").await;
    drop(router.get("acme").await.unwrap());
    stage.asleep(&router, "globex").await;
    stage.emulator.set_wake_delay(Duration::from_secs(20));
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { router.get("globex").await.map(drop) }
    });
    while router.status().wakes_by_request.started < 4 {
        tokio::task::yield_now().await;
    }
    router.close().await;
    assert_eq!(
        waiting.await.unwrap().unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        router.get("acme").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(router.status().connections, 0);
    assert_eq!(stage.witness("acme").open_sessions, 0);
}

#[tokio::test]
async fn a_dropped_router_leaves_no_connection() {
    let stage = Stage::new().await;
    let router = stage.router();
    let held = router.get("acme").await.unwrap();
    drop(router.get("globex").await.unwrap());
    drop(router);
    crate::support::eventually("the idle one closes", || {
        stage.witness("globex").open_sessions == 0
    })
    .await;
    assert_eq!(run_on(&held, "SELECT 1").await, "1");
    drop(held);
    crate::support::eventually("the held one closes", || {
        stage.witness("acme").open_sessions == 0
    })
    .await;
}

#[test]
fn without_a_runtime_build_says_what_to_do() {
    let neon = tenantry::Neon::builder("key").build().unwrap();
    let provisioner = tenantry::Provisioner::new(tenantry::catalog::Memory::new(), neon, "test")
        .on_first_access();
    let err = tenantry::TenantRouter::provisioning(provisioner)
        .build()
        .unwrap_err();
    assert!(err.to_string().contains("no tokio runtime"), "{err}");
}

#[test]
fn what_ended_while_nobody_drove_the_runtime_is_not_handed_out() {
    let home = Builder::new_current_thread().enable_all().build().unwrap();
    let emulators = Runtime::new().unwrap();
    let stage = emulators.block_on(Stage::new());
    let router = home.block_on(async { stage.router() });
    let ask = |router: TenantRouter| async move {
        let (one, other) = tokio::join!(router.get("acme"), router.get("acme"));
        run_on(&one.unwrap(), "SELECT 1").await + &run_on(&other.unwrap(), "SELECT 2").await
    };
    assert_eq!(home.block_on(ask(router.clone())), "12");
    for spawned in [false, true] {
        std::thread::sleep(UNDRIVEN); // time itself is under test
        emulators.block_on(stage.suspend("acme"));
        let answer = if spawned {
            home.block_on(async { tokio::spawn(ask(router.clone())).await.unwrap() })
        } else {
            home.block_on(ask(router.clone()))
        };
        assert_eq!(answer, "12", "spawned: {spawned}");
    }
}
