//! Tenants whose endpoint or credential changes under a router that runs.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    BoxError, Endpoint, ErrorKind, Provisioner, TenantId, TenantRouter,
    catalog::Memory,
    emulator::{Fault, Reason},
};

use crate::support::{Stage, eventually, run_on};

/// A table of the application's own: one row, and how often it was read.
#[derive(Clone)]
struct Table {
    row: Arc<Mutex<Option<Endpoint>>>,
    reads: Arc<AtomicU32>,
}

impl Table {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            row: Arc::new(Mutex::new(Some(endpoint))),
            reads: Arc::default(),
        }
    }

    fn set(&self, endpoint: Option<Endpoint>) {
        *self.row.lock().unwrap() = endpoint;
    }

    fn reads(&self) -> u32 {
        self.reads.load(Relaxed)
    }

    fn router(&self, stage: &Stage) -> TenantRouter {
        let table = self.clone();
        let lookup = move |_: TenantId| {
            table.reads.fetch_add(1, Relaxed);
            let row = table.row.lock().unwrap().clone();
            std::future::ready(Ok::<_, BoxError>(row))
        };
        stage.at(TenantRouter::builder(lookup)).build().unwrap()
    }
}

/// A stage with one project, and where it is.
async fn one_project() -> (Stage, Endpoint, String) {
    let stage = Stage::new().await;
    stage.project().await;
    let it = stage.emulator.witnesses().remove(0);
    let endpoint = stage.endpoint(&it).await;
    (stage, endpoint, it.endpoint_id)
}

#[tokio::test]
async fn a_rotated_password_is_read_again_from_the_applications_table() {
    let (stage, endpoint, id) = one_project().await;
    let table = Table::new(endpoint.clone());
    let router = table.router(&stage);
    drop(router.get("acme").await.unwrap());
    let password = stage.emulator.rotate_password(&id).await.unwrap();
    let mut rotated = endpoint;
    rotated.password = password;
    table.set(Some(rotated));
    stage.emulator.suspend(&id).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT 'here'").await, "here");
    assert_eq!((table.reads(), router.status().moved), (2, 1));
}

#[tokio::test]
async fn a_wrong_password_has_one_second_try_after_the_table_was_read_once() {
    let (stage, mut endpoint, id) = one_project().await;
    let table = Table::new(endpoint.clone());
    let router = table.router(&stage);
    drop(router.get("acme").await.unwrap());
    stage.emulator.rotate_password(&id).await.unwrap();
    stage.emulator.suspend(&id).await;
    let attempts = stage.emulator.witnesses()[0].auth_attempts.len();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    assert_eq!(
        stage.emulator.witnesses()[0].auth_attempts.len(),
        attempts + 2
    );
    assert_eq!(table.reads(), 2);
    // Told at once while it is remembered, and forgotten when asked to.
    let again = router.get("acme").await.unwrap_err();
    assert!(again.retry_after() <= err.retry_after());
    assert_eq!(
        stage.emulator.witnesses()[0].auth_attempts.len(),
        attempts + 2
    );
    endpoint.password = stage.emulator.rotate_password(&id).await.unwrap();
    table.set(Some(endpoint));
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
}

