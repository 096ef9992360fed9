//! Connections past the pooler, and stopping a query from elsewhere.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tenantry::{
    ErrorKind, Resolve, Stage, TenantRouter, emulator::EmulatorResolver,
    tokio_postgres::error::SqlState,
};

use crate::support::{LONG, TestEnv, eventually, query_text, retry_timeouts};

const WAKE_DELAY: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_direct_connection_has_a_session_of_its_own() {
    let env = TestEnv::new().await;
    let router = env.router();
    let mut direct = router.direct("acme").await.unwrap();
    assert_eq!(direct.tenant().as_str(), "acme");
    direct
        .batch_execute("SET search_path = pg_catalog; LISTEN news")
        .await
        .unwrap();
    let path = direct.query_one("SHOW search_path", &[]).await.unwrap();
    assert_eq!(path.get::<_, &str>(0), "pg_catalog");
    let client = router.get("acme").await.unwrap();
    query_text(&client, "NOTIFY news, 'hello'").await;
    let notification = tokio::time::timeout(LONG, direct.notification())
        .await
        .unwrap();
    assert_eq!(notification.unwrap().payload(), "hello");
    drop(direct);
    drop(client);
    router.evict("acme");
    eventually("both are closed", || router.status().connections == 0).await;
}

#[tokio::test]
async fn a_direct_connection_to_a_sleeping_database_waits_for_its_one_wake() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    let (direct, pooled) = tokio::join!(router.direct("acme"), router.get("acme"));
    direct.unwrap().simple_query("SELECT 1").await.unwrap();
    drop(pooled.unwrap());
    let after = env.witness("acme");
    let woken = after.wakes.last().unwrap();
    let asleep = after.auth_attempts[before.auth_attempts.len()..]
        .iter()
        .filter(|at| **at < woken.at + woken.took);
    assert_eq!(
        (after.wakes.len(), asleep.count()),
        (before.wakes.len() + 1, 1)
    );
}

#[tokio::test]
async fn direct_connections_are_bounded_and_a_place_is_free_again_when_one_is_dropped() {
    let env = TestEnv::new().await;
    drop(env.router().get("acme").await.unwrap()); // so that the creation takes none of the time below
    let router = env.builder("test").direct_connections(1);
    let router = router.get_timeout(Duration::from_secs(5)).build().unwrap();
    let first = retry_timeouts(|| router.direct("acme")).await;
    let err = router.direct("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Checkout));
    drop(first);
    drop(retry_timeouts(|| router.direct("acme")).await);
}

#[tokio::test]
async fn a_notification_ends_when_the_database_falls_asleep() {
    let env = TestEnv::new().await;
    let router = env.router();
    let mut direct = router.direct("acme").await.unwrap();
    direct.batch_execute("LISTEN news").await.unwrap();
    env.suspend("acme").await;
    let notification = tokio::time::timeout(LONG, direct.notification())
        .await
        .unwrap();
    assert!(notification.is_none());
    assert!(direct.is_closed());
}

#[tokio::test]
async fn a_cancel_token_stops_the_query_pooled_and_direct() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (client, direct) = (
        router.get("acme").await.unwrap(),
        router.direct("acme").await.unwrap(),
    );
    let queries = [
        (client.cancel_token(), &*client),
        (direct.cancel_token(), &*direct),
    ];
    for (token, client) in queries {
        let running = client.simple_query("SELECT pg_sleep(60)");
        let cancel = async {
            // Again and again, because the query may not have begun.
            loop {
                token.cancel().await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let err = tokio::select! {
            ended = running => ended.unwrap_err(),
            () = cancel => unreachable!("it goes on for ever"),
        };
        assert_eq!(err.code(), Some(&SqlState::QUERY_CANCELED));
        // The last requests may still be under way and hit the next queries.
        let served = async { while client.simple_query("SELECT 1").await.is_err() {} };
        let served = tokio::time::timeout(Duration::from_secs(20), served).await;
        served.expect("it serves on");
    }
}

#[tokio::test]
async fn a_cancel_token_of_a_returned_connection_cancels_nothing() {
    let env = TestEnv::new().await;
    let router = env.builder("test").pool_size(1).build().unwrap();
    let client = router.get("acme").await.unwrap();
    let token = client.cancel_token();
    drop(client);
    let client = router.get("acme").await.unwrap();
    let query = client.simple_query("SELECT pg_sleep(0.3)");
    let (done, sent) = tokio::join!(query, async {
        for _ in 0..5 {
            token.cancel().await.unwrap();
        }
    });
    done.unwrap();
    let () = sent;
}

#[tokio::test]
async fn a_direct_query_that_is_dropped_ends_at_the_server_too() {
    let env = TestEnv::new().await;
    let router = env.router();
    let direct = router.direct("acme").await.unwrap();
    let query = direct.simple_query("SELECT pg_sleep(61)");
    assert!(
        tokio::time::timeout(Duration::from_millis(200), query)
            .await
            .is_err()
    );
    drop(direct);
    let client = router.get("acme").await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(61)%' \
               AND pid <> pg_backend_pid() AND state = 'active'";
    let start = tokio::time::Instant::now();
    while query_text(&client, sql).await != "0" {
        assert!(start.elapsed() < LONG, "the query runs on");
    }
}

#[tokio::test]
async fn a_direct_connection_to_a_sleeping_database_is_the_login_that_wakes_it() {
    let env = TestEnv::with(|it| it.wake_delay(Duration::from_millis(350))).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    let direct = router.direct("acme").await.unwrap();
    let after = env.witness("acme");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
    assert_eq!(after.auth_attempts.len(), before.auth_attempts.len() + 1);
    assert_eq!(router.status().wakes_by_request.started, 2);
    // The database is known to be awake by it.
    drop(router.get("acme").await.unwrap());
    assert_eq!(router.status().wakes_by_request.started, 2);
    drop(direct);
}

#[tokio::test]
async fn callers_of_both_kinds_share_the_wake() {
    let env = TestEnv::with(|it| it.wake_delay(Duration::from_millis(350))).await;
    let router = env.router();
    env.create_suspended(&router, "acme").await;
    let before = env.witness("acme");
    let (direct, pooled) = tokio::join!(router.direct("acme"), router.get("acme"));
    drop((direct.unwrap(), pooled.unwrap()));
    let after = env.witness("acme");
    let woken = after.wakes.last().unwrap();
    let new = &after.auth_attempts[before.auth_attempts.len()..];
    let asleep = new.iter().filter(|at| **at < woken.at + woken.took).count();
    assert_eq!((asleep, new.len()), (1, 2), "one until it was up");
    assert_eq!(after.wakes.len(), before.wakes.len() + 1);
}

/// Resolves the names of an emulator, and panics once.
struct PanickingResolver {
    names: EmulatorResolver,
    left: AtomicBool,
}

impl Resolve for PanickingResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let is_first = self.left.swap(false, Relaxed);
        assert!(!is_first, "a panic in the application's own resolver");
        Resolve::resolve(&self.names, host, port).await
    }
}

#[tokio::test]
async fn a_panic_in_the_resolver_is_an_internal_error_and_the_next_call_works() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let it = env.witness("acme");
    let endpoint = env.endpoint(&it).await;
    let lookup = move |_| std::future::ready(Ok(Some(endpoint.clone())));
    let names = PanickingResolver {
        names: env.emulator.resolver(),
        left: true.into(),
    };
    let router = TenantRouter::builder(lookup)
        .resolve(names)
        .root_certificate(env.emulator.root_certificate());
    let router = router.build().unwrap();
    let err = router.direct("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Internal, "{err}");
    drop(router.direct("acme").await.unwrap());
}
