//! Passwords that change while Neon's proxy, the database behind it and the catalog learn of it one after the other.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{Endpoint, ErrorKind, TenantRouter};
use tokio::time::{Instant, sleep};

use crate::support::{Backend, Counts, FakeDatabase};

const SECOND: Duration = Duration::from_secs(1);

/// One database behind a proxy, a catalog, and a router that knows the database by the password that is changed then.
struct Fixture {
    db: Arc<FakeDatabase>,
    catalog: Arc<Mutex<&'static str>>,
    backend: Backend,
    router: TenantRouter,
}

impl Fixture {
    /// The database has another password than the proxy and the catalog, and its connections were cut off.
    async fn after_password_change() -> Self {
        let backend = Backend::default();
        let db = FakeDatabase::new(1, "acme".to_owned(), "old".to_owned());
        backend.databases().set("acme", &db);
        let catalog = Arc::new(Mutex::new("old"));
        let password = Arc::clone(&catalog);
        let lookup = move |tenant: &str| {
            let password = *password.lock().unwrap();
            Some(Endpoint::postgres(tenant, tenant, "app", password).without_tls())
        };
        let router = backend.router_with_lookup(lookup).build().unwrap();
        drop(router.get("acme").await.unwrap());
        db.set_password("new".to_owned());
        db.set_proxy_password("old");
        db.suspend();
        let disconnected = |counts: &Counts| counts.is_empty();
        backend
            .until("its connections have ended", disconnected)
            .await;
        sleep(Duration::from_millis(1)).await; // by then the router knows
        Self {
            db,
            catalog,
            backend,
            router,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_password_is_looked_up_once_and_tried_until_the_proxy_knows_it() {
    for lag in [Duration::ZERO, 8 * SECOND] {
        let fixture = Fixture::after_password_change().await;
        *fixture.catalog.lock().unwrap() = "new";
        let (lookups, logins) = (
            fixture.router.status().lookups,
            fixture.backend.counts().logins_started,
        );
        let learn = async {
            // It asks for the new one when it has refused a password.
            while fixture.db.proxy_refusals() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
            sleep(lag).await;
            fixture.db.set_proxy_password("new");
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            got = fixture.router.get("acme") => got,
            () = learn => unreachable!(),
        };
        drop(got.unwrap());
        assert_eq!(fixture.router.status().lookups, lookups + 1, "{lag:?}");
        let logins = fixture.backend.counts().logins_started - logins;
        assert!(logins < 20, "{logins} after {lag:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outdated_password_is_a_bad_credential_once_the_proxy_has_the_new_one() {
    let fixture = Fixture::after_password_change().await;
    let began = Instant::now();
    let learn = async {
        sleep(5 * SECOND).await;
        fixture.db.set_proxy_password("new");
    };
    let (got, ()) = tokio::join!(fixture.router.get("acme"), learn);
    assert_eq!(got.unwrap_err().kind(), ErrorKind::BadCredential);
    assert!(began.elapsed() < 15 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_never_learns_the_new_password_is_a_timeout_that_says_why() {
    let fixture = Fixture::after_password_change().await;
    *fixture.catalog.lock().unwrap() = "new";
    let err = fixture.router.get("acme").await.unwrap_err();
    assert!(matches!(err.kind(), ErrorKind::Timeout(_)), "{err:?}");
    let said = format!("{err:?}");
    assert!(said.contains("different passwords for the role"), "{said}");
    // Once nothing says any more that it lags behind, the password is simply wrong.
    sleep(120 * SECOND).await;
    let err = fixture.router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    fixture.db.set_proxy_password("new");
    sleep(10 * SECOND).await;
    drop(fixture.router.get("acme").await.unwrap());
}
