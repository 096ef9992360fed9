//! What a router remembers of its catalog: for how long, and what makes it ask again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tenantry::{ErrorKind, Provisioner, TenantRouter, catalog::State};
use tokio::time::{Instant, sleep};

use crate::support::{Backend, DOWN, Gate, Ledger, Projects, Step, place};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// When what was read is old for certain.
const OLD: Duration = Duration::from_secs(331);
/// How long it is remembered that there is no such tenant.
const DENIED: Duration = Duration::from_secs(10);

fn provisioner(backend: &Backend, ledger: &Ledger) -> Provisioner {
    Projects::provisioner(backend, ledger.clone())
}

/// A router that asks for changes only when it is told of some, and has one pool at most.
fn forgetful(backend: &Backend, provisioner: Provisioner) -> TenantRouter {
    let builder = backend.at(TenantRouter::provisioning(provisioner));
    let builder = builder.catalog_poll(None).max_pools(1);
    builder.build().unwrap()
}

/// Uses `tenant` without its pool: that of another takes its place first.
async fn look_up(router: &TenantRouter, tenant: &str) -> Result<String, tenantry::Error> {
    assert!(router.status().pools <= 1); // who was used before the last one has left by now
    place(router, "other").await?;
    assert_eq!(router.status().pools, 1);
    place(router, tenant).await
}

#[tokio::test(start_paused = true)]
async fn a_known_tenant_is_looked_up_without_the_catalog_and_read_again_once_when_it_is_old() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    ledger.publish("acme", "acme").await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    look_up(&router, "acme").await.unwrap();
    let finds = ledger.finds();
    for _ in 0..100 {
        look_up(&router, "acme").await.unwrap();
    }
    assert_eq!(ledger.finds(), finds);
    sleep(OLD).await;
    ledger.set(Gate::Slow(SECOND));
    let start = Instant::now();
    for _ in 0..100 {
        look_up(&router, "acme").await.unwrap();
    }
    assert!(start.elapsed() < SECOND, "in the background");
    sleep(2 * SECOND).await;
    look_up(&router, "acme").await.unwrap();
    sleep(2 * SECOND).await;
    assert_eq!(ledger.finds(), finds + 2, "acme and the other, once each");
    assert_eq!(router.status().catalog_stale, 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_read_again_at_times_that_differ() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let builder = backend.at(TenantRouter::provisioning(provisioner(&backend, &ledger)));
    let router = builder.catalog_poll(None).build().unwrap();
    let names: Vec<_> = (0..50).map(|number| format!("t{number}")).collect();
    for name in &names {
        ledger.publish(name, name).await;
        place(&router, name).await.unwrap();
    }
    let finds = ledger.finds();
    sleep(300 * SECOND).await;
    for name in &names {
        place(&router, name).await.unwrap();
    }
    sleep(SECOND).await;
    let read = ledger.finds() - finds;
    assert!((1..50).contains(&read), "{read}");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_tenant_is_asked_for_once_in_ten_seconds() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger).explicit());
    router.get("nobody").await.unwrap_err();
    let (finds, start) = (ledger.finds(), Instant::now());
    for _ in 0..90 {
        let err = router.get("nobody").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::UnknownTenant);
        sleep(SECOND / 10).await;
    }
    assert!(start.elapsed() < DENIED);
    assert_eq!(ledger.finds(), finds);
    sleep(SECOND).await;
    router.get("nobody").await.unwrap_err();
    assert!(ledger.finds() > finds);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_created_here_is_not_unknown_any_more() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger).explicit());
    router.get("acme").await.unwrap_err();
    router.fleet().unwrap().provision("acme").await.unwrap();
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_created_elsewhere_is_found_within_ten_seconds_though_nothing_tells() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger).explicit());
    router.get("acme").await.unwrap_err();
    ledger.publish("acme", "acme").await;
    router.get("acme").await.unwrap_err();
    sleep(DENIED).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
}

