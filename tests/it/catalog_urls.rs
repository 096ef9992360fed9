//! Connection strings of a catalog, as other clients of Postgres have them.

use std::str::FromStr;

use sqlx::{Connection as _, postgres::PgConnectOptions};
use tenantry::emulator::CatalogServer;
use url::Url;

use crate::support::{column, session};

#[tokio::test]
async fn the_url_of_a_catalog_server_is_a_url_to_every_client() {
    let server = CatalogServer::start().await.unwrap();
    for url in [server.url(), server.pooled_url().await.unwrap()] {
        let parsed = Url::parse(&url).unwrap();
        assert_eq!(
            (parsed.scheme(), parsed.username(), parsed.path()),
            ("postgres", "neondb_owner", "/neondb"),
            "{url}"
        );
        let options = PgConnectOptions::from_str(&url).unwrap();
        let mut guest = sqlx::PgConnection::connect_with(&options).await.unwrap();
        let who = "SELECT current_user || ' in ' || current_database()";
        let told: String = sqlx::query_scalar(who).fetch_one(&mut guest).await.unwrap();
        assert_eq!(told, "neondb_owner in neondb", "{url}");
        assert_eq!(column(&session(&url).await, who).await, [told], "{url}");
    }
}
