//! Passwords that change while Neon's proxy, the database behind it and the catalog learn of it one after the other.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{Endpoint, ErrorKind, TenantRouter};
use tokio::time::{Instant, sleep};

use crate::support::{Backend, Counts, House};

const SECOND: Duration = Duration::from_secs(1);

/// One database behind a proxy, a catalog, and a router that knows the database by the password that is changed then.
struct Scene {
    house: Arc<House>,
    catalog: Arc<Mutex<&'static str>>,
    backend: Backend,
    router: TenantRouter,
}

impl Scene {
    /// The database has another password than the proxy and the catalog, and its connections were cut off.
    async fn changed() -> Self {
        let backend = Backend::default();
        let house = House::new(1, "acme".to_owned(), "old".to_owned());
        backend.houses().set("acme", &house);
        let catalog = Arc::new(Mutex::new("old"));
        let password = Arc::clone(&catalog);
        let lookup = move |tenant: &str| {
            let password = *password.lock().unwrap();
            Some(Endpoint::postgres(tenant, tenant, "app", password).without_tls())
        };
        let router = backend.router_to(lookup).build().unwrap();
        drop(router.get("acme").await.unwrap());
        house.set_password("new".to_owned());
        house.set_proxy_password("old");
        house.suspend();
        let heard = |counts: &Counts| counts.is_empty();
        backend.until("its connections have ended", heard).await;
        sleep(Duration::from_millis(1)).await; // by then the router knows
        Self {
            house,
            catalog,
            backend,
            router,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_password_is_looked_up_once_and_tried_until_the_proxy_knows_it() {
    for lag in [Duration::ZERO, 8 * SECOND] {
        let scene = Scene::changed().await;
        *scene.catalog.lock().unwrap() = "new";
        let (lookups, logins) = (
            scene.router.status().lookups,
            scene.backend.counts().logins_started,
        );
        let learn = async {
            // It asks for the new one when it has refused a password.
            while scene.house.proxy_refusals() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
            sleep(lag).await;
            scene.house.set_proxy_password("new");
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            got = scene.router.get("acme") => got,
            () = learn => unreachable!(),
        };
        drop(got.unwrap());
        assert_eq!(scene.router.status().lookups, lookups + 1, "{lag:?}");
        let logins = scene.backend.counts().logins_started - logins;
        assert!(logins < 20, "{logins} after {lag:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_password_that_the_proxy_takes_back_is_old_and_told_for_that() {
    let scene = Scene::changed().await;
    let began = Instant::now();
    let learn = async {
        sleep(5 * SECOND).await;
        scene.house.set_proxy_password("new");
    };
    let (got, ()) = tokio::join!(scene.router.get("acme"), learn);
    assert_eq!(got.unwrap_err().kind(), ErrorKind::BadCredential);
    assert!(began.elapsed() < 15 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_never_learns_of_a_password_is_told_when_the_time_is_over() {
    let scene = Scene::changed().await;
    *scene.catalog.lock().unwrap() = "new";
    let err = scene.router.get("acme").await.unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)), "{err:?}");
    let said = format!("{err:?}");
    assert!(said.contains("different passwords for the role"), "{said}");
    // Once nothing says any more that it lags behind, the password is simply wrong.
    sleep(120 * SECOND).await;
    let err = scene.router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    scene.house.set_proxy_password("new");
    sleep(10 * SECOND).await;
    drop(scene.router.get("acme").await.unwrap());
}
