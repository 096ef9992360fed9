//! The catalog in a real Postgres: set up by many at once, upgraded, lost and found again, heard of.

use std::time::Duration;

use tenantry::{
    Catalog, Lookup, Namespace, Secret,
    catalog::{AfterWrite, InvalidRecord, Leased, Placement, Postgres, State},
    emulator::CatalogServer,
};
use tokio::time::{Instant, timeout};
use url::Url;

use crate::support::{
    LEASE, LONG, TestEnv, catalog_builder, column, error_chain, keys, publish, session, take_lease,
    tenant,
};

#[tokio::test]
async fn eight_replicas_set_the_catalog_up_at_once() {
    let server = CatalogServer::start().await.unwrap();
    let replicas: Vec<_> = (0..8)
        .map(|_| catalog_builder(&server).build().unwrap())
        .collect();
    let work = replicas
        .iter()
        .map(|it| async move { it.find(&tenant("acme")).await });
    for found in futures_util::future::join_all(work).await {
        assert_eq!(found.unwrap(), None);
    }
    let versions = column(
        &session(&server.url()).await,
        "SELECT version FROM tenantry.migrations ORDER BY 1",
    )
    .await;
    let expected: Vec<_> = (1..=Postgres::latest_version())
        .map(|it| it.to_string())
        .collect();
    assert_eq!(versions, expected);
}

