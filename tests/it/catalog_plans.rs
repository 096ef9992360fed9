//! Postgres's plans for the catalog's statements when there are many tenants: by an index, never through all rows.

use std::fmt::Write as _;

use serde_json::Value;
use tenantry::{
    Catalog,
    catalog::{AfterWrite, Postgres},
    emulator::CatalogServer,
    tokio_postgres::Client,
};
use tokio::time::timeout;

use crate::support::{LONG, catalog_builder, column, session, take_lease, tenant};

const TENANTS: usize = 50_000;

/// Each statement, the types of its parameters that Postgres cannot infer, and values of the first ones.
const CASES: &[(&str, &str, &str)] = &[
    ("find", "text, text", "'test', 't25000'"),
    ("find_many", "text, text[]", "'test', '{MANY}'"),
    ("list", "text, text, bigint", "'test', 't25000', 1000"),
    (
        "lease",
        "text, text, text, bigint",
        "'test', 't25000', 'one', 30000000",
    ),
    (
        "write",
        "text, text, text, bigint, text[], bigint, text[], bytea[], boolean, text",
        "'test', 't25000', 'one', 1, '{ready}', NULL, '{}', '{}', true, 'channel'",
    ),
    (
        "release",
        "text, text, text, bigint",
        "'test', 't25000', 'one', 1",
    ),
    ("changes", "text, bigint, bigint", "'test', 49000, 501"),
    ("note", "text, text", "'test', 'campaign'"),
    (
        "write_note",
        "text, text, text, bigint",
        "'test', 'campaign', '{}', 1",
    ),
    (
        "register",
        "text, text, bigint, bigint",
        "'test', 'a', 1, 2",
    ),
    ("deregister", "text, text", "'test', 'a'"),
    ("processes", "text", "'test'"),
    (
        "reseal",
        "text, text, text[], bytea[], bytea[], bytea[]",
        "'test', 'k', '{t1,t2}', '{a,b}', '{c,d}', '{e,f}'",
    ),
];

/// May read all rows, as an operator asks about all: for passwords with an old key, and for the number of tenants.
const WALKS: [&str; 2] = ["unsealed_so_far", "tally"];

/// A catalog with many tenants, whose statistics Postgres has not collected.
async fn filled() -> (CatalogServer, Postgres, Client) {
    let server = CatalogServer::start().await.unwrap();
    let migrating = catalog_builder(&server).build().unwrap();
    migrating.migrate().await.unwrap();
    drop(migrating);
    let admin = session(&server.url()).await;
    until_alone(&admin).await;
    let fill = format!(
        "ALTER TABLE tenantry.tenants SET (autovacuum_enabled = false);
         INSERT INTO tenantry.namespaces VALUES ('test', {TENANTS});
         INSERT INTO tenantry.tenants (namespace, tenant, state, project, direct_host, pooled_host, port, database,
                                       role, is_neon, encryption, version)
         SELECT 'test', 't' || n, 'ready', 'p-' || n, 'h' || n, 'p' || n, 5432, 'app', 'owner', true, 'tls', n
         FROM generate_series(1, {TENANTS}) n"
    );
    admin.batch_execute(&fill).await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    (server, catalog, admin)
}

/// Waits until `admin` is the only session. The others have then reported what they counted.
async fn until_alone(admin: &Client) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    let end = async { while column(admin, sessions).await != ["1"] {} };
    timeout(LONG, end).await.unwrap();
}

/// The plan of a statement that is called with `values`, and with NULL for all further parameters.
async fn plan(admin: &Client, sql: &str, types: &str, values: &str) -> Value {
    let count = (1..100).rfind(|number| sql.contains(&format!("${number}")));
    let further = count.unwrap() - types.split(',').count();
    let values = format!("{values}{}", ", NULL".repeat(further));
    let many: Vec<_> = (1..=500).map(|number| format!("t{number}")).collect();
    let values = values.replace("MANY", &many.join(","));
    let prepare = format!("PREPARE asked ({types}) AS {sql}");
    admin.batch_execute(&prepare).await.unwrap();
    let lines = column(
        admin,
        &format!("EXPLAIN (FORMAT JSON) EXECUTE asked ({values})"),
    )
    .await;
    admin.batch_execute("DEALLOCATE asked").await.unwrap();
    serde_json::from_str(&lines.join("\n")).unwrap()
}

/// Notes each part of `plan` that reads all tenants.
fn note_walks(plan: &Value, noted: &mut String) {
    let named = |key: &str| plan.get(key).and_then(Value::as_str).unwrap_or_default();
    if named("Node Type") == "Seq Scan" && named("Relation Name") == "tenants" {
        noted.push_str("a scan of all tenants");
    }
    let children = match plan {
        Value::Array(all) => all.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    for child in children {
        note_walks(child, noted);
    }
}

#[tokio::test]
async fn every_statement_finds_its_rows_by_an_index() {
    let (_server, catalog, admin) = filled().await;
    let mut walks = String::new();
    for statistics in ["SELECT 1", "ANALYZE tenantry.tenants, tenantry.namespaces"] {
        admin.batch_execute(statistics).await.unwrap();
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let set = format!("SET plan_cache_mode = {mode}");
            admin.batch_execute(&set).await.unwrap();
            for (name, sql) in catalog.statements_by_name() {
                let case = CASES.iter().find(|(it, ..)| *it == name);
                let Some((_, types, values)) = case else {
                    assert!(WALKS.contains(&name), "{name}: a statement without a case");
                    continue;
                };
                let plan = plan(&admin, sql, types, values).await;
                let mut noted = String::new();
                note_walks(&plan, &mut noted);
                if !noted.is_empty() {
                    writeln!(walks, "{name}, {mode}, {statistics}: {noted}\n{plan:#}").unwrap();
                }
            }
        }
    }
    assert!(walks.is_empty(), "{walks}");
}

#[tokio::test]
async fn no_call_reads_all_tenants() {
    let (server, catalog, admin) = filled().await;
    let counter = |name: &str| {
        let sql = format!("SELECT {name} FROM pg_stat_user_tables WHERE relname = 'tenants'");
        let admin = &admin;
        async move { column(admin, &sql).await[0].parse::<u64>().unwrap() }
    };
    let before = counter("seq_scan").await;
    for statistics in ["SELECT 1", "ANALYZE tenantry.tenants, tenantry.namespaces"] {
        admin.batch_execute(statistics).await.unwrap();
        let many: Vec<_> = (0..500)
            .map(|number| tenant(&format!("t{number}")))
            .collect();
        assert_eq!(catalog.find_many(&many).await.unwrap().len(), 500);
        assert_eq!(
            catalog.list(Some(&many[7]), 1000).await.unwrap().len(),
            1000
        );
        let changes = catalog.changes(Some(TENANTS as u64 - 400), 500).await;
        assert!(changes.unwrap().tenants.len() >= 400);
        let (lease, record) = take_lease(&catalog, "t25000").await;
        assert!(
            catalog
                .write(&lease, &record, AfterWrite::Keep)
                .await
                .unwrap()
        );
        catalog.release(&lease).await.unwrap();
        assert_eq!(
            catalog.find(&many[7]).await.unwrap().unwrap().tenant,
            many[7]
        );
    }
    drop(catalog);
    until_alone(&admin).await;
    assert!(counter("idx_scan").await >= 14);
    assert_eq!(counter("seq_scan").await, before);
    drop(server);
}
