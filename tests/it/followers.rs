//! Changes that one process makes in the catalog reach the pools of another: when that one is told, when it asks, and
//! when it does neither.

use std::time::Duration;

use tenantry::{ErrorKind, Failpoint, TenantRouter, catalog::State};
use tokio::{runtime::Handle, time::sleep};

use crate::support::{
    Backend, CatalogFault, DOWN, FakeCatalog, FakeControlPlane, FaultyCatalog, Gate,
    current_database, served_database,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// Longest time until a notification is followed, if another one was just before.
const NOTICED: Duration = Duration::from_millis(51);
/// The longest time between two polls, by default.
const POLL: Duration = Duration::from_secs(33);

/// The way in which a process learns of changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ChangeSource {
    Notified,
    Poll,
    Neither,
}

impl ChangeSource {
    const ALL: [Self; 3] = [Self::Notified, Self::Poll, Self::Neither];

    fn catalog(self) -> FakeCatalog {
        match self {
            Self::Notified => FakeCatalog::new(),
            Self::Poll | Self::Neither => FakeCatalog::without_notifications(),
        }
    }

    fn router(self, backend: &Backend, catalog: &FakeCatalog) -> TenantRouter {
        let provisioner = FakeControlPlane::provisioner(backend, catalog.clone());
        let builder = backend.configure(TenantRouter::provisioning(provisioner));
        let builder = match self {
            Self::Poll => builder,
            Self::Notified | Self::Neither => builder.catalog_poll(None),
        };
        builder.build().unwrap()
    }

    /// Waits until the router must know of a change that was just made. Connections in use stay in use until then.
    async fn wait_until_known(self, router: &TenantRouter, tenant: &str) {
        match self {
            Self::Notified => sleep(NOTICED).await,
            Self::Poll => sleep(POLL).await,
            Self::Neither => {
                // Until what is known is old and no connection is left: the next wake has it read again.
                sleep(331 * SECOND).await;
                assert_eq!(router.status().connections, 0);
                drop(router.get(tenant).await);
                sleep(MOMENT).await;
            }
        }
    }
}

/// A catalog with one tenant, a backend, and a router that serves the tenant.
async fn served_tenant(source: ChangeSource) -> (Backend, FakeCatalog, TenantRouter) {
    let (backend, catalog) = (Backend::default(), source.catalog());
    catalog.publish("acme", "acme").await;
    let router = source.router(&backend, &catalog);
    sleep(MOMENT).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    (backend, catalog, router)
}

