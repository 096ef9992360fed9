//! The number of connections that is never exceeded, and who gets them when there are no more.

use std::{error::Error as _, time::Duration};

use futures_util::future::join_all;
use tenantry::{ErrorKind, TenantRouter};
use tokio::time::{Instant, sleep, timeout};

use super::support::{Backend, Failure, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Uses a connection of `tenant` for so long.
async fn use_for(router: &TenantRouter, tenant: &str, time: Duration) {
    let client = router.get(tenant).await.unwrap();
    client.simple_query("SELECT 1").await.unwrap();
    sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn open_connections_never_exceed_max_connections() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Slow(20 * MILLISECOND));
    let router = backend.router().max_connections(8).build().unwrap();
    let callers = (0..600_u32).map(|n| {
        let router = router.clone();
        tokio::spawn(async move {
            sleep(MILLISECOND * (n % 7 * 30)).await;
            use_for(&router, &format!("t{}", n % 40), MILLISECOND * (n % 5 * 4)).await;
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let counts = backend.counts();
    assert_eq!(counts.most_open, 8, "as many as may be, and no more");
    assert!(router.status().closed_for_others >= 32);
    router.close().await;
    assert_eq!(router.status().budget_used, 0);
    backend.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_login_given_up_half_way_counts_until_the_server_has_noticed() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Stuck);
    let builder = backend.router().max_connections(1).wake_timeout(SECOND);
    let router = builder.get_timeout(20 * SECOND).build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)));
    let counts = backend.counts();
    assert!(counts.logins_started > 10);
    assert_eq!(counts.most_open, 1);
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_only_the_least_recently_used_connection_is_closed() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(3);
    let router = builder.build().unwrap();
    for tenant in ["old", "middle", "young", "old"] {
        use_for(&router, tenant, MILLISECOND).await;
    }
    use_for(&router, "new", MILLISECOND).await;
    assert_eq!(backend.counts().logins_done, 4);
    for tenant in ["old", "young", "new"] {
        use_for(&router, tenant, MILLISECOND).await;
    }
    assert_eq!(backend.counts().logins_done, 4, "only middle was closed");
}

