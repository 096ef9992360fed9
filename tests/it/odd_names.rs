//! Databases, roles and passwords of characters that mean something in a URL, or nothing anywhere.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tenantry::{
    Login, Lookup,
    catalog::Postgres,
    emulator::CatalogServer,
    tokio_postgres::{Config, NoTls, error::SqlState},
};
use tokio::time::Instant;

use crate::support::{LONG, TestEnv, folder, keys, publish, query_text, superuser, tenant};

const ODD_DATABASE: &str = "my db/?#%20\u{fc}";
const ODD_ROLE: &str = "r&r:%41@\u{fc}";
const ODD_PASSWORD: &str = "p@ss:w/o?r#d %25 +\u{e9}";

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn a_catalogs_url_may_have_any_password_role_and_database() {
    let server = CatalogServer::start().await.unwrap();
    let folder = folder(&server);
    let operator = superuser(&folder, "neondb").await;
    let create = format!("CREATE ROLE \"{ODD_ROLE}\" LOGIN PASSWORD '{ODD_PASSWORD}'");
    operator.batch_execute(&create).await.unwrap();
    let create = format!("CREATE DATABASE \"{ODD_DATABASE}\" OWNER \"{ODD_ROLE}\"");
    operator.batch_execute(&create).await.unwrap();
    let file = operator.query_one("SHOW hba_file", &[]).await.unwrap();
    let rules = format!(
        "COPY (VALUES ('local all \"{ODD_ROLE}\" scram-sha-256'), ('local all all trust')) TO '{}'; \
         SELECT pg_reload_conf()",
        file.get::<_, &str>(0)
    );
    operator.batch_execute(&rules).await.unwrap();

    let url = |password: &str| {
        let [role, host, database] =
            [ODD_ROLE, folder.to_str().unwrap(), ODD_DATABASE].map(encoded);
        format!(
            "postgres://{role}:{}@{host}:5432/{database}",
            encoded(password)
        )
    };
    let start = Instant::now();
    loop {
        let wrong: Config = url("another").parse().unwrap();
        if let Err(err) = wrong.connect(NoTls).await {
            assert_eq!(err.code(), Some(&SqlState::INVALID_PASSWORD), "{err:?}");
            break;
        }
        assert!(start.elapsed() < LONG, "it never asks for a password");
    }
    let catalog = Postgres::builder(url(ODD_PASSWORD)).namespace("test");
    let catalog = catalog.keys(keys()).build().unwrap();
    let published = publish(&catalog, "acme").await;
    let found = catalog.lookup(&tenant("acme")).await;
    assert_eq!(found.unwrap(), Some(published));
    let there = superuser(&folder, ODD_DATABASE).await;
    let owner = "SELECT tableowner::text FROM pg_tables WHERE schemaname = 'tenantry' LIMIT 1";
    let owner = there.query_one(owner, &[]).await.unwrap();
    assert_eq!(owner.get::<_, &str>(0), ODD_ROLE);
}

/// Creates a project with an odd database and an odd role; its id.
async fn odd_project(env: &TestEnv) -> String {
    let branch = json!({ "database_name": ODD_DATABASE, "role_name": ODD_ROLE });
    let body = json!({ "project": { "name": "odd", "branch": branch } });
    let http = reqwest::Client::builder().tls_backend_preconfigured((*env.tls_config()).clone());
    let request = http
        .build()
        .unwrap()
        .post(format!("{}/projects", env.emulator.api_url()))
        .bearer_auth(env.emulator.api_key().expose())
        .json(&body);
    let answer = request.send().await.unwrap().error_for_status().unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    let id = answer["project"]["id"].as_str().unwrap().to_owned();
    env.neon().wait_for_operations(&id).await.unwrap();
    id
}

const USER_AND_DATABASE: &str = "SELECT current_user || ' in ' || current_database()";

#[tokio::test]
async fn a_tenant_may_live_in_any_database_under_any_role() {
    let env = TestEnv::new().await;
    let project = odd_project(&env).await;
    let router = env.router();
    let fleet = router.fleet().unwrap();
    let login = Login::new(ODD_DATABASE, ODD_ROLE);
    fleet.import("acme", &project, Some(login)).await.unwrap();
    let there = format!("{ODD_ROLE} in {ODD_DATABASE}");
    let pooled = router.get("acme").await.unwrap();
    assert_eq!(query_text(&pooled, USER_AND_DATABASE).await, there);
    let direct = router.direct("acme").await.unwrap();
    let row = direct.query_one(USER_AND_DATABASE, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), there);

    // As an application has it that keeps Neon's URIs in a table of its own.
    let witness = env.emulator.witnesses().swap_remove(0);
    let neon = env.neon();
    let id = &witness.endpoint_id;
    let uri = neon.get_connection_uri(&project, id, ODD_DATABASE, ODD_ROLE, true);
    let config: Config = uri.await.unwrap().expose().parse().unwrap();
    assert_eq!(config.get_user(), Some(ODD_ROLE));
    assert_eq!(config.get_dbname(), Some(ODD_DATABASE));
}