#[tokio::test]
async fn a_tenant_that_moved_is_found_and_its_old_connections_are_not_used_again() {
    let (stage, endpoint, id) = one_project().await;
    let table = Table::new(endpoint.clone());
    let router = table.router(&stage);
    let held = router.get("acme").await.unwrap();
    run_on(&held, "CREATE TABLE place AS SELECT 'old' AS name").await;
    let other = stage.project().await;
    let it = stage.emulator.witnesses();
    let it = it
        .iter()
        .find(|it| it.project_id == other.project.id)
        .unwrap();
    let there = stage.endpoint(it).await;
    let elsewhere = stage.at(TenantRouter::builder({
        let there = there.clone();
        move |_: TenantId| std::future::ready(Ok::<_, BoxError>(Some(there.clone())))
    }));
    let elsewhere = elsewhere.build().unwrap();
    let client = elsewhere.get("acme").await.unwrap();
    run_on(&client, "CREATE TABLE place AS SELECT 'new' AS name").await;
    table.set(Some(there));
    let old = stage.emulator.witnesses();
    let old = old.iter().find(|it| it.endpoint_id == id).unwrap();
    stage.neon().delete_project(&old.project_id).await.unwrap();
    drop(held);
    eventually("its end is known", || router.status().connections == 0).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT name FROM place").await, "new");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test]
async fn a_tenant_that_the_table_has_no_more_is_unknown() {
    let (stage, endpoint, id) = one_project().await;
    let table = Table::new(endpoint);
    let router = table.router(&stage);
    drop(router.get("acme").await.unwrap());
    table.set(None);
    stage.emulator.rotate_password(&id).await.unwrap();
    stage.emulator.suspend(&id).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn a_password_rotated_at_neon_reaches_a_router_that_provisions() {
    let stage = Stage::new().await;
    let router = stage.router();
    drop(router.get("acme").await.unwrap());
    let id = stage.witness("acme").endpoint_id;
    stage.emulator.rotate_password(&id).await.unwrap();
    stage.suspend("acme").await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT 'here'").await, "here");
    drop(client);
    // It is in the catalog too: a tenant that is looked up anew needs no second try.
    router.evict("acme");
    let attempts = stage.witness("acme").auth_attempts.len();
    drop(router.get("acme").await.unwrap());
    assert_eq!(stage.witness("acme").auth_attempts.len(), attempts + 1);
}

#[tokio::test]
async fn a_password_that_is_not_kept_is_read_again_once_when_it_was_rotated() {
    let stage = Stage::new().await;
    let provisioner = Provisioner::new(Memory::new(), stage.neon(), "test").on_first_access();
    let provisioner = provisioner.passwords_from_control_plane();
    let router = stage.at(TenantRouter::provisioning(provisioner));
    let router = router.max_pools(1).build().unwrap();
    drop(router.get("acme").await.unwrap());
    let id = stage.witness("acme").endpoint_id;
    stage.emulator.rotate_password(&id).await.unwrap();
    stage.suspend("acme").await;
    drop(router.get("acme").await.unwrap());
    drop(router.get("globex").await.unwrap());
    assert_eq!(router.status().pools, 1);
    let attempts = stage.witness("acme").auth_attempts.len();
    drop(router.get("acme").await.unwrap());
    assert_eq!(stage.witness("acme").auth_attempts.len(), attempts + 1);
}

#[tokio::test]
async fn an_endpoint_moved_at_neon_reaches_a_router_that_provisions() {
    let stage = Stage::new().await;
    let router = stage.router();
    let client = router.get("acme").await.unwrap();
    run_on(&client, "CREATE TABLE t AS SELECT 'kept' AS note").await;
    drop(client);
    let id = stage.witness("acme").endpoint_id;
    stage.emulator.move_endpoint(&id).await.unwrap();
    eventually("its end is known", || router.status().connections == 0).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(run_on(&client, "SELECT note FROM t").await, "kept");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test]
async fn an_active_compute_limit_is_told_to_those_who_cannot_wait_for_it() {
    let stage = Stage::new().await;
    let router = stage
        .builder("test")
        .get_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    stage.asleep(&router, "acme").await;
    let id = stage.witness("acme").endpoint_id;
    let full = Fault::wake_refused(Reason::ActiveEndpointsLimit, None);
    stage.emulator.set_fault(&id, full);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::ActiveComputeLimit);
    assert!(err.kind().is_transient());
    assert!(err.retry_after().unwrap() > Duration::from_secs(29));
    assert_eq!(router.status().refused, 1);
    // Nobody waits for it, so nobody tries: the wake is over.
    assert_eq!(router.status().attempts, 0);
}
