//! What one process changes in the catalog reaches the pools of another: when it is told, when it asks, and when it does
//! neither.

use std::time::Duration;

use tenantry::{ErrorKind, Failpoint, TenantRouter, catalog::State};
use tokio::{runtime::Handle, time::sleep};

use crate::support::{Backend, DOWN, Gate, Ledger, Projects, place, place_of};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
/// The longest time between two polls, by default.
const POLL: Duration = Duration::from_secs(33);

/// How a process hears of changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ear {
    Nudge,
    Poll,
    Neither,
}

impl Ear {
    const ALL: [Self; 3] = [Self::Nudge, Self::Poll, Self::Neither];

    fn ledger(self) -> Ledger {
        match self {
            Self::Nudge => Ledger::new(),
            Self::Poll | Self::Neither => Ledger::silent(),
        }
    }

    fn router(self, backend: &Backend, ledger: &Ledger) -> TenantRouter {
        let provisioner = Projects::provisioner(backend, ledger.clone());
        let builder = backend.at(TenantRouter::provisioning(provisioner));
        let builder = match self {
            Self::Poll => builder,
            Self::Nudge | Self::Neither => builder.catalog_poll(None),
        };
        builder.build().unwrap()
    }

    /// Waits until it must have heard of what has just happened. What is used meanwhile is used up to then.
    async fn hears(self, router: &TenantRouter, tenant: &str) {
        match self {
            Self::Nudge => sleep(MOMENT).await,
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
async fn scene(ear: Ear) -> (Backend, Ledger, TenantRouter) {
    let (backend, ledger) = (Backend::default(), ear.ledger());
    ledger.publish("acme", "acme").await;
    let router = ear.router(&backend, &ledger);
    sleep(MOMENT).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
    (backend, ledger, router)
}

#[tokio::test(start_paused = true)]
async fn a_moved_tenant_is_served_where_it_lives_now() {
    for ear in Ear::ALL {
        let (backend, ledger, router) = scene(ear).await;
        let held = router.get("acme").await.unwrap();
        if ear == Ear::Neither {
            drop(held);
            let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
            change.await;
            ear.hears(&router, "acme").await;
        } else {
            let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
            change.await;
            ear.hears(&router, "acme").await;
            assert_eq!(
                place_of(&held).await,
                "acme",
                "{ear:?}: it is not closed under its user"
            );
            drop(held);
        }
        assert_eq!(place(&router, "acme").await.unwrap(), "new", "{ear:?}");
        sleep(MOMENT).await;
        assert_eq!(
            router.status().connections,
            1,
            "{ear:?}: the old ones are closed"
        );
        assert_eq!(router.status().moved, 1, "{ear:?}");
        assert!(backend.counts().opened["new"] >= 1, "{ear:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotated_password_is_used_for_the_next_connection() {
    for ear in Ear::ALL {
        let (backend, ledger, router) = scene(ear).await;
        let change = ledger.change("acme", |endpoint| endpoint.password = "rotated".into());
        change.await;
        ear.hears(&router, "acme").await;
        if ear != Ear::Neither {
            assert_eq!(
                router.status().connections,
                0,
                "{ear:?}: none of the old is used"
            );
        }
        place(&router, "acme").await.unwrap();
        assert_eq!(router.status().connections, 1, "{ear:?}");
        assert_eq!(backend.counts().open, 1, "{ear:?}");
        assert_eq!(router.status().moved, 1, "{ear:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_may_not_be_used_any_more_is_refused_at_once_and_its_connections_are_closed()
{
    for ear in Ear::ALL {
        for (state, kind) in [
            (State::Deleting, ErrorKind::Deleted),
            (State::Held, ErrorKind::Held),
        ] {
            let (backend, ledger, router) = scene(ear).await;
            let held = (ear != Ear::Neither).then_some(router.get("acme").await.unwrap());
            ledger.turn("acme", state).await;
            ear.hears(&router, "acme").await;
            let (finds, opened) = (ledger.finds(), backend.counts().opened["acme"]);
            let err = router.get("acme").await.unwrap_err();
            assert_eq!(err.kind(), kind, "{ear:?}");
            assert_eq!(ledger.finds(), finds, "{ear:?}: it is known");
            if let Some(held) = held {
                assert_eq!(place_of(&held).await, "acme", "{ear:?}");
                drop(held);
            }
            sleep(SECOND).await;
            assert_eq!(router.status().connections, 0, "{ear:?}");
            assert_eq!(backend.counts().opened["acme"], opened, "{ear:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_who_is_taken_back_is_served_again() {
    for ear in [Ear::Nudge, Ear::Poll] {
        let (_backend, ledger, router) = scene(ear).await;
        ledger.turn("acme", State::Held).await;
        ear.hears(&router, "acme").await;
        router.get("acme").await.unwrap_err();
        ledger.turn("acme", State::Ready).await;
        ear.hears(&router, "acme").await;
        assert_eq!(place(&router, "acme").await.unwrap(), "acme", "{ear:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_created_by_another_router_is_served_as_soon_as_that_is_heard() {
    for ear in [Ear::Nudge, Ear::Poll] {
        let (backend, ledger) = (Backend::default(), ear.ledger());
        let provisioner = Projects::provisioner(&backend, ledger.clone()).explicit();
        let here = backend.at(TenantRouter::provisioning(provisioner));
        let here = here.build().unwrap();
        let there = Ear::Poll.router(&backend, &ledger.replica());
        // Remembered as unknown over and over, until the very moment.
        for _ in 0..4 {
            let err = here.get("acme").await.unwrap_err();
            assert_eq!(err.kind(), ErrorKind::UnknownTenant);
            sleep(SECOND).await;
        }
        assert_eq!(place(&there, "acme").await.unwrap(), "acme");
        ear.hears(&here, "acme").await;
        assert_eq!(place(&here, "acme").await.unwrap(), "acme", "{ear:?}");
        assert_eq!(backend.counts().created, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_by_one_router_closes_the_connections_of_another() {
    let (backend, ledger) = (Backend::default(), Ledger::new());
    let here = Ear::Nudge.router(&backend, &ledger);
    let there = Ear::Nudge.router(&backend, &ledger.replica());
    for router in [&here, &there] {
        place(router, "acme").await.unwrap();
    }
    here.fleet().unwrap().delete("acme").await.unwrap();
    for router in [&here, &there] {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Deleted);
        assert_eq!(router.status().connections, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_deletes_lets_go_at_once_though_the_catalog_fails_right_after_the_tombstone() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    let failing = ledger.clone();
    let provisioner = Projects::provisioner(&backend, ledger.clone());
    let provisioner = provisioner.at_each_step(move |step, _| {
        if step == Failpoint::Buried {
            failing.set(DOWN);
        }
        std::future::ready(())
    });
    let builder = backend.at(TenantRouter::provisioning(provisioner));
    let router = builder.catalog_poll(None).build().unwrap();
    place(&router, "acme").await.unwrap();
    let fleet = router.fleet().unwrap();
    let deletion = tokio::spawn(async move { fleet.delete("acme").await });
    sleep(SECOND).await;
    assert_eq!(router.status().connections, 0);
    ledger.set(Gate::Open);
    deletion.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_lost_over_an_outage_that_begins_with_it() {
    let (_backend, ledger, router) = scene(Ear::Nudge).await;
    // What has changed is still answered, the record itself is not any more.
    ledger.keep_back(true);
    let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(SECOND).await;
    ledger.set(DOWN);
    sleep(60 * SECOND).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
    ledger.set(Gate::Open);
    ledger.keep_back(false);
    sleep(6 * SECOND).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_does_not_hold_up_the_others() {
    let (_backend, ledger, router) = scene(Ear::Nudge).await;
    ledger.publish("globex", "globex").await;
    place(&router, "globex").await.unwrap();
    ledger.break_record("acme");
    for tenant in ["acme", "globex"] {
        let change = ledger.change(tenant, |endpoint| *endpoint = Backend::endpoint("new"));
        change.await;
    }
    sleep(MOMENT).await;
    assert_eq!(place(&router, "globex").await.unwrap(), "new");
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
    let calls = ledger.calls();
    sleep(60 * SECOND).await;
    assert_eq!(ledger.calls(), calls, "nor is it asked for over and over");
}

#[tokio::test(start_paused = true)]
async fn changes_of_tenants_that_nobody_here_knows_cost_no_look() {
    let (_backend, ledger, router) = scene(Ear::Nudge).await;
    let finds = ledger.finds();
    for number in 0..2000 {
        ledger.publish(&format!("t{number}"), "t").await;
    }
    sleep(SECOND).await;
    assert_eq!(ledger.finds(), finds);
    let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    sleep(MOMENT).await;
    assert_eq!(ledger.finds(), finds + 1);
    assert_eq!(router.status().catalog_changes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_was_restored_has_everything_read_again_and_nothing_forgotten() {
    let (backend, ledger) = (Backend::default(), Ledger::silent());
    ledger.publish("acme", "acme").await;
    let provisioner = Projects::provisioner(&backend, ledger.clone());
    let router = backend.at(TenantRouter::provisioning(provisioner));
    let router = router.max_pools(1).build().unwrap();
    sleep(MOMENT).await;
    for tenant in ["acme", "other"] {
        place(&router, tenant).await.unwrap();
    }
    // What has changed with the restore is not among the changes.
    let change = ledger.change("acme", |endpoint| *endpoint = Backend::endpoint("new"));
    change.await;
    ledger.restore();
    sleep(POLL).await;
    ledger.set(DOWN);
    assert_eq!(router.status().pools, 1);
    assert_eq!(place(&router, "acme").await.unwrap(), "acme");
    assert_eq!(router.status().pools, 1);
    place(&router, "other").await.unwrap();
    ledger.set(Gate::Open);
    sleep(6 * SECOND).await;
    assert_eq!(router.status().pools, 1);
    place(&router, "acme").await.unwrap();
    sleep(MOMENT).await;
    assert_eq!(place(&router, "acme").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_follower_opens_no_session_and_ends_with_its_router() {
    let tasks = Handle::current().metrics().num_alive_tasks();
    let (backend, ledger, router) = scene(Ear::Poll).await;
    sleep(600 * SECOND).await;
    assert_eq!(router.status().connections, 0);
    let (logins, calls) = (backend.counts().logins_started, ledger.calls());
    for host in ["b", "c", "d"] {
        ledger
            .change("acme", |endpoint| *endpoint = Backend::endpoint(host))
            .await;
        sleep(600 * SECOND).await;
    }
    assert_eq!(backend.counts().logins_started, logins);
    assert!(ledger.calls() - calls >= 50, "it has gone on asking");
    assert_eq!(router.status().moved, 3);
    drop(router);
    sleep(SECOND).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), tasks);
    let calls = ledger.calls();
    sleep(600 * SECOND).await;
    assert_eq!(ledger.calls(), calls);
}
