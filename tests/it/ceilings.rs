//! How many connections a tenant may have, by its entry in the catalog.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{ErrorKind, Stage as CallStage, TenantClient, TenantRouter};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{Backend, Counts, Gate, Step, place_of};

const SECOND: Duration = Duration::from_secs(1);

/// Callers who ask for `tenant` all at once, each for a query; and how long all of them take.
async fn crowd(router: &TenantRouter, tenant: &str, callers: usize) -> Duration {
    let began = Instant::now();
    let calls = (0..callers).map(|_| async {
        let client = router.get(tenant).await.unwrap();
        client.batch_execute("UPDATE t SET a = 1").await.unwrap();
    });
    join_all(calls).await;
    began.elapsed()
}

/// So many connections of `tenant`, all of them in use.
async fn held(router: &TenantRouter, tenant: &str, count: usize) -> Vec<TenantClient> {
    let held = join_all((0..count).map(|_| router.get(tenant))).await;
    held.into_iter().map(Result::unwrap).collect()
}

/// Somebody who asks for `tenant`, and is told where it is.
fn caller(router: &TenantRouter, tenant: &'static str) -> JoinHandle<String> {
    let router = router.clone();
    tokio::spawn(async move { place_of(&router.get(tenant).await.unwrap()).await })
}

fn opened(counts: &Counts, host: &str) -> u64 {
    counts.opened.get(host).copied().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn each_tenant_has_as_many_connections_as_its_entry_says_and_the_others_as_many_as_the_router()
 {
    let backend = Backend::default();
    let builder = backend.router_to(|tenant| {
        let endpoint = Backend::endpoint(tenant);
        Some(match tenant {
            "small" => endpoint.max_connections(1),
            "large" => endpoint.max_connections(6),
            _ => endpoint,
        })
    });
    let router = builder.pool_size(3).build().unwrap();
    backend.set(Step::Query, Gate::Slow(SECOND));
    let crowds = ["small", "large", "usual"].map(|tenant| crowd(&router, tenant, 12));
    let took = join_all(crowds).await;
    assert_eq!(took, [12 * SECOND, 2 * SECOND, 4 * SECOND]);
    let counts = backend.counts();
    let opened = ["small", "large", "usual"].map(|tenant| opened(&counts, tenant));
    assert_eq!(opened, [1, 6, 3]);
}

#[tokio::test(start_paused = true)]
async fn connections_in_opening_are_counted_and_those_past_the_pooler_are_not() {
    let backend = Backend::default();
    let builder = backend.router_to(|tenant| Some(Backend::endpoint(tenant).max_connections(2)));
    let router = builder.pool_size(8).build().unwrap();
    let _held = held(&router, "acme", 1).await;
    let _direct = router.direct("acme").await.unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let callers: Vec<_> = (0..5).map(|_| caller(&router, "acme")).collect();
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
    let builder = backend.router_to(move |_| {
        let host = *now.lock().unwrap();
        Some(Backend::endpoint(host).max_connections(2))
    });
    let router = builder.build().unwrap();
    let mut at_old = held(&router, "acme", 2).await;
    *host.lock().unwrap() = "new";
    router.evict("acme");
    let callers = [caller(&router, "acme"), caller(&router, "acme")];
    sleep(SECOND).await;
    assert_eq!(router.status().moved, 1);
    assert_eq!(opened(&backend.counts(), "new"), 0);
    drop(at_old.pop());
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "new");
    }
    assert_eq!(opened(&backend.counts(), "new"), 1);
    assert_eq!(place_of(&at_old[0]).await, "old");
    drop(at_old);
    drop(held(&router, "acme", 2).await);
    assert_eq!(opened(&backend.counts(), "new"), 2);
}

#[tokio::test(start_paused = true)]
async fn none_at_all_is_refused() {
    let backend = Backend::default();
    let table = backend.router_to(|tenant| Some(Backend::endpoint(tenant).max_connections(0)));
    let router = table.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadRecord);
    assert_eq!(err.stage(), Some(CallStage::Lookup));
    assert!(err.to_string().contains("max_connections"), "{err}");
}
