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

use crate::support::{TestEnv, eventually, query_text};

/// A table of the application's own: one row, and how often it was read.
#[derive(Clone)]
struct LookupTable {
    row: Arc<Mutex<Option<Endpoint>>>,
    reads: Arc<AtomicU32>,
}

impl LookupTable {
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

    fn router(&self, env: &TestEnv) -> TenantRouter {
        let table = self.clone();
        let lookup = move |_: TenantId| {
            table.reads.fetch_add(1, Relaxed);
            let row = table.row.lock().unwrap().clone();
            std::future::ready(Ok::<_, BoxError>(row))
        };
        env.configure(TenantRouter::builder(lookup))
            .build()
            .unwrap()
    }
}

/// A test environment with one project, and the project's endpoint.
async fn env_with_project() -> (TestEnv, Endpoint, String) {
    let env = TestEnv::new().await;
    env.project().await;
    let it = env.emulator.witnesses().remove(0);
    let endpoint = env.endpoint(&it).await;
    (env, endpoint, it.endpoint_id)
}

#[tokio::test]
async fn a_rotated_password_is_read_again_from_the_applications_table() {
    let (env, endpoint, id) = env_with_project().await;
    let table = LookupTable::new(endpoint.clone());
    let router = table.router(&env);
    drop(router.get("acme").await.unwrap());
    let password = env.emulator.rotate_password(&id).await.unwrap();
    let mut rotated = endpoint;
    rotated.password = password;
    table.set(Some(rotated));
    env.emulator.suspend(&id).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT 'here'").await, "here");
    assert_eq!((table.reads(), router.status().moved), (2, 1));
}

#[tokio::test]
async fn a_wrong_password_has_one_second_try_after_the_table_was_read_once() {
    let (env, mut endpoint, id) = env_with_project().await;
    let table = LookupTable::new(endpoint.clone());
    let router = table.router(&env);
    drop(router.get("acme").await.unwrap());
    env.emulator.rotate_password(&id).await.unwrap();
    env.emulator.suspend(&id).await;
    let attempts = env.emulator.witnesses()[0].auth_attempts.len();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    assert_eq!(
        env.emulator.witnesses()[0].auth_attempts.len(),
        attempts + 2
    );
    assert_eq!(table.reads(), 2);
    // Told at once while it is remembered, and forgotten when asked to.
    let again = router.get("acme").await.unwrap_err();
    assert!(again.retry_after() <= err.retry_after());
    assert_eq!(
        env.emulator.witnesses()[0].auth_attempts.len(),
        attempts + 2
    );
    endpoint.password = env.emulator.rotate_password(&id).await.unwrap();
    table.set(Some(endpoint));
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
}

#[tokio::test]
async fn a_tenant_that_moved_is_found_and_its_old_connections_are_not_used_again() {
    let (env, endpoint, id) = env_with_project().await;
    let table = LookupTable::new(endpoint.clone());
    let router = table.router(&env);
    let held = router.get("acme").await.unwrap();
    query_text(&held, "CREATE TABLE place AS SELECT 'old' AS name").await;
    let other = env.project().await;
    let it = env.emulator.witnesses();
    let it = it
        .iter()
        .find(|it| it.project_id == other.project.id)
        .unwrap();
    let there = env.endpoint(it).await;
    let elsewhere = env.configure(TenantRouter::builder({
        let there = there.clone();
        move |_: TenantId| std::future::ready(Ok::<_, BoxError>(Some(there.clone())))
    }));
    let elsewhere = elsewhere.build().unwrap();
    let client = elsewhere.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE place AS SELECT 'new' AS name").await;
    table.set(Some(there));
    let old = env.emulator.witnesses();
    let old = old.iter().find(|it| it.endpoint_id == id).unwrap();
    env.neon().delete_project(&old.project_id).await.unwrap();
    drop(held);
    eventually("its end is known", || router.status().connections == 0).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT name FROM place").await, "new");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test]
async fn a_tenant_removed_from_the_table_is_unknown() {
    let (env, endpoint, id) = env_with_project().await;
    let table = LookupTable::new(endpoint);
    let router = table.router(&env);
    drop(router.get("acme").await.unwrap());
    table.set(None);
    env.emulator.rotate_password(&id).await.unwrap();
    env.emulator.suspend(&id).await;
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn a_password_rotated_at_neon_reaches_a_router_that_provisions() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let id = env.witness("acme").endpoint_id;
    env.emulator.rotate_password(&id).await.unwrap();
    env.suspend("acme").await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT 'here'").await, "here");
    drop(client);
    // It is in the catalog too: a tenant that is looked up again needs no second try.
    router.evict("acme");
    let attempts = env.witness("acme").auth_attempts.len();
    drop(router.get("acme").await.unwrap());
    assert_eq!(env.witness("acme").auth_attempts.len(), attempts + 1);
}

#[tokio::test]
async fn a_password_that_is_not_kept_is_read_again_once_when_it_was_rotated() {
    let env = TestEnv::new().await;
    let provisioner = Provisioner::new(Memory::new(), env.neon(), "test").on_first_access();
    let provisioner = provisioner.passwords_from_control_plane();
    let router = env.configure(TenantRouter::provisioning(provisioner));
    let router = router.max_pools(1).build().unwrap();
    drop(router.get("acme").await.unwrap());
    let id = env.witness("acme").endpoint_id;
    env.emulator.rotate_password(&id).await.unwrap();
    env.suspend("acme").await;
    drop(router.get("acme").await.unwrap());
    drop(router.get("globex").await.unwrap());
    assert_eq!(router.status().pools, 1);
    let attempts = env.witness("acme").auth_attempts.len();
    drop(router.get("acme").await.unwrap());
    assert_eq!(env.witness("acme").auth_attempts.len(), attempts + 1);
}

#[tokio::test]
async fn an_endpoint_moved_at_neon_reaches_a_router_that_provisions() {
    let env = TestEnv::new().await;
    let router = env.router();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "CREATE TABLE t AS SELECT 'kept' AS note").await;
    drop(client);
    let id = env.witness("acme").endpoint_id;
    env.emulator.move_endpoint(&id).await.unwrap();
    eventually("its end is known", || router.status().connections == 0).await;
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, "SELECT note FROM t").await, "kept");
    assert_eq!(router.status().moved, 1);
}

#[tokio::test]
async fn an_active_compute_limit_is_an_error_for_callers_that_cannot_wait_for_it() {
    let env = TestEnv::new().await;
    let router = env
        .builder("test")
        .get_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    env.create_suspended(&router, "acme").await;
    let id = env.witness("acme").endpoint_id;
    let full = Fault::wake_refused(Reason::ActiveEndpointsLimit, None);
    env.emulator.set_fault(&id, full);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::ActiveComputeLimit);
    assert!(err.kind().is_transient());
    assert!(err.retry_after().unwrap() > Duration::from_secs(29));
    assert_eq!(router.status().refused, 1);
    // Nobody waits for it, so nobody tries: the wake is over.
    assert_eq!(router.status().attempts, 0);
}
