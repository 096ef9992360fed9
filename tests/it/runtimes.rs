//! Several runtimes in one process, and what remains when one of them ends.

use std::time::Duration;

use tokio::time::Instant;

use tenantry::{ErrorKind, TenantRouter};
use tokio::runtime::{Builder, Runtime};

use crate::support::{TestEnv, eventually, query_text};

/// A runtime that stands still for this long is noticed.
const STALL: Duration = Duration::from_secs(8);

#[test]
fn when_a_callers_runtime_ends_the_rest_go_on() {
    let (router_runtime, caller_runtime) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let env = router_runtime.block_on(TestEnv::with(|emulator| {
        emulator.wake_delay(Duration::from_millis(300))
    }));
    let router = router_runtime.block_on(async { env.router() });
    router_runtime.block_on(env.create_suspended(&router, "acme"));

    // The guest starts the wake, and waits for it when its runtime ends.
    let client = router.clone();
    caller_runtime.spawn(async move { client.get("acme").await.map(drop) });
    while router.status().wakes_by_request.started < 2 {
        std::thread::yield_now();
    }
    caller_runtime.shutdown_background();
    let answer = router_runtime
        .block_on(async { query_text(&router.get("acme").await.unwrap(), "SELECT 1").await });
    assert_eq!(answer, "1");
    assert_eq!(
        env.witness("acme").wakes.len(),
        2,
        "the guest's wake was the one that served"
    );

    let other = Runtime::new().unwrap();
    assert_eq!(
        other.block_on(async { query_text(&router.get("acme").await.unwrap(), "SELECT 2").await }),
        "2"
    );
    assert_eq!(
        env.witness("acme").sessions.len(),
        2,
        "runtimes share connections"
    );
}

#[test]
fn when_the_routers_own_runtime_ends_every_call_says_closed() {
    let (router_runtime, caller_runtime) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let env = caller_runtime.block_on(TestEnv::new());
    let router = router_runtime.block_on(async { env.router() });
    caller_runtime.block_on(env.create_suspended(&router, "acme"));
    let held = caller_runtime.block_on(router.get("acme")).unwrap();
    caller_runtime.block_on(env.create_suspended(&router, "globex"));
    env.emulator.set_wake_delay(Duration::from_secs(20));
    let waiting = caller_runtime.spawn({
        let router = router.clone();
        async move { router.get("globex").await.map(drop) }
    });
    let new = caller_runtime.spawn({
        let router = router.clone();
        async move { router.get("initech").await.map(drop) }
    });
    while router.status().wakes_by_request.started < 4 {
        std::thread::yield_now();
    }
    let start = Instant::now();
    router_runtime.shutdown_background();
    for call in [waiting, new] {
        assert_eq!(
            caller_runtime.block_on(call).unwrap().unwrap_err().kind(),
            ErrorKind::Closed
        );
    }
    for tenant in ["acme", "globex", "nobody-yet"] {
        assert_eq!(
            caller_runtime
                .block_on(router.get(tenant))
                .unwrap_err()
                .kind(),
            ErrorKind::Closed,
            "{tenant}"
        );
    }
    assert!(
        caller_runtime
            .block_on(held.batch_execute("SELECT 1"))
            .is_err(),
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
    let (router_runtime, caller_runtime) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let env = caller_runtime.block_on(TestEnv::new());
    let router = router_runtime.block_on(async { env.router() });
    drop(caller_runtime.block_on(router.get("acme")).unwrap());
    router_runtime.shutdown_timeout(Duration::from_secs(5));
    for tenant in ["acme", "nobody-yet"] {
        assert_eq!(
            caller_runtime
                .block_on(router.get(tenant))
                .unwrap_err()
                .kind(),
            ErrorKind::Closed,
            "{tenant}"
        );
    }
}

#[tokio::test]
async fn close_ends_waiting_calls_and_all_connections() {
    let env = TestEnv::new().await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    drop(router.get("acme").await.unwrap());
    env.create_suspended(&router, "globex").await;
    env.emulator.set_wake_delay(Duration::from_secs(20));
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
    assert_eq!(env.witness("acme").open_sessions, 0);
}

#[tokio::test]
async fn a_dropped_router_leaves_no_connection() {
    let env = TestEnv::new().await;
    let router = env.router();
    let held = router.get("acme").await.unwrap();
    drop(router.get("globex").await.unwrap());
    drop(router);
    eventually("the idle one closes", || {
        env.witness("globex").open_sessions == 0
    })
    .await;
    assert_eq!(query_text(&held, "SELECT 1").await, "1");
    drop(held);
    eventually("the held one closes", || {
        env.witness("acme").open_sessions == 0
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
fn connections_that_ended_while_the_runtime_stood_still_are_not_handed_out() {
    let router_runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let emulators = Runtime::new().unwrap();
    let env = emulators.block_on(TestEnv::new());
    let router = router_runtime.block_on(async { env.router() });
    let ask = |router: TenantRouter| async move {
        let (one, other) = tokio::join!(router.get("acme"), router.get("acme"));
        query_text(&one.unwrap(), "SELECT 1").await + &query_text(&other.unwrap(), "SELECT 2").await
    };
    assert_eq!(router_runtime.block_on(ask(router.clone())), "12");
    for spawned in [false, true] {
        std::thread::sleep(STALL); // time itself is under test
        emulators.block_on(async {
            env.suspend("acme").await;
            let is_closed = || env.witness("acme").open_sessions == 0;
            eventually("the sessions are closed", is_closed).await;
        });
        let answer = if spawned {
            router_runtime.block_on(async { tokio::spawn(ask(router.clone())).await.unwrap() })
        } else {
            router_runtime.block_on(ask(router.clone()))
        };
        assert_eq!(answer, "12", "spawned: {spawned}");
    }
}