#[tokio::test(start_paused = true)]
async fn a_moved_tenant_is_served_where_it_lives_now() {
    for source in ChangeSource::ALL {
        let (backend, catalog, router) = served_tenant(source).await;
        let held = router.get("acme").await.unwrap();
        if source == ChangeSource::Neither {
            drop(held);
            let change =
                catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
            change.await;
            source.wait_until_known(&router, "acme").await;
        } else {
            let change =
                catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
            change.await;
            source.wait_until_known(&router, "acme").await;
            assert_eq!(
                current_database(&held).await,
                "acme",
                "{source:?}: it is not closed under its user"
            );
            drop(held);
        }
        assert_eq!(
            served_database(&router, "acme").await.unwrap(),
            "new",
            "{source:?}"
        );
        sleep(MOMENT).await;
        assert_eq!(
            router.status().connections,
            1,
            "{source:?}: the old ones are closed"
        );
        assert_eq!(router.status().moved, 1, "{source:?}");
        assert!(backend.counts().opened["new"] >= 1, "{source:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotated_password_is_used_for_the_next_connection() {
    for source in ChangeSource::ALL {
        let (backend, catalog, router) = served_tenant(source).await;
        let change =
            catalog.change_endpoint("acme", |endpoint| endpoint.password = "rotated".into());
        change.await;
        source.wait_until_known(&router, "acme").await;
        if source != ChangeSource::Neither {
            assert_eq!(
                router.status().connections,
                0,
                "{source:?}: none of the old is used"
            );
        }
        served_database(&router, "acme").await.unwrap();
        assert_eq!(router.status().connections, 1, "{source:?}");
        assert_eq!(backend.counts().open, 1, "{source:?}");
        assert_eq!(router.status().moved, 1, "{source:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_may_not_be_used_any_more_is_refused_at_once_and_its_connections_are_closed()
{
    for source in ChangeSource::ALL {
        for (state, kind) in [
            (State::Deleting, ErrorKind::Deleted),
            (State::Held, ErrorKind::Held),
        ] {
            let (backend, catalog, router) = served_tenant(source).await;
            let held =
                (source != ChangeSource::Neither).then_some(router.get("acme").await.unwrap());
            catalog.set_state("acme", state).await;
            source.wait_until_known(&router, "acme").await;
            let (finds, opened) = (catalog.finds(), backend.counts().opened["acme"]);
            let err = router.get("acme").await.unwrap_err();
            assert_eq!(err.kind(), kind, "{source:?}");
            assert_eq!(catalog.finds(), finds, "{source:?}: it is known");
            if let Some(held) = held {
                assert_eq!(current_database(&held).await, "acme", "{source:?}");
                drop(held);
            }
            sleep(SECOND).await;
            assert_eq!(router.status().connections, 0, "{source:?}");
            assert_eq!(backend.counts().opened["acme"], opened, "{source:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_no_longer_held_is_served_again() {
    for source in [ChangeSource::Notified, ChangeSource::Poll] {
        let (_backend, catalog, router) = served_tenant(source).await;
        catalog.set_state("acme", State::Held).await;
        source.wait_until_known(&router, "acme").await;
        router.get("acme").await.unwrap_err();
        catalog.set_state("acme", State::Ready).await;
        source.wait_until_known(&router, "acme").await;
        assert_eq!(
            served_database(&router, "acme").await.unwrap(),
            "acme",
            "{source:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_created_by_another_router_is_served_as_soon_as_the_change_is_noticed() {
    for source in [ChangeSource::Notified, ChangeSource::Poll] {
        let (backend, catalog) = (Backend::default(), source.catalog());
        let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone()).explicit();
        let here = backend.configure(TenantRouter::provisioning(provisioner));
        let here = here.build().unwrap();
        let there = ChangeSource::Poll.router(&backend, &catalog.replica());
        // Remembered as unknown over and over, until the very moment.
        for _ in 0..4 {
            let err = here.get("acme").await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::UnknownTenant);
            sleep(SECOND).await;
        }
        assert_eq!(served_database(&there, "acme").await.unwrap(), "acme");
        source.wait_until_known(&here, "acme").await;
        assert_eq!(
            served_database(&here, "acme").await.unwrap(),
            "acme",
            "{source:?}"
        );
        assert_eq!(backend.counts().created, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_by_one_router_closes_the_connections_of_another() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let here = ChangeSource::Notified.router(&backend, &catalog);
    let there = ChangeSource::Notified.router(&backend, &catalog.replica());
    for router in [&here, &there] {
        served_database(router, "acme").await.unwrap();
    }
    here.fleet().unwrap().delete("acme").await.unwrap();
    for router in [&here, &there] {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Deleted);
        assert_eq!(router.status().connections, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_closes_connections_at_once_though_the_catalog_fails_right_after_the_tombstone()
{
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    let failing = catalog.clone();
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let provisioner = provisioner.at_each_step(move |step, _| {
        if step == Failpoint::Buried {
            failing.set(DOWN);
        }
        std::future::ready(())
    });
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.catalog_poll(None).build().unwrap();
    served_database(&router, "acme").await.unwrap();
    let fleet = router.fleet().unwrap();
    let deletion = tokio::spawn(async move { fleet.delete("acme").await });
    sleep(SECOND).await;
    assert_eq!(router.status().connections, 0);
    catalog.set(Gate::Open);
    deletion.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_lost_over_an_outage_that_begins_with_it() {
    let (_backend, catalog, router) = served_tenant(ChangeSource::Notified).await;
    // What has changed is still answered, the record itself is not any more.
    catalog.hold_answers(true);
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(SECOND).await;
    catalog.set(DOWN);
    sleep(60 * SECOND).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    catalog.set(Gate::Open);
    catalog.hold_answers(false);
    sleep(6 * SECOND).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_does_not_hold_up_the_others() {
    let (_backend, catalog, router) = served_tenant(ChangeSource::Notified).await;
    catalog.publish("globex", "globex").await;
    served_database(&router, "globex").await.unwrap();
    catalog.break_record("acme");
    for tenant in ["acme", "globex"] {
        let change =
            catalog.change_endpoint(tenant, |endpoint| *endpoint = Backend::endpoint("new"));
        change.await;
    }
    sleep(NOTICED).await;
    assert_eq!(served_database(&router, "globex").await.unwrap(), "new");
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    sleep(SECOND).await; // until the last notification is followed, too
    let calls = catalog.calls();
    sleep(60 * SECOND).await;
    assert_eq!(catalog.calls(), calls, "nor is it asked for over and over");
}

#[tokio::test(start_paused = true)]
async fn changes_of_tenants_that_are_not_cached_cause_no_read() {
    let (_backend, catalog, router) = served_tenant(ChangeSource::Notified).await;
    let finds = catalog.finds();
    for number in 0..2000 {
        catalog.publish(&format!("t{number}"), "t").await;
    }
    sleep(SECOND).await;
    assert_eq!(catalog.finds(), finds);
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(MOMENT).await;
    assert_eq!(catalog.finds(), finds + 1);
    assert_eq!(router.status().catalog_changes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_was_restored_has_everything_read_again_and_nothing_forgotten() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::without_notifications());
    catalog.publish("acme", "acme").await;
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let router = router.max_pools(1).build().unwrap();
    sleep(MOMENT).await;
    for tenant in ["acme", "other"] {
        served_database(&router, tenant).await.unwrap();
    }
    // What has changed with the restore is not among the changes.
    let change = catalog.change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    catalog.restore();
    sleep(POLL).await;
    catalog.set(DOWN);
    assert_eq!(router.status().pools, 1);
    assert_eq!(served_database(&router, "acme").await.unwrap(), "acme");
    assert_eq!(router.status().pools, 1);
    served_database(&router, "other").await.unwrap();
    catalog.set(Gate::Open);
    sleep(6 * SECOND).await;
    assert_eq!(router.status().pools, 1);
    served_database(&router, "acme").await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(served_database(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_follower_opens_no_session_and_ends_with_its_router() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    let (backend, catalog, router) = served_tenant(ChangeSource::Poll).await;
    sleep(600 * SECOND).await;
    assert_eq!(router.status().connections, 0);
    let (logins, calls) = (backend.counts().logins_started, catalog.calls());
    for host in ["b", "c", "d"] {
        catalog
            .change_endpoint("acme", |endpoint| *endpoint = Backend::endpoint(host))
            .await;
        sleep(600 * SECOND).await;
    }
    assert_eq!(backend.counts().logins_started, logins);
    assert!(catalog.calls() - calls >= 50, "it has gone on asking");
    assert_eq!(router.status().moved, 3);
    drop(router);
    sleep(SECOND).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), tasks);
    let calls = catalog.calls();
    sleep(600 * SECOND).await;
    assert_eq!(catalog.calls(), calls);
}

/// A router that serves this many tenants, of which it has one pool at most, and the ways to its catalog.
async fn crowd(count: usize) -> (Backend, FaultyCatalog, FakeCatalog, TenantRouter) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let faulty = FaultyCatalog::new(&catalog);
    let provisioner = FakeControlPlane::provisioner(&backend, faulty.clone());
    let builder = backend.configure(TenantRouter::provisioning(provisioner));
    let router = builder.max_pools(1).build().unwrap();
    for number in 0..count {
        catalog.publish(&format!("t{number}"), "old").await;
    }
    sleep(SECOND).await;
    serve(&router, count).await;
    (backend, faulty, catalog, router)
}

async fn serve(router: &TenantRouter, count: usize) {
    for number in 0..count {
        served_database(router, &format!("t{number}"))
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_notification_after_a_silence_is_followed_at_once() {
    let (_backend, catalog, router) = served_tenant(ChangeSource::Notified).await;
    sleep(SECOND).await;
    catalog.set_state("acme", State::Held).await;
    sleep(MOMENT).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Held);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_notifications_in_a_second_are_twenty_questions_and_none_is_lost() {
    let (_backend, faulty, catalog, router) = crowd(1).await;
    let before = faulty.calls("changes");
    for _ in 0..999 {
        catalog.set_max_connections("t0", Some(3)).await;
        sleep(MOMENT).await;
    }
    catalog.set_state("t0", State::Held).await;
    sleep(NOTICED).await;
    let err = router.get("t0").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Held);
    let asked = faulty.calls("changes") - before;
    assert!((19..=22).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn many_changed_tenants_are_read_with_one_call() {
    let (_backend, faulty, catalog, router) = crowd(60).await;
    let before = faulty.calls("find");
    for number in 0..60 {
        let tenant = format!("t{number}");
        let change = catalog.change_endpoint(&tenant, |it| *it = Backend::endpoint("new"));
        change.await;
    }
    sleep(2 * NOTICED).await;
    assert_eq!(faulty.calls("find_many"), 1);
    for number in 0..60 {
        let database = served_database(&router, &format!("t{number}")).await;
        assert_eq!(database.unwrap(), "new");
    }
    assert_eq!(faulty.calls("find"), before);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_fails_over_many_at_once_is_asked_for_one_at_a_time() {
    let (_backend, faulty, catalog, router) = crowd(60).await;
    faulty.set("find_many", CatalogFault::Fails);
    for number in 0..60 {
        let tenant = format!("t{number}");
        let change = catalog.change_endpoint(&tenant, |it| *it = Backend::endpoint("new"));
        change.await;
    }
    sleep(300 * SECOND).await;
    catalog.set(DOWN); // so that only what was read again is served
    for number in 0..60 {
        let database = served_database(&router, &format!("t{number}")).await;
        assert_eq!(database.unwrap(), "new");
    }
}

#[tokio::test(start_paused = true)]
async fn old_entries_are_read_again_slowly_while_the_changes_are_known_and_at_once_otherwise() {
    for known in [true, false] {
        let (_backend, faulty, _catalog, router) = crowd(100).await;
        faulty.set("changes", (!known).then_some(CatalogFault::Rejected));
        sleep(331 * SECOND).await;
        let (before, stale) = (faulty.calls("find"), router.status().catalog_stale);
        serve(&router, 100).await;
        sleep(SECOND).await;
        assert_eq!(router.status().catalog_stale - stale, 100);
        let many = faulty.calls("find_many");
        let read = faulty.calls("find") - before;
        let expected = if known { 0..=20 } else { 100..=100 };
        assert!(
            expected.contains(&read) && many == 0,
            "{known}: {read}, {many}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_all_entries_are_read_again_as_they_are_used() {
    let (_backend, faulty, catalog, router) = crowd(100).await;
    catalog.restore();
    sleep(POLL).await;
    let before = faulty.calls("find");
    serve(&router, 100).await;
    sleep(SECOND).await;
    assert!(faulty.calls("find") - before >= 98);
}
