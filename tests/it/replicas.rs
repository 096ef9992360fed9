//! Two app servers on one catalog in Postgres: what the one does, the other serves, without a restart.

use std::time::Duration;

use tenantry::{
    ErrorKind, Provisioner, TenantRouter,
    catalog::{Postgres, PostgresBuilder},
    emulator::CatalogServer,
};
use tokio::time::Instant;

use crate::support::{LONG, TestEnv, eventually, keys, query_text};

const SECOND: Duration = Duration::from_secs(1);

/// The way in which a replica learns what others have changed.
#[derive(Clone, Copy, Debug)]
enum ChangeSource {
    /// The catalog tells.
    Listens,
    /// It asks from time to time.
    Polls,
    /// Neither: only what was read long ago is read again.
    ReadsAgain,
}

/// An emulator, a catalog, and replicas.
struct Fixture {
    env: TestEnv,
    catalog: CatalogServer,
}

impl Fixture {
    async fn new() -> Self {
        Self {
            env: TestEnv::new().await,
            catalog: CatalogServer::start().await.unwrap(),
        }
    }

    fn catalog_builder(&self) -> PostgresBuilder {
        Postgres::builder(self.catalog.url())
            .keys(keys())
            .timeout(SECOND)
    }

    fn replica(&self, source: ChangeSource) -> TenantRouter {
        let catalog = self
            .catalog_builder()
            .listen(matches!(source, ChangeSource::Listens));
        let provisioner =
            Provisioner::new(catalog.build().unwrap(), self.env.neon(), "test").on_first_access();
        let router = self.env.configure(TenantRouter::provisioning(provisioner));
        let (poll, ttl) = match source {
            ChangeSource::Listens => (None, 600 * SECOND),
            ChangeSource::Polls => (Some(SECOND / 5), 600 * SECOND),
            ChangeSource::ReadsAgain => (None, SECOND),
        };
        let router = router.catalog_poll(poll).catalog_ttl(ttl);
        router.catalog_timeout(SECOND).build().unwrap()
    }

