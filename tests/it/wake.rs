//! Databases that sleep, and callers who come.

use std::time::Duration;

use tenantry::{
    Endpoint, ErrorKind, ExhaustedQuota, Stage, TenantRouter,
    emulator::{Fault, Reason},
};

use crate::support::{TestEnv, eventually, query_text, retry_timeouts};

const WAKE_DELAY: Duration = Duration::from_millis(300);

#[tokio::test]
async fn when_all_sockets_died_by_suspend_the_next_get_works() {
    let env = TestEnv::new().await;
    let router = env.router();
    query_text(
        &router.get("acme").await.unwrap(),
        "CREATE TABLE t AS SELECT 'kept' AS note",
    )
    .await;
    for round in 1..=3 {
        let held: Vec<_> = futures_util::future::join_all((0..4).map(|_| router.get("acme"))).await;
        assert!(held.iter().all(Result::is_ok));
        drop(held);
        env.suspend("acme").await;
        eventually("the server has closed them", || {
            env.witness("acme").open_sessions == 0
        })
        .await;
        // At once: this runtime may not have looked at the closed sockets yet.
        let client = router.get("acme").await.unwrap();
        assert_eq!(query_text(&client, "SELECT note FROM t").await, "kept");
        drop(client);
        assert_eq!(env.witness("acme").wakes.len(), 1 + round);
    }
}

#[tokio::test]
async fn a_sleeping_tenant_gets_one_attempt_for_all_callers() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    let callers: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let router = router.clone();
                async move { router.get("acme").await.map(drop) }
            })
        })
        .collect();
    eventually("the attempt has begun", || {
        env.witness("acme").auth_attempts.len() > before.auth_attempts.len()
    })
    .await;
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let after = env.witness("acme");
    let woken = after.wakes.last().unwrap();
    let new = &after.auth_attempts[before.auth_attempts.len()..];
    let asleep = new.iter().filter(|at| **at < woken.at + woken.took).count();
    assert_eq!(asleep, 1, "attempts while it slept");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
    assert_eq!(router.status().wakes_by_request.started, 2);
}

#[tokio::test]
async fn callers_that_give_up_do_not_stop_the_wake() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    for _ in 0..10 {
        let impatient = tokio::time::timeout(Duration::from_millis(10), router.get("acme"));
        assert!(impatient.await.is_err(), "a wake takes longer");
    }
    eventually("it wakes though nobody waits", || {
        env.witness("acme").is_awake
    })
    .await;
    // The connection waits in the pool for the next caller.
    drop(router.get("acme").await.unwrap());
    let after = env.witness("acme");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
    assert_eq!(after.auth_attempts.len(), before.auth_attempts.len() + 1);
}

#[tokio::test]
async fn a_wake_that_takes_longer_than_a_call_is_a_timeout_that_says_so() {
    let env = TestEnv::new().await;
    let router = env
        .builder("test")
        .get_timeout(Duration::from_millis(1500))
        .build()
        .unwrap();
    env.create_suspended(&router, "acme").await;
    env.emulator.set_wake_delay(Duration::from_secs(3));
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
    assert!(err.retry_after().is_some());
    eventually("the wake goes on", || env.witness("acme").is_awake).await;
    drop(retry_timeouts(|| router.get("acme")).await);
    assert_eq!(env.witness("acme").wakes.len(), 2);
}

#[tokio::test]
async fn warm_wakes_without_a_caller_and_is_counted_as_such() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = router.status();
    drop(router.warm("acme")); // dropping it stops nothing
    eventually("it is awake", || env.witness("acme").is_awake).await;
    router.warm("acme").wait().await.unwrap();
    let after = router.status();
    assert_eq!(
        after.wakes_by_warm.started,
        before.wakes_by_warm.started + 1
    );
    assert_eq!(
        after.wakes_by_request.started,
        before.wakes_by_request.started
    );
    let attempts = env.witness("acme").auth_attempts.len();
    drop(router.get("acme").await.unwrap());
    assert_eq!(
        env.witness("acme").auth_attempts.len(),
        attempts,
        "the warm connection was there"
    );
}

#[tokio::test]
async fn an_idle_connection_does_not_keep_a_database_awake_and_no_background_work_wakes_it() {
    let env = TestEnv::with(|emulator| emulator.suspend_after(Duration::from_millis(600))).await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    eventually("it falls asleep", || {
        !env.witness("acme").suspends.is_empty()
    })
    .await;
    let asleep = env.witness("acme");
    // Several windows, with everything running that a router does by itself.
    for _ in 0..20 {
        router.status();
        tokio::time::sleep(Duration::from_millis(100)).await; // time itself is under test
    }
    let later = env.witness("acme");
    assert!(!later.is_awake);
    assert_eq!(later.auth_attempts, asleep.auth_attempts);
    assert_eq!(later.wakes, asleep.wakes);
}

#[tokio::test]
async fn a_refused_login_fails_all_callers_at_once_and_names_no_password() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let host = env.witness("acme").host;
    let pooled = host.replacen('.', "-pooler.", 1);
    let wrong = env.configure(TenantRouter::builder(move |_| {
        let (host, pooled) = (host.clone(), pooled.clone());
        async move {
            Ok(Some(Endpoint::neon(
                host,
                pooled,
                "neondb",
                "neondb_owner",
                "hunter2",
            )))
        }
    }));
    let wrong = wrong.build().unwrap();
    let calls = futures_util::future::join_all((0..10).map(|_| wrong.get("acme"))).await;
    for call in calls {
        let err = call.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadCredential);
        assert!(
            err.to_string().contains("check the role and password"),
            "{err}"
        );
        assert!(!format!("{err:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_quota_is_an_immediate_error_and_a_passing_fault_is_waited_out() {
    let env = TestEnv::new().await;
    let router = env.router();
    for tenant in ["spent", "shaky"] {
        env.create_suspended(&router, tenant).await;
    }
    let (spent, shaky) = (
        env.witness("spent").endpoint_id,
        env.witness("shaky").endpoint_id,
    );
    env.emulator
        .set_fault(&spent, Fault::wake_refused(Reason::ActiveTimeQuota, None));
    let err = router.get("spent").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::QuotaExhausted(ExhaustedQuota::ActiveTime)
    );
    assert!(err.retry_after().is_some());
    assert!(err.to_string().contains("raise the quota or wait"), "{err}");

    env.emulator.set_fault(&shaky, Fault::ComputeCloses);
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { router.get("shaky").await.map(drop) }
    });
    let attempts = env.witness("shaky").auth_attempts.len();
    eventually("it tries again and again", || {
        env.witness("shaky").auth_attempts.len() > attempts + 2
    })
    .await;
    env.emulator.set_fault(&shaky, None);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_that_the_proxy_repeats_is_not_asked_for_again_and_says_when_to_retry() {
    let env = TestEnv::new().await;
    let patient = env.router();
    env.create_suspended(&patient, "acme").await;
    let router = env.builder("test").get_timeout(Duration::from_secs(20));
    let router = router.build().unwrap();
    let it = env.witness("acme");
    let fault = Fault::wake_refused(Reason::Unavailable, None);
    env.emulator.set_fault(&it.endpoint_id, fault);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Locked, "told at once");
    assert_eq!(err.stage(), Some(Stage::Wake));
    let wait = err.retry_after().unwrap();
    assert!(wait >= Duration::from_secs(30), "{wait:?}");
    let again = router.get("acme").await.unwrap_err();
    assert!(again.retry_after().unwrap() < wait, "the time that is left");
    let attempts = env.witness("acme").auth_attempts.len();
    assert_eq!(attempts, it.auth_attempts.len() + 1, "asked once");
}