#[tokio::test]
async fn a_catalog_is_upgraded_from_every_version_and_a_newer_one_is_taken_as_it_is() {
    let server = CatalogServer::start().await.unwrap();
    for version in 0..=Postgres::latest_version() {
        let catalog = catalog_builder(&server)
            .schema(format!("v{version}"))
            .build()
            .unwrap();
        catalog.migrate_to(version).await.unwrap();
        publish(&catalog, "acme").await;
        catalog.migrate().await.unwrap();
    }
    let admin = session(&server.url()).await;
    let later = "INSERT INTO v0.migrations (version) VALUES (1000); ALTER TABLE v0.tenants ADD of_a_later_release text";
    admin.batch_execute(later).await.unwrap();
    let catalog = catalog_builder(&server).schema("v0").build().unwrap();
    publish(&catalog, "other").await;
    assert!(catalog.lookup(&tenant("acme")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_ceiling_survives_what_an_older_release_writes_beside_a_newer_one() {
    let server = CatalogServer::start().await.unwrap();
    let older = session(&server.url()).await;
    let catalog = catalog_builder(&server).build().unwrap();
    catalog.migrate_to(1).await.unwrap();
    // As the first release writes: it names every column that it knows, and no other.
    let made = "INSERT INTO tenantry.tenants (namespace, tenant, state, project, direct_host, pooled_host, port,
                                              database, role, is_neon, encryption)
                VALUES ('test', 'acme', 'ready', 'p', 'h', 'h', 5432, 'app', 'owner', true, 'tls')";
    older.batch_execute(made).await.unwrap();
    let (lease, mut record) = take_lease(&catalog, "acme").await;
    assert_eq!((record.state, record.max_connections), (State::Ready, None));
    record.max_connections = Some(3);
    assert!(
        catalog
            .write(&lease, &record, AfterWrite::Keep)
            .await
            .unwrap()
    );
    let written = "UPDATE tenantry.tenants SET state = 'held', plan = 'pro', pooled_host = 'there', version = version + 1,
                                               generation = generation + 1";
    older.batch_execute(written).await.unwrap();
    let (lease, mut record) = take_lease(&catalog, "acme").await;
    assert_eq!(
        (record.state, record.max_connections),
        (State::Held, Some(3))
    );
    assert_eq!(record.plan.as_deref(), Some("pro"));

    record.max_connections = Some(0);
    let err = catalog.write(&lease, &record, AfterWrite::Keep).await;
    assert!(err.unwrap_err().is::<InvalidRecord>());
    // A backup of the older release is restored under a process that runs.
    let added = "SELECT string_agg('DROP ' || attname, ', ') FROM pg_attribute
                 WHERE attrelid = 'tenantry.tenants'::regclass AND (attname IN ('max_connections', 'session_reset')
                       OR attname LIKE 'schema\\_%' AND attname <> 'schema_version')";
    let added = column(&older, added).await.remove(0);
    let restored = format!(
        "ALTER TABLE tenantry.tenants {added}; DROP TABLE tenantry.notes, tenantry.processes; DELETE FROM tenantry.migrations WHERE version > 1"
    );
    older.batch_execute(&restored).await.unwrap();
    let err = catalog.find(&tenant("acme")).await.unwrap_err();
    assert!(err.to_string().contains("the next call upgrades"), "{err}");
    let found = catalog.find(&tenant("acme")).await.unwrap().unwrap();
    assert_eq!(found.max_connections, None);
}

#[tokio::test]
async fn tables_that_are_dropped_are_created_again() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    publish(&catalog, "acme").await;
    let admin = session(&server.url()).await;
    admin
        .batch_execute("DROP SCHEMA tenantry CASCADE")
        .await
        .unwrap();
    assert!(catalog.find(&tenant("acme")).await.is_err());
    assert_eq!(catalog.find(&tenant("acme")).await.unwrap(), None);
}

#[tokio::test]
async fn a_role_without_privileges_is_told_what_to_grant_and_one_that_only_reads_can_look_up() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    let roles = "CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN";
    admin.batch_execute(roles).await.unwrap();
    let of = |role: &str| {
        server
            .url()
            .replace("//neondb_owner@", &format!("//{role}@"))
    };
    let unprivileged = Postgres::builder(of("stranger"))
        .namespace("test")
        .build()
        .unwrap();
    let err = unprivileged.find(&tenant("acme")).await.unwrap_err();
    assert!(err.to_string().contains("CREATE on the database"), "{err}");
    let endpoint = publish(&catalog_builder(&server).build().unwrap(), "acme").await;
    let err = unprivileged.find(&tenant("acme")).await.unwrap_err();
    assert!(err.to_string().contains("USAGE on the schema"), "{err}");
    let grants = "GRANT USAGE ON SCHEMA tenantry TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA tenantry TO reader";
    admin.batch_execute(grants).await.unwrap();
    let reader = Postgres::builder(of("reader"))
        .namespace("test")
        .keys(keys())
        .build()
        .unwrap();
    assert_eq!(
        reader.lookup(&tenant("acme")).await.unwrap(),
        Some(endpoint)
    );
    let err = reader
        .lease(&tenant("acme"), "it", LEASE)
        .await
        .unwrap_err();
    assert!(
        err.to_string().contains("privilege") && !err.is::<InvalidRecord>(),
        "{err}"
    );
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_id_is_refused() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    let sql =
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    admin.batch_execute(sql).await.unwrap();
    let mut url = Url::parse(&server.url()).unwrap();
    url.set_path("latin");
    let catalog = Postgres::builder(url.as_str());
    let catalog = catalog.namespace("test").build().unwrap();
    let err = catalog.find(&tenant("acme")).await.unwrap_err();
    assert!(
        err.to_string().contains("LATIN1") && err.to_string().contains("UTF8"),
        "{err}"
    );
}

#[tokio::test]
async fn namespaces_share_a_catalog_and_no_database() {
    let server = CatalogServer::start().await.unwrap();
    let production = catalog_builder(&server)
        .namespace("production")
        .build()
        .unwrap();
    let staging = catalog_builder(&server)
        .namespace("staging")
        .build()
        .unwrap();
    let endpoint = publish(&production, "acme").await;
    assert_eq!(staging.find(&tenant("acme")).await.unwrap(), None);
    assert_eq!(staging.list(None, 10).await.unwrap(), []);
    assert_eq!(staging.changes(None, 10).await.unwrap().version, 0);
    let (lease, mut record) = take_lease(&staging, "acme").await;
    record.state = State::Preparing;
    record.placement = Some(Placement::new("project-acme"));
    record.endpoint = Some(endpoint);
    let err = staging
        .write(&lease, &record, AfterWrite::Keep)
        .await
        .unwrap_err();
    assert!(
        err.is::<InvalidRecord>() && err.to_string().contains("another tenant has this database"),
        "{err}"
    );
    let other = Namespace::parse("staging").unwrap();
    assert!(
        production
            .bind(&other, true)
            .unwrap_err()
            .to_string()
            .contains("production")
    );
}

