//! The times at which a failed migration is tried again.

use std::time::Duration;

use tenantry::{Error, ErrorKind, Schema, SchemaFault, TenantRouter};
use tokio::time::sleep;

use crate::support::{Backend, Failure, FakeCatalog, FakeControlPlane, Gate, Step};

const MINUTE: Duration = Duration::from_secs(60);

async fn failure(router: &TenantRouter) -> Error {
    let err = router.migrate("acme").await.unwrap_err();
    assert_eq!(
        err.kind(),
        ErrorKind::Schema(SchemaFault::Failed),
        "{err:?}"
    );
    err
}

#[tokio::test(start_paused = true)]
async fn a_failed_migration_is_tried_again_four_times_and_then_only_on_request() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    catalog.publish("acme", "acme").await;
    let denied = Failure::Error {
        code: "42501",
        text: "permission denied for schema tenantry",
    };
    backend.set(Step::Query, Gate::Fail(denied));
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend.configure(TenantRouter::provisioning(provisioner));
    let schema = Schema::new().step(1, "notes", "CREATE TABLE notes ()");
    let router = router.schema(schema).build().unwrap();
    let fleet = router.fleet().unwrap();
    let logins = || backend.counts().logins_started;
    for (before, wait) in [(0, 1), (1, 5), (2, 30), (3, 6 * 60)] {
        let wait = wait * MINUTE;
        assert_eq!(failure(&router).await.retry_after(), Some(wait));
        assert_eq!(logins(), before + 1);
        sleep(wait.saturating_sub(Duration::from_secs(1))).await;
        let left = failure(&router).await.retry_after().unwrap();
        assert!(left <= Duration::from_secs(1), "{left:?}");
        assert_eq!(logins(), before + 1, "it is not due");
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(failure(&router).await.retry_after(), None);
    assert_eq!(logins(), 5);
    sleep(24 * 60 * MINUTE).await;
    let err = failure(&router).await;
    assert_eq!(logins(), 5, "it is in quarantine");
    assert!(err.to_string().contains("42501"), "{err}");
    let known = fleet.schema_of("acme").await.unwrap().failure.unwrap();
    assert_eq!((known.step, known.code.as_deref()), (0, Some("42501")));
    assert_eq!((known.attempts, known.retry), (5, None));
    assert!(known.age > 24 * 60 * MINUTE, "{:?}", known.age);

    fleet.retry_schema("acme").await.unwrap();
    assert_eq!(failure(&router).await.retry_after(), Some(MINUTE));
    assert_eq!(logins(), 6);
}
