//! Two things that meet: an end and a caller, a cancel request and the next user, an eviction and a look-up.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{future::join_all, poll};
use tenantry::{Endpoint, RouterBuilder, TenantId, TenantRouter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep},
};

use super::support::{Backend, Counts, Gate, Step, TenantTable, query_text};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";

#[tokio::test(start_paused = true)]
async fn a_cancel_request_under_way_does_not_stop_the_next_users_query() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let client = router.get("acme").await.unwrap();
    let token = client.cancel_token();
    backend.set(Step::Open, Gate::Slow(50 * MILLISECOND));
    let cancelled = tokio::spawn(async move { token.cancel().await });
    sleep(MILLISECOND).await;
    drop(client);
    let other = router.get("acme").await.unwrap();
    backend.set(Step::Query, Gate::Slow(SECOND));
    assert_eq!(query_text(&other, CURRENT_DATABASE).await, "acme");
    cancelled.await.unwrap().unwrap();
    assert_eq!(backend.counts().cancels, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_request_that_comes_too_late_costs_no_connection() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    for _ in 0..3 {
        let client = router.get("acme").await.unwrap();
        assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
        let token = client.cancel_token();
        drop(client);
        token.cancel().await.unwrap();
        let other = router.get("acme").await.unwrap();
        token.cancel().await.unwrap();
        drop(other);
    }
    let counts = backend.counts();
    assert_eq!((counts.cancels, counts.logins_done), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_request_of_the_previous_user_keeps_the_order_of_the_queue() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let client = router.get("acme").await.unwrap();
    let order = Arc::<Mutex<Vec<u32>>>::default();
    let callers: Vec<_> = (0..3)
        .map(|number| {
            let (router, order) = (router.clone(), Arc::clone(&order));
            tokio::spawn(async move {
                let _client = router.get("acme").await.unwrap();
                order.lock().unwrap().push(number);
                sleep(SECOND).await;
            })
        })
        .collect();
    sleep(SECOND).await;
    client.cancel_token().cancel().await.unwrap();
    drop(client);
    join_all(callers).await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_hint_shares_its_look_up_and_takes_note_of_an_eviction_during_it() {
    let (backend, table) = (Backend::default(), TenantTable::with_host("old"));
    let router = table.router(&backend).build().unwrap();
    table.set_delay(SECOND);
    assert!(router.hint("acme"));
    sleep(SECOND / 2).await;
    table.set("new");
    router.evict("acme");
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "new");
    drop(client);
    sleep(2 * SECOND).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "new");
    assert_eq!(table.lookups(), 2);
    assert_eq!(backend.counts().opened.get("old"), None);
}

#[tokio::test(start_paused = true)]
async fn a_hint_does_not_keep_the_old_place_of_a_tenant_that_is_evicted_before_the_next_call() {
    let (backend, table) = (Backend::default(), TenantTable::with_host("old"));
    let router = table.router(&backend).build().unwrap();
    table.set_delay(SECOND);
    assert!(router.hint("acme"));
    sleep(SECOND / 2).await;
    table.set("new");
    router.evict("acme");
    sleep(3 * SECOND).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "new");
}

/// The server's ends of the connections that are open.
type ServerEnds = Arc<Mutex<Vec<DuplexStream>>>;

/// A router whose connections are logged in by a server that then sends nothing, and that keeps its ends in `ends`.
fn silent_router(ends: &ServerEnds) -> RouterBuilder {
    const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x01Z\0\0\0\x05I";
    let ends = Arc::clone(ends);
    let router = TenantRouter::builder(|tenant: TenantId| async move {
        let name = tenant.as_str();
        let endpoint = Endpoint::postgres(name, name, "app", "secret");
        Ok(Some(endpoint.without_tls()))
    });
    router.open_streams(move |_, _| {
        let ends = Arc::clone(&ends);
        async move {
            let (mut near, far) = duplex(16 * 1024);
            tokio::spawn(async move {
                let startup = near.read(&mut [0; 1024]).await;
                if startup.is_ok_and(|length| length > 16) {
                    near.write_all(WELCOME).await.unwrap();
                    ends.lock().unwrap().push(near);
                }
            });
            Ok(far)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_as_it_is_taken_costs_its_caller_no_time() {
    let ends = ServerEnds::default();
    let router = silent_router(&ends).build().unwrap();
    drop(router.get("acme").await.unwrap());
    sleep(SECOND).await;
    ends.lock().unwrap().clear(); // the connection's task has not heard of it yet
    let start = Instant::now();
    drop(router.get("acme").await.unwrap());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let status = router.status();
    assert_eq!((status.dials, status.connections), (2, 1));
    assert_eq!(status.discarded, 0, "there is nothing to cancel on it");
}

#[tokio::test(start_paused = true)]
async fn an_eviction_closes_connections_in_use_though_the_tenant_is_used_again() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let held = router.get("acme").await.unwrap();
    sleep(SECOND).await;
    router.evict("acme");
    sleep(SECOND).await;
    let other = router.get("acme").await.unwrap();
    drop((held, other));
    sleep(SECOND).await;
    assert_eq!(backend.counts().open, 1);
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
    assert_eq!(backend.counts().logins_done, 2);
}

#[tokio::test(start_paused = true)]
async fn a_direct_connection_dropped_with_a_query_just_sent_has_it_cancelled() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let client = router.direct("acme").await.unwrap();
    sleep(SECOND).await;
    backend.set(Step::Query, Gate::Slow(60 * SECOND));
    {
        let mut query = std::pin::pin!(client.simple_query(CURRENT_DATABASE));
        assert!(poll!(query.as_mut()).is_pending());
    }
    drop(client); // the connection's task has not written it yet
    let cancelled = |counts: &Counts| counts.cancels == 1;
    backend.until("it is cancelled", cancelled).await;
}