#[tokio::test(start_paused = true)]
async fn what_was_created_on_access_is_known_without_another_look() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    sleep(MOMENT).await;
    place(&router, "acme").await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(ledger.finds(), 2, "one for the look-up, one to create it");
    place(&router, "other").await.unwrap();
    assert_eq!(router.status().pools, 1);
    ledger.set(DOWN);
    place(&router, "acme").await.unwrap();
    assert_eq!(ledger.finds(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_change_is_neither_remembered_nor_used() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    ledger.publish("acme", "old").await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    sleep(SECOND).await;
    ledger.keep_back(true);
    let caller = tokio::spawn({
        let router = router.clone();
        async move { place(&router, "acme").await }
    });
    sleep(SECOND).await;
    ledger
        .change("acme", |endpoint| *endpoint = Backend::endpoint("new"))
        .await;
    sleep(SECOND).await; // the follower has heard
    ledger.keep_back(false);
    assert_eq!(caller.await.unwrap().unwrap(), "new");
    assert_eq!(backend.counts().opened.get("old"), None);
    assert_eq!(look_up(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_changes_during_each_of_its_look_ups_is_led_to_where_it_lives_in_the_end() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    let projects = Projects::slow(&backend, SECOND);
    let provisioner = Provisioner::new(ledger.clone(), projects, "test");
    let router = forgetful(&backend, provisioner.passwords_from_control_plane());
    ledger.lead_to("acme", "old").await;
    ledger.turn("acme", State::Preparing).await;
    ledger.turn("acme", State::Ready).await;
    sleep(SECOND).await;
    let caller = tokio::spawn({
        let router = router.clone();
        async move { place(&router, "acme").await }
    });
    sleep(SECOND / 2).await;
    for most in 1..3 {
        ledger.limit("acme", Some(most)).await;
        sleep(SECOND).await;
    }
    ledger.lead_to("acme", "new").await;
    // The move came before the last look-up had ended, so that answer is no good.
    assert_eq!(caller.await.unwrap().unwrap(), "new");
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_reading_in_the_background_that_comes_late_does_not_undo_what_was_heard_since() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    ledger.publish("acme", "old").await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    look_up(&router, "acme").await.unwrap();
    sleep(OLD).await;
    ledger.keep_back(true);
    look_up(&router, "acme").await.unwrap();
    sleep(SECOND).await;
    let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(SECOND).await;
    ledger.keep_back(false);
    sleep(SECOND).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
    assert_eq!(look_up(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn who_is_evicted_is_looked_up_in_the_catalog_before_the_next_use() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    ledger.publish("acme", "old").await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    place(&router, "acme").await.unwrap();
    let opened = backend.counts().opened["old"];
    let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    ledger.set(Gate::Slow(SECOND));
    router.evict("acme");
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
    assert_eq!(backend.counts().opened["old"], opened);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_record_has_vanished_goes_on_and_is_not_created_anew() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    look_up(&router, "acme").await.unwrap();
    ledger.lose("acme");
    for _ in 0..3 {
        sleep(OLD).await;
        assert_eq!(look_up(&router, "acme").await.unwrap(), "acme");
        sleep(MOMENT).await;
        router.evict("acme");
        assert_eq!(look_up(&router, "acme").await.unwrap(), "acme");
    }
    assert_eq!(backend.counts().created, 2, "acme and the other");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_tenant_whose_tombstone_has_vanished_is_not_created_anew() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    ledger.publish("acme", "acme").await;
    ledger.turn("acme", State::Deleting).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deleted);
    ledger.lose("acme");
    for _ in 0..3 {
        sleep(DENIED).await;
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::BadRecord);
    }
    assert_eq!(backend.counts().created, 0);
}

#[tokio::test(start_paused = true)]
async fn a_password_from_the_control_plane_is_read_again_only_with_another_generation() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let reads = Arc::new(AtomicU64::new(0));
    let projects = Projects::counting(&backend, Arc::clone(&reads));
    let provisioner = Provisioner::new(ledger.clone(), projects, "test").on_first_access();
    let router = forgetful(&backend, provisioner.passwords_from_control_plane());
    ledger.publish("acme", "acme").await;
    ledger
        .change("acme", |endpoint| endpoint.password = "".into())
        .await;
    place(&router, "acme").await.unwrap();
    assert_eq!(reads.load(Relaxed), 1);
    place(&router, "other").await.unwrap();
    let before = reads.load(Relaxed);
    for _ in 0..3 {
        sleep(OLD).await;
        let finds = ledger.finds();
        look_up(&router, "acme").await.unwrap();
        sleep(SECOND).await;
        assert_eq!(ledger.finds(), finds + 2, "both were read again");
    }
    assert_eq!(reads.load(Relaxed), before);
    ledger
        .change("acme", |endpoint| endpoint.direct_host = "else".into())
        .await;
    sleep(OLD).await;
    look_up(&router, "acme").await.unwrap();
    sleep(SECOND).await;
    assert_eq!(reads.load(Relaxed), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_password_that_is_refused_is_read_past_what_is_remembered() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let reads = Arc::new(AtomicU64::new(0));
    let projects = Projects::counting(&backend, Arc::clone(&reads));
    let provisioner = Provisioner::new(ledger.clone(), projects, "test").on_first_access();
    let router = forgetful(&backend, provisioner.passwords_from_control_plane());
    place(&router, "acme").await.unwrap();
    place(&router, "other").await.unwrap();
    let (finds, before) = (ledger.finds(), reads.load(Relaxed));
    assert_eq!(router.status().pools, 1);
    let refused = login_refused();
    backend.set_at("acme", Step::Login, refused);
    router.get("acme").await.unwrap_err();
    assert!(ledger.finds() > finds);
    assert_eq!(reads.load(Relaxed), before + 1);
}

/// A login that Neon refuses.
fn login_refused() -> Gate {
    Gate::Fail(crate::support::Failure::Error {
        code: "28P01",
        text: "password authentication failed for user 'app'",
    })
}

#[tokio::test(start_paused = true)]
async fn after_a_preload_all_tenants_are_served_without_the_catalog() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    let names: Vec<_> = (0..2500).map(|number| format!("t{number}")).collect();
    for name in &names {
        ledger.publish(name, name).await;
    }
    ledger.turn("t7", State::Held).await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    assert_eq!(router.preload().await.unwrap(), 2499);
    ledger.set(DOWN);
    for name in ["t0", "t1234", "t2499"] {
        assert_eq!(place(&router, name).await.unwrap(), name);
    }
    assert_eq!(ledger.finds(), 0);
    assert_eq!(
        router.get("t7").await.unwrap_err().kind(),
        ErrorKind::Catalog
    );
    assert!(
        ledger.finds() <= 1,
        "a tenant that may not be used is asked for once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_preload_while_tenants_move_misses_none_of_it() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    let names: Vec<_> = (0..100).map(|number| format!("t{number}")).collect();
    for name in &names {
        ledger.publish(name, name).await;
    }
    let builder = backend.at(TenantRouter::provisioning(provisioner(&backend, &ledger)));
    let router = builder.build().unwrap();
    sleep(SECOND).await;
    ledger.keep_back(true);
    let preload = tokio::spawn({
        let router = router.clone();
        async move { router.preload().await }
    });
    sleep(SECOND).await; // the page is read, and not yet here
    for name in &names[..50] {
        let change = ledger.change(name, |endpoint| *endpoint = Backend::endpoint("new"));
        change.await;
    }
    sleep(SECOND).await;
    ledger.keep_back(false);
    let remembered = preload.await.unwrap().unwrap();
    assert!(remembered <= 50, "{remembered}");
    let places = names.iter().map(|name| place(&router, name));
    for (name, place) in names.iter().zip(join_all(places).await) {
        let moved = names[..50].contains(name);
        assert_eq!(place.unwrap(), if moved { "new" } else { name });
    }
}

#[tokio::test(start_paused = true)]
async fn a_preload_that_the_catalog_fails_says_so() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    ledger.publish("acme", "acme").await;
    let router = forgetful(&backend, provisioner(&backend, &ledger));
    sleep(SECOND).await;
    ledger.set(DOWN);
    let err = router.preload().await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Catalog);
    router.close().await;
    assert_eq!(
        router.preload().await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    let own = backend.router().build().unwrap();
    assert_eq!(own.preload().await.unwrap(), 0);
}
