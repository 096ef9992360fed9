//! Connections that nobody uses, or for too long, and what becomes of them by and by.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use tenantry::{RouterBuilder, TenantClient, TenantRouter};
use tokio::time::{Instant, sleep};

use super::support::{Backend, Counts, Step, query_text};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const CURRENT_DATABASE: &str = "SELECT current_database()";

/// A router whose tenants sleep after `window`.
fn router_with_suspend_window(
    backend: &Backend,
    window: impl Into<Option<Duration>>,
) -> RouterBuilder {
    let window = window.into();
    backend.router_with_lookup(move |tenant| Some(Backend::endpoint(tenant).suspend_window(window)))
}

/// So many connections of one tenant, side by side.
async fn get_connections(router: &TenantRouter, count: usize) -> Vec<TenantClient> {
    let calls = (0..count).map(|_| router.get("acme"));
    try_join_all(calls).await.unwrap()
}

/// Returns the times at which the next connections are closed, in seconds from now, until none is open or `limit` is
/// over.
async fn close_times(backend: &Backend, limit: Duration) -> Vec<u64> {
    let (began, mut ends) = (Instant::now(), Vec::new());
    let mut before = backend.counts().open;
    while before > 0 && began.elapsed() < limit {
        sleep(SECOND / 2).await;
        let now = backend.counts().open;
        let closed = usize::try_from(before - now).unwrap();
        ends.extend(std::iter::repeat_n(began.elapsed().as_secs(), closed));
        before = now;
    }
    ends
}