    /// Until `other` refuses the tenant that is deleted now, how long it took.
    async fn time_until_deletion_seen(&self, source: ChangeSource, tenant: &str) -> Duration {
        let (one, other) = (self.replica(ChangeSource::Listens), self.replica(source));
        drop(one.get(tenant).await.unwrap());
        drop(other.get(tenant).await.unwrap());
        let (fleet, id) = (one.fleet().unwrap(), tenant.to_owned());
        // The database is still there until the deletion is over.
        let deletion = async move { fleet.delete_after(&id, 10 * SECOND).await };
        let deletion = tokio::spawn(deletion);
        eventually("the tombstone stands", || one.status().connections == 0).await;
        let start = Instant::now();
        loop {
            match other.get(tenant).await {
                Err(err) => {
                    assert_eq!(err.kind(), ErrorKind::Deleted, "{source:?}: {err:?}");
                    break;
                }
                // A connection that is open is used as long as nothing is known to be wrong with it.
                Ok(client) if matches!(source, ChangeSource::ReadsAgain) => {
                    drop(client);
                    self.env.suspend(tenant).await;
                }
                Ok(client) => drop(client),
            }
            assert!(start.elapsed() < 10 * SECOND, "{source:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        deletion.abort();
        start.elapsed()
    }
}

#[tokio::test]
async fn a_tenant_created_by_one_replica_is_served_by_the_other() {
    let fixture = Fixture::new().await;
    let (one, other) = (
        fixture.replica(ChangeSource::Listens),
        fixture.replica(ChangeSource::Listens),
    );
    for (here, there, tenant) in [(&one, &other, "acme"), (&other, &one, "globex")] {
        let client = here.get(tenant).await.unwrap();
        query_text(
            &client,
            &format!("CREATE TABLE t AS SELECT '{tenant}' AS owner"),
        )
        .await;
        let client = there.get(tenant).await.unwrap();
        assert_eq!(query_text(&client, "SELECT owner FROM t").await, tenant);
    }
    let provisioned = one.status().provisioned + other.status().provisioned;
    assert_eq!(
        (provisioned, fixture.env.emulator.witnesses().len()),
        (2, 2)
    );
}

#[tokio::test]
async fn a_deletion_elsewhere_is_noticed_at_once_by_listening_and_soon_without() {
    let fixture = Fixture::new().await;
    let listening = fixture
        .time_until_deletion_seen(ChangeSource::Listens, "acme")
        .await;
    let polling = fixture
        .time_until_deletion_seen(ChangeSource::Polls, "globex")
        .await;
    let reading_again = fixture
        .time_until_deletion_seen(ChangeSource::ReadsAgain, "initech")
        .await;
    println!(
        "noticed after {listening:?} by NOTIFY, {polling:?} by polling, {reading_again:?} by neither"
    );
    assert!(listening < SECOND, "{listening:?}");
    assert!(polling < 2 * SECOND, "{polling:?}");
    assert!(reading_again < 5 * SECOND, "{reading_again:?}");
}

#[tokio::test]
async fn a_password_rotated_or_an_endpoint_moved_is_found_by_all() {
    let fixture = Fixture::new().await;
    let replicas = [
        ChangeSource::Listens,
        ChangeSource::Polls,
        ChangeSource::ReadsAgain,
    ]
    .map(|source| fixture.replica(source));
    for replica in &replicas {
        drop(replica.get("acme").await.unwrap());
    }
    let id = fixture.env.witness("acme").endpoint_id;
    fixture.env.emulator.rotate_password(&id).await.unwrap();
    fixture.env.suspend("acme").await;
    for replica in &replicas {
        let client = replica.get("acme").await.unwrap();
        assert_eq!(query_text(&client, "SELECT 'here'").await, "here");
    }
    fixture.env.emulator.move_endpoint(&id).await.unwrap();
    for replica in &replicas {
        eventually("its end is known", || replica.status().connections == 0).await;
        let client = replica.get("acme").await.unwrap();
        assert_eq!(query_text(&client, "SELECT 'here'").await, "here");
    }
}

#[tokio::test]
async fn a_project_deleted_at_neon_is_an_error_that_says_so_and_no_empty_database() {
    let fixture = Fixture::new().await;
    let (one, other) = (
        fixture.replica(ChangeSource::Listens),
        fixture.replica(ChangeSource::Polls),
    );
    drop(one.get("acme").await.unwrap());
    drop(other.get("acme").await.unwrap());
    let project = fixture.env.witness("acme").project_id;
    fixture.env.neon().delete_project(&project).await.unwrap();
    for replica in [&one, &other] {
        eventually("its end is known", || replica.status().connections == 0).await;
        let err = replica.get("acme").await.unwrap_err();
        let kinds = [ErrorKind::BadCredential, ErrorKind::EndpointNotFound];
        assert!(kinds.contains(&err.kind()), "{err:?}");
    }
    assert!(
        fixture.env.emulator.witnesses().is_empty(),
        "no other in its place"
    );
}

#[tokio::test]
async fn while_the_catalogs_server_is_down_known_tenants_are_served_and_unknown_ones_fail_in_time()
{
    let fixture = Fixture::new().await;
    let router = fixture.replica(ChangeSource::ReadsAgain); // what it knows is old after a second
    for tenant in ["acme", "globex"] {
        drop(router.get(tenant).await.unwrap());
    }
    fixture.catalog.crash().await;
    fixture.env.suspend("acme").await;
    router.evict("globex");
    let before = router.status().catalog_calls;
    let start = Instant::now();
    let mut refused = 0;
    // On a busy machine it takes longer until so many were told.
    while start.elapsed() < 4 * SECOND || refused <= 50 && start.elapsed() < 4 * LONG {
        for tenant in ["acme", "globex"] {
            let client = router.get(tenant).await.unwrap();
            assert_eq!(query_text(&client, "SELECT 'on'").await, "on");
        }
        let asked = Instant::now();
        let err = router.get(&format!("new-{refused}")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Catalog, "{err:?}");
        assert!(
            err.retry_after().is_some() && asked.elapsed() < LONG / 3,
            "{err:?}"
        );
        refused += 1;
        router.evict("globex");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let calls = router.status().catalog_calls - before;
    let outage = start.elapsed();
    println!(
        "{refused} unknown tenants refused in {outage:?} of outage, for {calls} calls of the catalog"
    );
    let most = 30.0 * (outage.as_secs_f64() / 4.0).max(1.0);
    assert!(
        refused > 50 && u32::try_from(calls).is_ok_and(|calls| f64::from(calls) < most),
        "{refused} {calls}"
    );
    fixture.catalog.resume().await.unwrap();
    let late = Instant::now() + 2 * LONG;
    while let Err(err) = router.get("initech").await {
        assert!(Instant::now() < late, "{err:?}");
        tokio::time::sleep(err.retry_after().unwrap_or(SECOND / 10)).await;
    }
}