#[tokio::test]
async fn another_replica_is_notified_of_a_write_at_once_also_after_its_listener_was_cut_off() {
    let server = CatalogServer::start().await.unwrap();
    let (writer, listener) = (
        catalog_builder(&server).build().unwrap(),
        catalog_builder(&server).build().unwrap(),
    );
    let since = listener.changes(None, 10).await.unwrap().version;
    timeout(LONG, listener.changed()).await.unwrap(); // it listens
    let notified_at = async {
        timeout(LONG, listener.changed()).await.unwrap();
        Instant::now()
    };
    let written_at = async {
        publish(&writer, "acme").await;
        Instant::now()
    };
    let (notified_at, written_at) = tokio::join!(notified_at, written_at);
    assert!(notified_at.saturating_duration_since(written_at) < Duration::from_secs(1));
    let changes = listener.changes(Some(since), 10).await.unwrap();
    assert_eq!(changes.tenants, [tenant("acme")]);
    // A ring that comes while nobody waits is kept; both writes above may have rung.
    while timeout(Duration::from_millis(300), listener.changed())
        .await
        .is_ok()
    {}
    publish(&writer, "other").await;
    timeout(LONG, listener.changed()).await.unwrap();
    while timeout(Duration::from_millis(300), listener.changed())
        .await
        .is_ok()
    {}

    let admin = session(&server.url()).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    assert_eq!(column(&admin, cut).await, ["t"]);
    timeout(LONG, listener.changed())
        .await
        .expect("a nudge after it has connected again");
    while timeout(Duration::from_millis(300), listener.changed())
        .await
        .is_ok()
    {}
    publish(&writer, "third").await;
    timeout(LONG, listener.changed())
        .await
        .expect("it listens again");
}

