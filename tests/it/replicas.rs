//! Two app servers on one catalog in Postgres: what the one does, the other serves, without a restart.

use std::time::Duration;

use tenantry::{
    ErrorKind, Provisioner, TenantRouter,
    catalog::{Postgres, PostgresBuilder},
    emulator::CatalogServer,
};
use tokio::time::Instant;

use crate::support::{LONG, Stage, eventually, keys, run_on};

const SECOND: Duration = Duration::from_secs(1);

/// How a replica learns what others have changed.
#[derive(Clone, Copy, Debug)]
enum Ear {
    /// The catalog tells.
    Listens,
    /// It asks from time to time.
    Polls,
    /// Neither: only what was read long ago is read again.
    Deaf,
}

/// An emulator, a catalog, and replicas.
struct Scene {
    stage: Stage,
    catalog: CatalogServer,
}

impl Scene {
    async fn new() -> Self {
        Self {
            stage: Stage::new().await,
            catalog: CatalogServer::start().await.unwrap(),
        }
    }

    fn records(&self) -> PostgresBuilder {
        Postgres::builder(self.catalog.url())
            .keys(keys())
            .timeout(SECOND)
    }

    fn replica(&self, ear: Ear) -> TenantRouter {
        let records = self.records().listen(matches!(ear, Ear::Listens));
        let provisioner =
            Provisioner::new(records.build().unwrap(), self.stage.neon(), "test").on_first_access();
        let router = self.stage.at(TenantRouter::provisioning(provisioner));
        let (poll, ttl) = match ear {
            Ear::Listens => (None, 600 * SECOND),
            Ear::Polls => (Some(SECOND / 5), 600 * SECOND),
            Ear::Deaf => (None, SECOND),
        };
        let router = router.catalog_poll(poll).catalog_ttl(ttl);
        router.catalog_timeout(SECOND).build().unwrap()
    }