/// Returns the numbers of requests that have been sent, without goodbyes.
fn requests_sent(counts: &Counts) -> ([u64; Step::ALL.len()], u64, u64) {
    let reached = Step::ALL.map(|step| counts.reached(step));
    (reached, counts.queries.values().sum(), counts.cancels)
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_before_the_compute_sleeps_and_nothing_else_is_sent() {
    for longer in [4 * MINUTE, DAY] {
        let backend = Backend::default();
        let router = router_with_suspend_window(&backend, 5 * MINUTE).idle_after(longer);
        let router = router.build().unwrap();
        drop(get_connections(&router, 4).await);
        let before = backend.counts();
        let ends = close_times(&backend, DAY).await;
        assert!(ends.iter().all(|it| (200..260).contains(it)), "{ends:?}");
        let after = backend.counts();
        assert_eq!((ends.len(), after.terminates), (4, 4));
        assert_eq!(requests_sent(&after), requests_sent(&before));
        assert_eq!(router.status().closed_idle, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_as_idle_as_its_last_answer_is_old() {
    let backend = Backend::default();
    let router = router_with_suspend_window(&backend, 5 * MINUTE)
        .build()
        .unwrap();
    let client = router.get("acme").await.unwrap();
    sleep(3 * MINUTE).await;
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
    drop(client);
    let ends = close_times(&backend, DAY).await;
    assert!((200..260).contains(&ends[0]), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn where_the_compute_never_sleeps_the_setting_decides() {
    for idle_after in [10 * SECOND, 10 * MINUTE] {
        let backend = Backend::default();
        let router = router_with_suspend_window(&backend, None).idle_after(idle_after);
        let router = router.build().unwrap();
        drop(get_connections(&router, 2).await);
        let ends = close_times(&backend, DAY).await;
        let limit = idle_after.as_secs();
        let in_time = |it: &u64| (limit * 4 / 5..=limit).contains(it);
        assert!(ends.iter().all(in_time), "{ends:?}");
        assert_eq!(ends.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_suspend_window_that_turns_up_late_is_kept_as_well() {
    let backend = Backend::default();
    let router = backend.router_with_lookup(|tenant| {
        let window = if tenant == "brief" { 2 * SECOND } else { DAY };
        Some(Backend::endpoint(tenant).suspend_window(window))
    });
    let router = router.build().unwrap();
    drop(router.get("acme").await.unwrap());
    sleep(93 * SECOND).await;
    for _ in 0..10 {
        drop(router.get("brief").await.unwrap());
        sleep(SECOND).await;
        assert_eq!(backend.counts().open, 2, "not at once");
        sleep(Duration::from_millis(990)).await;
        assert_eq!(backend.counts().open, 1, "before it sleeps");
    }
}

/// Returns the times after which twenty idle connections of one tenant are closed, each measured from its own last use,
/// in tenths of a second. The sweep closes what would be due before its next round, so this says how long its rounds
/// are.
async fn idle_tenths_at_close(router: &TenantRouter, backend: &Backend) -> Vec<u128> {
    let (mut clients, mut used) = (get_connections(router, 20).await, Vec::new());
    for client in clients.drain(..) {
        query_text(&client, CURRENT_DATABASE).await;
        drop(client);
        used.push(Instant::now());
        sleep(SECOND / 10 * 7).await;
    }
    let mut times = Vec::new();
    while times.len() < used.len() {
        sleep(SECOND / 10).await;
        let open = usize::try_from(backend.counts().open).unwrap();
        while times.len() + open < used.len() {
            times.push(used[times.len()].elapsed().as_millis() / 100);
        }
    }
    times
}

#[tokio::test(start_paused = true)]
async fn a_short_suspend_window_sets_the_pace_no_longer_than_it_is_there() {
    for moved in [false, true] {
        let (backend, window) = (Backend::default(), Arc::new(Mutex::new(SECOND / 4)));
        let router = backend.router_with_lookup({
            let window = Arc::clone(&window);
            move |tenant| {
                let window = if tenant == "brief" {
                    *window.lock().unwrap()
                } else {
                    DAY
                };
                Some(Backend::endpoint(tenant).suspend_window(window))
            }
        });
        let router = router
            .pool_size(20)
            .idle_after(50 * SECOND)
            .build()
            .unwrap();
        drop(router.get("brief").await.unwrap());
        sleep(SECOND).await;
        assert_eq!(backend.counts().open, 0);
        let hurried = idle_tenths_at_close(&router, &backend).await;
        assert!(hurried.iter().all(|it| *it >= 499), "{hurried:?}");
        router.evict("brief");
        if moved {
            *window.lock().unwrap() = DAY;
            drop(router.get("brief").await.unwrap());
        }
        sleep(MINUTE).await;
        assert_eq!(backend.counts().open, 0);
        let calm = idle_tenths_at_close(&router, &backend).await;
        assert!(calm.iter().any(|it| *it < 480), "{moved}, {calm:?}");
        assert!(calm.iter().all(|it| *it >= 449), "{moved}, {calm:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_is_closed_when_it_comes_back_after_its_lifetime() {
    let backend = Backend::default();
    let router = backend.router().pool_size(8).build().unwrap();
    let began = Instant::now();
    let mut ends = Vec::new();
    while began.elapsed() < 31 * MINUTE {
        let closed = backend.counts().terminates;
        // The sweep never sees one of them idle.
        let clients = get_connections(&router, 8).await;
        sleep(10 * SECOND).await;
        let asked = clients
            .iter()
            .map(|client| query_text(client, CURRENT_DATABASE));
        assert!(join_all(asked).await.iter().all(|it| it == "acme"));
        drop(clients);
        let clients = get_connections(&router, 8).await;
        let closed = backend.counts().terminates - closed;
        ends.extend((0..closed).map(|_| began.elapsed().as_secs()));
        drop(clients);
    }
    // The first eight; those that came after them are too young.
    assert_eq!(ends.len(), 8);
    let in_time = |it: &u64| (1600..=1820).contains(it);
    assert!(ends.iter().all(in_time), "{ends:?}");
    assert!(ends[0] < ends[7], "not all at once: {ends:?}");
    assert_eq!(router.status().closed_by_peer, 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_with_its_lifetime_and_none_under_its_user() {
    let backend = Backend::default();
    let router = backend.router().pool_size(9).idle_after(DAY);
    let router = router.build().unwrap();
    let mut clients = get_connections(&router, 9).await;
    let held = clients.pop().unwrap();
    drop(clients);
    let ends = close_times(&backend, 40 * MINUTE).await;
    assert_eq!(ends.len(), 8);
    assert!(ends.iter().all(|it| (1600..=1800).contains(it)), "{ends:?}");
    assert!(ends[0] < ends[7], "not all at once: {ends:?}");
    assert_eq!(query_text(&held, CURRENT_DATABASE).await, "acme");
    drop(held);
    backend.until_empty().await;
    assert_eq!(backend.counts().terminates, 9);
}

#[tokio::test(start_paused = true)]
async fn a_connection_held_for_long_is_warned_of_once_and_stays_open() {
    let backend = Backend::default();
    let router = backend.router().warn_held_after(MINUTE).build().unwrap();
    let warnings = || router.status().held_too_long;
    let client = router.get("acme").await.unwrap();
    sleep(59 * SECOND).await;
    assert_eq!(warnings(), 0);
    sleep(7 * SECOND).await;
    assert_eq!(warnings(), 1);
    sleep(10 * MINUTE).await;
    assert_eq!(warnings(), 1);
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
    drop(client);
    let client = router.get("acme").await.unwrap();
    sleep(2 * MINUTE).await;
    assert_eq!((warnings(), router.status().connections), (2, 1));
    drop(client);
    for _ in 0..200 {
        drop(router.get("acme").await.unwrap());
        sleep(SECOND).await;
    }
    assert_eq!(warnings(), 2, "each of these was short");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_quiet_tenants_get_nothing_but_goodbyes() {
    const TENANTS: usize = 1000;
    let backend = Backend::default();
    let router = router_with_suspend_window(&backend, 5 * MINUTE)
        .max_pools(2000)
        .max_connections(2000);
    let router = router.build().unwrap();
    let names: Vec<_> = (0..TENANTS).map(|n| format!("tenant-{n}")).collect();
    drop(
        try_join_all(names.iter().map(|name| router.get(name)))
            .await
            .unwrap(),
    );
    let before = backend.counts();
    assert_eq!((before.open, router.status().pools), (1000, 1000));
    sleep(60 * MINUTE).await;
    let after = backend.counts();
    assert_eq!((after.open, after.terminates), (0, 1000));
    assert_eq!(requests_sent(&after), requests_sent(&before));
    let status = router.status();
    assert_eq!((status.lookups, status.dials), (1000, 1000));
}
