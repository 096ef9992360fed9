//! Connection strings of a catalog, as other clients of Postgres have them.

use std::str::FromStr;

use sqlx::{Connection as _, postgres::PgConnectOptions};
use tenantry::{Catalog, catalog::Postgres, emulator::CatalogServer};
use url::Url;

use crate::support::{column, error_chain, session, tenant};

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
        let mut sqlx_client = sqlx::PgConnection::connect_with(&options).await.unwrap();
        let query = "SELECT current_user || ' in ' || current_database()";
        let answer: String = sqlx::query_scalar(query)
            .fetch_one(&mut sqlx_client)
            .await
            .unwrap();
        assert_eq!(answer, "neondb_owner in neondb", "{url}");
        assert_eq!(column(&session(&url).await, query).await, [answer], "{url}");
    }
}

fn build(text: &str) -> Result<Postgres, String> {
    let built = Postgres::builder(text).namespace("test").build();
    built.map_err(|err| err.to_string())
}

#[tokio::test]
async fn a_connection_string_is_taken_as_libpq_takes_it() {
    for options in [
        "sslmode=verify-full",
        "sslmode=verify-ca&sslrootcert=system",
        "sslmode=require&channel_binding=require",
        "gssencmode=disable&keepalives_count=3&client_encoding=utf8",
        "ssl=true",
    ] {
        let url = format!("postgres://app:hunter2@db.example.org/app?{options}");
        build(&url).unwrap_or_else(|err| panic!("{options}: {err}"));
    }
    // As a file has it whose last line ends.
    let server = CatalogServer::start().await.unwrap();
    for text in [
        format!("{}\n", server.url()),
        format!(
            " {}?sslmode=verify-full&gssencmode=prefer\r\n",
            server.url()
        ),
    ] {
        let catalog = build(&text).unwrap();
        let found = catalog.find(&tenant("acme")).await;
        assert_eq!(found.map_err(|err| error_chain(&err)), Ok(None), "{text:?}");
    }
}

/// An option that is not taken, and what its error says.
const REFUSED: [(&str, &str); 12] = [
    ("sslmode=allow", "verify-full"),
    ("sslmode=hunter2", "verify-full"),
    (
        "sslrootcert=/etc/hunter2.pem",
        "PostgresBuilder::root_certificate",
    ),
    ("sslcert=hunter2.pem", "password over TLS"),
    ("sslcrl=hunter2.pem", "leave it out"),
    ("channel_binding=hunter2", "disable, prefer or require"),
    ("target_session_attrs=prefer-standby", "read-write"),
    ("passfile=/etc/hunter2", "into the connection string"),
    ("service=hunter2", "write out"),
    ("gssencmode=require", "password over TLS"),
    ("schema=hunter2", "PostgresBuilder::schema"),
    ("port=hunter2", "port"),
];

#[test]
fn unsupported_options_are_refused_with_an_alternative() {
    for (option, says) in REFUSED {
        let (name, _) = option.split_once('=').unwrap();
        for text in [
            format!("postgres://app:hunter2@db.example.org/app?{option}"),
            format!("host=db.example.org user=app password=hunter2 {option}"),
        ] {
            let err = build(&text).unwrap_err();
            assert!(err.contains(says) && err.contains(name), "{option}: {err}");
            assert!(!err.contains("hunter2"), "{option}: {err}");
        }
    }
}

#[test]
fn no_error_shows_a_piece_of_a_password_that_is_not_encoded() {
    for text in [
        "postgres://app:hunter2&hunter2=hunter2@db.example.org",
        "postgres://app:x@db.example.org/app?hunter2",
        "postgres://app:x@db.example.org/app?hunter2=hunter2",
        "postgres://app:hunter2\nhunter2@db.example.org/app",
        "postgres://app:x?hunter2=/hunter2@db.example.org/app",
        "postgres://app:x@db.example.org:hunter2/app",
        "postgres://app:x@[hunter2/app",
        "postgres://hunter2%ff@db.example.org/app",
        "host=db.example.org user=app password=correct hunter2 battery=hunter2",
        "host=db.example.org user=app password='hunter2",
        "host=db.example.org user=app password=x hunter2",
        "hunter2",
    ] {
        if let Err(err) = build(text) {
            assert!(!err.contains("hunter2"), "{text}: {err}");
        }
    }
}
