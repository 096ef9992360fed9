//! A catalog that several replicas share, and what they do with it.

use std::{path::Path, time::Duration};

use tenantry::{
    BoxError, Catalog, Endpoint, KeyRing, TenantId,
    catalog::{AfterWrite, Lease, Leased, Placement, Postgres, PostgresBuilder, Record, State},
    emulator::CatalogServer,
    tokio_postgres::{self, Client, Config, NoTls, SimpleQueryMessage},
};

/// Longer than any test.
pub(crate) const LEASE: Duration = Duration::from_secs(600);
/// A password that must be nowhere to be seen.
pub(crate) const PASSWORD: &str = "hunter2-in-clear";

/// One key.
pub(crate) fn keys() -> KeyRing {
    KeyRing::new("k1", [7; 32])
}

/// A catalog on `server`, as a replica has it.
pub(crate) fn catalog_builder(server: &CatalogServer) -> PostgresBuilder {
    Postgres::builder(server.url())
        .namespace("test")
        .keys(keys())
}

pub(crate) fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

/// A session of a test's own.
pub(crate) async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A session of the superuser in `database` of the server whose socket is in `folder`.
pub(crate) async fn superuser(folder: &Path, database: &str) -> Client {
    let mut config = Config::new();
    config
        .host_path(folder)
        .user("cloud_admin")
        .dbname(database);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The first column of all rows.
pub(crate) async fn column(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.simple_query(sql).await.unwrap();
    let value = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    rows.iter().filter_map(value).collect()
}

pub(crate) async fn take_lease(catalog: &Postgres, id: &str) -> (Lease, Record) {
    let answer = catalog.lease(&tenant(id), "test", LEASE).await.unwrap();
    let Leased::Granted(lease, record) = answer else {
        panic!("another process has the lease on {id}");
    };
    (lease, *record)
}

/// Makes the tenant ready, at a host and with a password of its own.
pub(crate) async fn publish(catalog: &Postgres, id: &str) -> Endpoint {
    let (lease, mut record) = take_lease(catalog, id).await;
    let endpoint = Endpoint::neon(
        format!("{id}.test"),
        format!("{id}-pooler.test"),
        "app",
        "owner",
        PASSWORD,
    );
    record.state = State::Preparing;
    record.placement = Some(Placement::new(format!("project-{id}")));
    record.endpoint = Some(endpoint.clone());
    assert!(
        catalog
            .write(&lease, &record, AfterWrite::Keep)
            .await
            .unwrap()
    );
    record.state = State::Ready;
    assert!(
        catalog
            .write(&lease, &record, AfterWrite::Release)
            .await
            .unwrap()
    );
    endpoint
}

/// Everything that an error says, with all its causes.
pub(crate) fn error_chain(err: &BoxError) -> String {
    let mut text = format!("{err} {err:?}");
    let mut cause = err.source();
    while let Some(err) = cause {
        text.extend([": ".to_owned(), err.to_string(), format!(" {err:?}")]);
        cause = err.source();
    }
    text
}