#[tokio::test(start_paused = true)]
async fn a_wake_does_not_wait_for_tenants_that_hold_connections() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(4).wake_reserve(1);
    let router = builder.pool_size(10).build().unwrap();
    let held = [0; 3].map(|_| router.get("busy"));
    let _held = join_all(held).await;
    assert!(timeout(SECOND, router.get("busy")).await.is_err());
    let quiet = timeout(SECOND, router.get("quiet")).await;
    assert!(quiet.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_gets_no_connection_fails_with_the_setting_to_change() {
    let backend = Backend::default();
    let router = backend.router().max_connections(1).build().unwrap();
    let held = router.get("busy").await.unwrap();
    let err = router.get("late").await.unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)), "{err:?}");
    assert!(err.retry_after().is_some());
    let source = err.source().unwrap().to_string();
    assert_eq!(
        source,
        "all 1 connections are in use; raise max_connections, or hold them for less time"
    );
    drop(held);
    assert!(router.get("late").await.is_ok(), "and its place is free");
    assert_eq!(router.status().budget_waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_tenant_cannot_keep_the_last_connection_from_a_quiet_one() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Slow(5 * MILLISECOND));
    let router = backend.router().max_connections(1).build().unwrap();
    let busy = (0..20).map(|_| {
        let router = router.clone();
        tokio::spawn(async move {
            loop {
                use_for(&router, "busy", 10 * MILLISECOND).await;
            }
        })
    });
    let busy: Vec<_> = busy.collect();
    sleep(SECOND).await;
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        drop(router.get("quiet").await.unwrap());
        longest = longest.max(began.elapsed());
        sleep(100 * MILLISECOND).await;
    }
    assert!(longest <= 700 * MILLISECOND, "{longest:?}");
    let counts = backend.counts();
    assert!(
        counts.query_count("SELECT 1") > 100,
        "and the busy one goes on"
    );
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_fell_asleep_while_its_attempts_waited_gets_one_login() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(2).wake_reserve(0);
    let router = builder.build().unwrap();
    let held = [
        router.get("a").await.unwrap(),
        router.get("b").await.unwrap(),
    ];
    let callers = (0..6).map(|n| {
        let router = router.clone();
        tokio::spawn(async move { drop(router.get(["a", "b"][n % 2]).await.unwrap()) })
    });
    let callers: Vec<_> = callers.collect();
    sleep(SECOND).await;
    assert!(router.status().budget_waiting > 2);
    backend.set(Step::Login, Gate::Stuck);
    backend.suspend();
    sleep(5 * SECOND).await;
    assert_eq!(backend.counts().waiting(Step::Login), 2, "one for each");
    backend.set(Step::Login, Gate::Open);
    for caller in callers {
        caller.await.unwrap();
    }
    drop(held);
    assert_eq!(backend.counts().most_open, 2);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_gets_no_second_login_while_one_is_under_way() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(2).wake_reserve(0);
    let router = builder.build().unwrap();
    let held = router.get("acme").await.unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let callers = (0..2).map(|_| {
        let router = router.clone();
        tokio::spawn(async move { drop(router.get("acme").await.unwrap()) })
    });
    let callers: Vec<_> = callers.collect();
    backend.until_waiting(Step::Login).await;
    assert_eq!(router.status().budget_waiting, 1);
    // The only open connection dies, and its place goes to the attempt that waits.
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    held.simple_query("SELECT 1").await.unwrap_err();
    drop(held);
    sleep(SECOND).await;
    assert_eq!(backend.counts().waiting(Step::Login), 1);
    backend.set(Step::Login, Gate::Open);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_direct_connection_starts_no_second_login_while_one_is_under_way() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(3).wake_reserve(0);
    let router = builder.build().unwrap();
    let tenants = ["a", "a", "b"].map(|tenant| router.get(tenant));
    let held = join_all(tenants).await;
    let direct = tokio::spawn({
        let router = router.clone();
        async move { drop(router.direct("a").await.unwrap()) }
    });
    sleep(SECOND).await;
    assert_eq!(router.status().budget_waiting, 1);
    backend.set(Step::Login, Gate::Stuck);
    backend.suspend();
    let pooled = tokio::spawn({
        let router = router.clone();
        async move { drop(router.get("a").await.unwrap()) }
    });
    sleep(SECOND).await;
    assert_eq!(backend.counts().waiting(Step::Login), 1);
    backend.set(Step::Login, Gate::Open);
    direct.await.unwrap();
    pooled.await.unwrap();
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_direct_connection_gets_a_place_though_every_connection_is_in_use() {
    let backend = Backend::default();
    let router = backend.router().max_connections(2).wake_reserve(0);
    let router = router.build().unwrap();
    let busy = ["a", "b"].map(|tenant| {
        let router = router.clone();
        tokio::spawn(async move {
            loop {
                use_for(&router, tenant, 20 * MILLISECOND).await;
            }
        })
    });
    sleep(SECOND).await;
    let direct = timeout(10 * SECOND, router.direct("a")).await;
    assert!(direct.unwrap().is_ok());
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn logins_without_an_answer_do_not_block_other_tenants() {
    let backend = Backend::default();
    for dark in ["dark1", "dark2"] {
        backend.set_at(dark, Step::Login, Gate::Stuck);
    }
    let router = backend.router().max_connections(2).build().unwrap();
    let [_w1, _w2] = ["dark1", "dark2"].map(|dark| router.warm(dark));
    backend
        .until("both are dialed", |counts| counts.logins_started == 2)
        .await;
    let began = Instant::now();
    drop(router.get("light").await.unwrap());
    assert!(began.elapsed() < 13 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_direct_connection_counts_and_is_no_reason_to_wait_behind_others() {
    let backend = Backend::default();
    let builder = backend.router().max_connections(2).wake_reserve(1);
    let router = builder.build().unwrap();
    let direct = router.direct("acme").await.unwrap();
    assert_eq!(router.status().budget_used, 1, "what it woke with was idle");
    assert!(timeout(SECOND, router.direct("globex")).await.is_err());
    let pooled = timeout(SECOND, router.get("acme")).await;
    assert!(pooled.unwrap().is_ok(), "it has no pooled one");
    drop(direct);
    assert!(router.direct("globex").await.is_ok());
    assert!(backend.counts().most_open <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_hint_takes_no_connection_from_another_tenant() {
    let backend = Backend::default();
    let router = backend.router().max_connections(1).build().unwrap();
    use_for(&router, "acme", MILLISECOND).await;
    assert!(!router.hint("globex"));
    assert_eq!(router.status().hints_ignored, 1);
    assert_eq!(backend.counts().logins_done, 1);
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_the_limit_are_told_when_to_retry() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Stuck);
    let builder = backend.router().waiting_per_tenant(3).waiting_callers(5);
    let router = builder.pool_size(1).build().unwrap();
    let wait = |tenant: &'static str| {
        let router = router.clone();
        tokio::spawn(async move { drop(router.get(tenant).await.unwrap()) })
    };
    let mut waiting: Vec<_> = ["a", "a", "a", "b", "b"].map(wait).into();
    sleep(MILLISECOND).await;
    assert_eq!(router.status().waiting, 5);
    for (tenant, what) in [
        ("a", "3 callers wait for this tenant"),
        ("b", "5 callers wait"),
    ] {
        let err = router.get(tenant).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Overloaded);
        assert!(err.to_string().contains(what), "{err}");
        assert!(err.retry_after().is_some());
    }
    assert_eq!(router.status().overloaded, 2);
    backend.set(Step::Login, Gate::Open);
    for it in waiting.drain(..) {
        it.await.unwrap();
    }
    assert_eq!(router.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_tenant_counts_the_callers_of_its_evicted_pool_too() {
    let backend = Backend::default();
    let builder = backend.router().waiting_per_tenant(2).pool_size(1);
    let router = builder.build().unwrap();
    let held = router.get("a").await.unwrap();
    let wait = |()| {
        let router = router.clone();
        tokio::spawn(async move { drop(router.get("a").await.unwrap()) })
    };
    let waiting = [(), ()].map(wait);
    sleep(MILLISECOND).await;
    router.evict("a");
    let err = router.get("a").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Overloaded);
    drop(held);
    for it in waiting {
        it.await.unwrap();
    }
    drop(router.get("a").await.unwrap());
}