    /// Until `other` refuses the tenant that is deleted now, how long it took.
    async fn until_told_of_a_deletion(&self, ear: Ear, tenant: &str) -> Duration {
        let (one, other) = (self.replica(Ear::Listens), self.replica(ear));
        drop(one.get(tenant).await.unwrap());
        drop(other.get(tenant).await.unwrap());
        let (fleet, whose) = (one.fleet().unwrap(), tenant.to_owned());
        // The database is there meanwhile.
        let deletion = async move { fleet.delete_after(&whose, 10 * SECOND).await };
        let deletion = tokio::spawn(deletion);
        eventually("the tombstone stands", || one.status().connections == 0).await;
        let start = Instant::now();
        loop {
            match other.get(tenant).await {
                Err(err) => {
                    assert_eq!(err.kind(), ErrorKind::Deleted, "{ear:?}: {err:?}");
                    break;
                }
                // A connection that is open is used as long as nothing is known to be wrong with it.
                Ok(client) if matches!(ear, Ear::Deaf) => {
                    drop(client);
                    self.stage.suspend(tenant).await;
                }
                Ok(client) => drop(client),
            }
            assert!(start.elapsed() < 10 * SECOND, "{ear:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        deletion.abort();
        start.elapsed()
    }
}

#[tokio::test]
async fn what_one_replica_does_the_other_serves() {
    let scene = Scene::new().await;
    let (one, other) = (scene.replica(Ear::Listens), scene.replica(Ear::Listens));
    for (here, there, tenant) in [(&one, &other, "acme"), (&other, &one, "globex")] {
        let client = here.get(tenant).await.unwrap();
        run_on(
            &client,
            &format!("CREATE TABLE t AS SELECT '{tenant}' AS owner"),
        )
        .await;
        let client = there.get(tenant).await.unwrap();
        assert_eq!(run_on(&client, "SELECT owner FROM t").await, tenant);
    }
    let provisioned = one.status().provisioned + other.status().provisioned;
    assert_eq!(
        (provisioned, scene.stage.emulator.witnesses().len()),
        (2, 2)
    );
}

#[tokio::test]
async fn a_deletion_elsewhere_is_noticed_at_once_by_listening_and_soon_without() {
    let scene = Scene::new().await;
    let listening = scene.until_told_of_a_deletion(Ear::Listens, "acme").await;
    let polling = scene.until_told_of_a_deletion(Ear::Polls, "globex").await;
    let deaf = scene.until_told_of_a_deletion(Ear::Deaf, "initech").await;
    println!("noticed after {listening:?} by NOTIFY, {polling:?} by polling, {deaf:?} by neither");
    assert!(listening < SECOND, "{listening:?}");
    assert!(polling < 2 * SECOND, "{polling:?}");
    assert!(deaf < 5 * SECOND, "{deaf:?}");
}

#[tokio::test]
async fn a_password_rotated_or_an_endpoint_moved_is_found_by_all() {
    let scene = Scene::new().await;
    let replicas = [Ear::Listens, Ear::Polls, Ear::Deaf].map(|ear| scene.replica(ear));
    for replica in &replicas {
        drop(replica.get("acme").await.unwrap());
    }
    let id = scene.stage.witness("acme").endpoint_id;
    scene.stage.emulator.rotate_password(&id).await.unwrap();
    scene.stage.suspend("acme").await;
    for replica in &replicas {
        let client = replica.get("acme").await.unwrap();
        assert_eq!(run_on(&client, "SELECT 'here'").await, "here");
    }
    scene.stage.emulator.move_endpoint(&id).await.unwrap();
    for replica in &replicas {
        eventually("its end is known", || replica.status().connections == 0).await;
        let client = replica.get("acme").await.unwrap();
        assert_eq!(run_on(&client, "SELECT 'here'").await, "here");
    }
}

#[tokio::test]
async fn a_project_deleted_at_neon_is_an_error_that_says_so_and_no_empty_database() {
    let scene = Scene::new().await;
    let (one, other) = (scene.replica(Ear::Listens), scene.replica(Ear::Polls));
    drop(one.get("acme").await.unwrap());
    drop(other.get("acme").await.unwrap());
    let project = scene.stage.witness("acme").project_id;
    scene.stage.neon().delete_project(&project).await.unwrap();
    for replica in [&one, &other] {
        eventually("its end is known", || replica.status().connections == 0).await;
        let err = replica.get("acme").await.unwrap_err();
        let kinds = [ErrorKind::BadCredential, ErrorKind::EndpointNotFound];
        assert!(kinds.contains(&err.kind()), "{err:?}");
    }
    assert!(
        scene.stage.emulator.witnesses().is_empty(),
        "no other in its place"
    );
}

#[tokio::test]
async fn when_the_catalogs_server_is_down_known_tenants_go_on_and_unknown_ones_are_told_in_time() {
    let scene = Scene::new().await;
    let router = scene.replica(Ear::Deaf); // what it knows is old after a second
    for tenant in ["acme", "globex"] {
        drop(router.get(tenant).await.unwrap());
    }
    scene.catalog.crash().await;
    scene.stage.suspend("acme").await;
    router.evict("globex");
    let before = router.status().catalog_calls;
    let start = Instant::now();
    let mut told = 0;
    // On a busy machine it takes longer until so many were told.
    while start.elapsed() < 4 * SECOND || told <= 50 && start.elapsed() < 4 * LONG {
        for tenant in ["acme", "globex"] {
            let client = router.get(tenant).await.unwrap();
            assert_eq!(run_on(&client, "SELECT 'on'").await, "on");
        }
        let asked = Instant::now();
        let err = router.get(&format!("new-{told}")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Catalog, "{err:?}");
        assert!(
            err.retry_after().is_some() && asked.elapsed() < LONG / 3,
            "{err:?}"
        );
        told += 1;
        router.evict("globex");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let calls = router.status().catalog_calls - before;
    let outage = start.elapsed();
    println!(
        "{told} unknown tenants refused in {outage:?} of outage, for {calls} calls of the catalog"
    );
    let most = 30.0 * (outage.as_secs_f64() / 4.0).max(1.0);
    assert!(
        told > 50 && u32::try_from(calls).is_ok_and(|calls| f64::from(calls) < most),
        "{told} {calls}"
    );
    scene.catalog.resume().await.unwrap();
    let late = Instant::now() + 2 * LONG;
    while let Err(err) = router.get("initech").await {
        assert!(Instant::now() < late, "{err:?}");
        tokio::time::sleep(err.retry_after().unwrap_or(SECOND / 10)).await;
    }
}