#[tokio::test]
async fn a_catalog_that_is_dropped_leaves_no_session() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    publish(&catalog, "acme").await;
    timeout(LONG, catalog.changed()).await.unwrap();
    let admin = session(&server.url()).await;
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenantry catalog'";
    assert!(column(&admin, sessions).await.len() >= 2);
    drop(catalog);
    let gone = async {
        while !column(&admin, sessions).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

#[tokio::test]
async fn without_listening_no_notification_comes_and_changes_can_still_be_read() {
    let server = CatalogServer::start().await.unwrap();
    let not_listening = catalog_builder(&server).listen(false).build().unwrap();
    let since = not_listening.changes(None, 10).await.unwrap().version;
    publish(&not_listening, "acme").await;
    assert!(
        timeout(Duration::from_millis(200), not_listening.changed())
            .await
            .is_err()
    );
    assert_eq!(
        not_listening
            .changes(Some(since), 10)
            .await
            .unwrap()
            .tenants,
        [tenant("acme")]
    );
}

#[tokio::test]
async fn a_catalog_that_is_down_fails_in_time_and_comes_back_by_itself() {
    let server = CatalogServer::start().await.unwrap();
    let limit = Duration::from_secs(1);
    let catalog = catalog_builder(&server)
        .timeout(limit)
        .pool_size(2)
        .build()
        .unwrap();
    let endpoint = publish(&catalog, "acme").await;
    timeout(LONG, catalog.changed()).await.unwrap();
    server.stop().await;
    let (began, err) = (
        Instant::now(),
        catalog.find(&tenant("acme")).await.unwrap_err(),
    );
    assert!(
        !err.is::<InvalidRecord>() && began.elapsed() < 2 * limit,
        "{err}"
    );
    server.resume().await.unwrap();
    assert_eq!(
        catalog.lookup(&tenant("acme")).await.unwrap(),
        Some(endpoint.clone())
    );
    timeout(LONG, catalog.changed())
        .await
        .expect("it listens again");
    // One that takes connections and says nothing.
    server.freeze();
    let began = Instant::now();
    let (id, asked) = (tenant("acme"), 6);
    let work = (0..asked).map(|_| catalog.find(&id));
    for answer in futures_util::future::join_all(work).await {
        let err = answer.unwrap_err();
        assert!(
            err.to_string().contains("did not answer within 1s"),
            "{err}"
        );
    }
    assert!(began.elapsed() < 2 * limit, "{:?}", began.elapsed());
    server.thaw();
    let back = async {
        while catalog.lookup(&tenant("acme")).await.ok().flatten() != Some(endpoint.clone()) {}
    };
    timeout(LONG, back).await.unwrap();
    server.crash().await;
    assert!(catalog.find(&tenant("acme")).await.is_err());
    server.resume().await.unwrap();
    assert_eq!(
        catalog.lookup(&tenant("acme")).await.unwrap(),
        Some(endpoint)
    );
}

#[tokio::test]
async fn a_call_that_waits_for_a_lock_gives_up_its_place_at_the_server() {
    let server = CatalogServer::start().await.unwrap();
    let limit = Duration::from_millis(500);
    let catalog = catalog_builder(&server)
        .timeout(limit)
        .pool_size(1)
        .build()
        .unwrap();
    catalog.migrate().await.unwrap();
    publish(&catalog, "acme").await;
    let admin = session(&server.url()).await;
    let watch = session(&server.url()).await;
    admin
        .batch_execute("BEGIN; SELECT FROM tenantry.tenants WHERE tenant = 'acme' FOR UPDATE")
        .await
        .unwrap();
    let err = catalog
        .lease(&tenant("acme"), "it", LEASE)
        .await
        .unwrap_err();
    assert!(
        err.to_string().contains("did not answer within 500ms"),
        "{err}"
    );
    let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let gone = async {
        while !column(&watch, waiting).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, gone)
        .await
        .expect("the statement is cancelled");
    assert!(
        catalog.find(&tenant("acme")).await.unwrap().is_some(),
        "a fresh connection for the next one"
    );
    admin.batch_execute("COMMIT").await.unwrap();
    assert!(matches!(
        catalog.lease(&tenant("acme"), "it", LEASE).await.unwrap(),
        Leased::Granted(..)
    ));
}

#[tokio::test]
async fn a_project_at_neon_can_keep_the_catalog_and_its_certificate_is_verified() {
    let env = TestEnv::new().await;
    let project = env.project().await;
    let endpoint = env.endpoint(&env.emulator.witnesses()[0]).await;
    let proxy = env.emulator.proxy_address();
    let url = |host: &str| {
        Secret::new(format!(
            "host={host} hostaddr={} port={} user={} password={} dbname={} channel_binding=require",
            proxy.ip(),
            proxy.port(),
            endpoint.role,
            endpoint.password.expose(),
            endpoint.database,
        ))
    };
    let trusting = |host: &str| {
        let catalog = Postgres::builder(url(host)).namespace("test").keys(keys());
        catalog.root_certificate(env.emulator.root_certificate())
    };
    let direct = trusting(&endpoint.direct_host).build().unwrap();
    timeout(LONG, direct.changed()).await.unwrap();
    let pooled = trusting(&endpoint.pooled_host)
        .listen(false)
        .build()
        .unwrap();
    let published = publish(&pooled, "acme").await;
    timeout(LONG, direct.changed()).await.unwrap();
    // It sleeps, and takes every connection with it.
    assert!(env.emulator.suspend(&project.endpoints[0].id).await);
    for catalog in [&pooled, &direct] {
        let found = catalog.lookup(&tenant("acme")).await.unwrap();
        assert_eq!(found.as_ref(), Some(&published));
    }
    let untrusting = Postgres::builder(url(&endpoint.direct_host))
        .namespace("test")
        .build()
        .unwrap();
    let err = error_chain(&untrusting.find(&tenant("acme")).await.unwrap_err());
    assert!(err.contains("UnknownIssuer"), "{err}");
}
