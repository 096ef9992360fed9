//! A plain Postgres server: what one caller leaves in a session does not reach the next one.

use std::{future::Future, io};

use futures_util::FutureExt;
use tenantry::{
    Endpoint, Error, RouterBuilder, SessionReset, TenantClient, TenantRouter,
    emulator::CatalogServer,
    tokio_postgres::{self, Config, NoTls, config::Host},
};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    net::UnixStream,
    task::yield_now,
};

use crate::support::query_text;

const PIPE: usize = 16 * 1024;

/// A plain Postgres server with the database of one tenant.
struct PlainServer {
    // Ends when it is dropped.
    server: CatalogServer,
}

impl PlainServer {
    async fn start() -> Self {
        let server = CatalogServer::start().await.unwrap();
        Self { server }
    }

    /// A router whose tenant has one connection to the server.
    fn router(&self) -> TenantRouter {
        self.router_with(|endpoint| endpoint)
    }

    /// The same, where `set_up` says more of the endpoint.
    fn router_with(&self, set_up: impl Fn(Endpoint) -> Endpoint) -> TenantRouter {
        let builder = router_at(&self.server.url(), set_up);
        builder.pool_size(1).build().unwrap()
    }
}

/// A router whose tenants all live at `url`, where `set_up` says more.
fn router_at(url: &str, set_up: impl Fn(Endpoint) -> Endpoint) -> RouterBuilder {
    let config: Config = url.parse().unwrap();
    let (database, role) = (config.get_dbname().unwrap(), config.get_user().unwrap());
    let endpoint = set_up(Endpoint::postgres("localhost", database, role, "").without_tls());
    let builder = TenantRouter::builder(move |_| {
        let endpoint = endpoint.clone();
        async move { Ok(Some(endpoint)) }
    });
    builder.open_streams(move |_, _| connect_socket(&config))
}

/// A pipe to the socket that `config` names.
fn connect_socket(
    config: &Config,
) -> impl Future<Output = io::Result<DuplexStream>> + Send + use<> {
    let [Host::Unix(folder)] = config.get_hosts() else {
        panic!("the server has no socket");
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let path = folder.join(format!(".s.PGSQL.{port}"));
    async move {
        let mut socket = UnixStream::connect(path).await?;
        let (near, mut far) = duplex(PIPE);
        tokio::spawn(async move {
            let _ = copy_bidirectional(&mut far, &mut socket).await; // either end may have gone
        });
        Ok(near)
    }
}

/// Returns the process id of the server's session behind `client`.
async fn backend_pid(client: &TenantClient) -> String {
    query_text(client, "SELECT pg_backend_pid()").await
}

/// A table of which each role sees its own rows.
const ROWS_BY_ROLE: &str = "
    CREATE ROLE alice; CREATE ROLE bob; GRANT alice TO CURRENT_USER;
    CREATE TABLE notes (owner text DEFAULT current_user, note text);
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON notes USING (owner = current_user);
    GRANT SELECT, INSERT ON notes TO alice, bob;
    INSERT INTO notes VALUES ('alice', 'of alice'), ('bob', 'of bob')";

#[tokio::test]
async fn a_role_that_one_caller_set_does_not_reach_the_next_one_under_row_level_security() {
    let plain = PlainServer::start().await;
    let router = plain.router();
    let client = router.get("acme").await.unwrap();
    client.batch_execute(ROWS_BY_ROLE).await.unwrap();
    drop(client);

    let client = router.get("acme").await.unwrap();
    client.batch_execute("SET ROLE alice").await.unwrap();
    assert_eq!(
        query_text(&client, "SELECT note FROM notes").await,
        "of alice"
    );
    let session = backend_pid(&client).await;
    drop(client);

    let client = router.get("acme").await.unwrap();
    assert_eq!(
        query_text(&client, "SELECT current_user").await,
        "neondb_owner"
    );
    assert_eq!(query_text(&client, "SELECT count(*) FROM notes").await, "2");
    assert_eq!(
        backend_pid(&client).await,
        session,
        "it was reset, not closed"
    );
}

/// The statements by which a caller leaves something, each with a query and its answer where nothing is left.
const LEFTOVERS: &[(&str, &str, &str)] = &[
    (
        "SET search_path TO pg_catalog",
        "SHOW search_path",
        "\"$user\", public",
    ),
    (
        "SELECT set_config('app.who', 'alice', false)",
        "SELECT current_setting('app.who', true)",
        "",
    ),
    (
        "CREATE TEMP TABLE t AS SELECT 1",
        "SELECT to_regclass('pg_temp.t')",
        "",
    ),
    (
        "SELECT 1 AS n INTO TEMPORARY u",
        "SELECT to_regclass('pg_temp.u')",
        "",
    ),
    (
        "SELECT pg_advisory_lock(1)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "0",
    ),
    (
        "LISTEN changes",
        "SELECT count(*) FROM pg_listening_channels()",
        "0",
    ),
    (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        "0",
    ),
    (
        "PREPARE p AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'",
        "0",
    ),
    (
        "DO $$ BEGIN PERFORM set_config('app.who', 'alice', false); END $$",
        "SELECT current_setting('app.who', true)",
        "",
    ),
    (
        "CREATE ROLE alice; GRANT alice TO CURRENT_USER; SET ROLE alice",
        "SELECT current_user",
        "neondb_owner",
    ),
];

/// Returns the statements of `LEFTOVERS` that affect the next caller.
async fn leftovers_seen(router: &TenantRouter) -> Vec<&'static str> {
    let mut reached = Vec::new();
    for (leaves, asks, clean) in LEFTOVERS {
        let client = router.get("acme").await.unwrap();
        client.batch_execute(leaves).await.unwrap();
        assert_ne!(query_text(&client, asks).await, *clean, "{leaves}");
        drop(client);
        let client = router.get("acme").await.unwrap();
        reached.extend((query_text(&client, asks).await != *clean).then_some(*leaves));
    }
    reached
}

#[tokio::test]
async fn nothing_that_a_caller_leaves_in_a_session_reaches_the_next_one() {
    let plain = PlainServer::start().await;
    assert_eq!(leftovers_seen(&plain.router()).await, [""; 0]);
}

#[tokio::test]
async fn everything_reaches_the_next_caller_where_sessions_are_never_reset() {
    let plain = PlainServer::start().await;
    let router = plain.router_with(|endpoint| endpoint.session_reset(SessionReset::Never));
    assert_eq!(leftovers_seen(&router).await.len(), LEFTOVERS.len());
}

#[tokio::test]
async fn session_settings_of_a_transaction_do_not_reach_the_next_caller() {
    let plain = PlainServer::start().await;
    let router = plain.router();
    for _ in 0..2 {
        let set = router.transaction("acme", |tx| async move {
            tx.batch_execute("SET app.who = 'alice'").await?;
            Ok::<_, Error>(())
        });
        set.await.unwrap();
        let client = router.get("acme").await.unwrap();
        let user = query_text(&client, "SELECT current_setting('app.who', true)").await;
        assert_eq!(user, "");
    }
}

#[tokio::test]
async fn prepared_statements_outlive_a_reset() {
    const ASKS: &str = "SELECT current_user::text, $1::int4";
    let plain = PlainServer::start().await;
    let router = plain.router();
    let moods = "CREATE TYPE mood0 AS ENUM ('sad'); CREATE TYPE mood1 AS ENUM ('sad')";
    let client = router.get("acme").await.unwrap();
    client.batch_execute(moods).await.unwrap();
    let session = backend_pid(&client).await;
    drop(client);
    for n in [0, 1] {
        let client = router.get("acme").await.unwrap();
        let asks = client.prepare_cached(ASKS).await.unwrap();
        let row = client.query_one(&asks, &[&n]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "neondb_owner");
        assert_eq!(client.statement_cache.size(), 1);
        // The driver looks the type up by statements of its own, which it prepares once.
        let mood = format!("SELECT 'sad'::mood{n}");
        client.query_one(&mood, &[]).await.unwrap();
        client.batch_execute("SET app.who = 'alice'").await.unwrap();
        assert_eq!(backend_pid(&client).await, session);
    }
}

#[tokio::test]
async fn a_prepared_statement_that_leaves_something_does_so_each_time_it_is_run() {
    const SETS: &str = "SELECT set_config('app.who', $1, false)";
    let plain = PlainServer::start().await;
    let router = plain.router();
    for _ in 0..3 {
        let client = router.get("acme").await.unwrap();
        let user = query_text(&client, "SELECT current_setting('app.who', true)").await;
        assert_eq!(user, "");
        let sets = client.prepare_cached(SETS).await.unwrap();
        client.query_one(&sets, &[&"alice"]).await.unwrap();
    }
    let client = router.get("acme").await.unwrap();
    drop(client.prepare_cached(SETS).await.unwrap());
    assert_eq!(client.statement_cache.size(), 1, "it was prepared once");
}

#[tokio::test]
async fn statements_that_are_gone_are_not_handed_on() {
    const ASKS: &str = "SELECT $1::int4";
    let plain = PlainServer::start().await;
    let router = plain.router();
    for gone in ["DISCARD ALL", "DEALLOCATE ALL", "SELECT 1; deallocate all"] {
        for _ in 0..2 {
            let client = router.get("acme").await.unwrap();
            let asks = client.prepare_cached(ASKS).await.unwrap();
            client.query_one(&asks, &[&1]).await.expect(gone);
            client.batch_execute(gone).await.unwrap();
        }
    }
    let client = router.get("acme").await.unwrap();
    let session = backend_pid(&client).await;
    client.batch_execute("DISCARD ALL").await.unwrap();
    drop(client);
    let client = router.get("acme").await.unwrap();
    assert_eq!(backend_pid(&client).await, session, "there were none");
}

#[tokio::test]
async fn an_abandoned_request_leaves_nothing_in_the_session() {
    let plain = PlainServer::start().await;
    let router = plain.router();
    for waits in [false, true] {
        let client = router.get("acme").await.unwrap();
        let next = router.get("acme");
        tokio::pin!(next);
        if waits {
            assert!(next.as_mut().now_or_never().is_none(), "it is in the queue");
        }
        // Sent, and not yet written when the connection comes back.
        let set = client.batch_execute("SET app.who = 'alice'");
        assert!(set.now_or_never().is_none());
        drop(client);
        let client = next.await.unwrap();
        let user = query_text(&client, "SELECT current_setting('app.who', true)").await;
        assert_eq!(user, "", "{waits}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_request_leaves_nothing_though_its_answer_comes_during_the_handover() {
    let plain = PlainServer::start().await;
    let router = plain.router();
    for round in 0..300 {
        let client = router.get("acme").await.unwrap();
        let next = {
            let router = router.clone();
            tokio::spawn(async move { router.get("acme").await.unwrap() })
        };
        if round % 2 == 0 {
            yield_now().await;
        }
        drop(client.batch_execute("SET app.who = 'alice'").now_or_never());
        drop(client);
        let client = next.await.unwrap();
        let who = query_text(&client, "SELECT current_setting('app.who', true)").await;
        assert_eq!(who, "", "{round}");
    }
}

/// Functions that leave something, which the texts of their calls do not say.
const HIDDEN: &str = "
    CREATE FUNCTION locks() RETURNS void AS 'SELECT pg_advisory_lock(1)' LANGUAGE sql;
    CREATE FUNCTION moves() RETURNS void AS $$ SELECT set_config('TimeZone', 'Asia/Tokyo', false) $$ LANGUAGE sql;
    CREATE FUNCTION listens() RETURNS void AS $$ BEGIN EXECUTE 'LISTEN changes'; END $$ LANGUAGE plpgsql";

#[tokio::test]
async fn state_that_a_function_sets_is_reset_if_the_server_reports_it_or_always() {
    let plain = PlainServer::start().await;
    let always = plain.router_with(|endpoint| endpoint.session_reset(SessionReset::Always));
    always
        .get("acme")
        .await
        .unwrap()
        .batch_execute(HIDDEN)
        .await
        .unwrap();
    let if_needed = plain.router();
    let left = async |router: &TenantRouter, call: &str, asks: &str| {
        let client = router.get("acme").await.unwrap();
        client.query_typed(call, &[]).await.unwrap();
        drop(client);
        query_text(&router.get("acme").await.unwrap(), asks).await
    };
    let locks =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    for router in [&always, &if_needed] {
        let zone = left(router, "SELECT moves()", "SHOW TimeZone").await;
        assert_ne!(zone, "Asia/Tokyo");
    }
    assert_eq!(left(&always, "SELECT locks()", locks).await, "0");
    // The limit that is documented.
    assert_eq!(left(&if_needed, "SELECT locks()", locks).await, "1");

    let listens = "SELECT count(*) FROM pg_listening_channels()";
    let client = if_needed.get("acme").await.unwrap();
    client.query_typed("SELECT listens()", &[]).await.unwrap();
    client.query_typed("NOTIFY changes", &[]).await.unwrap();
    drop(client);
    let client = if_needed.get("acme").await.unwrap();
    assert_eq!(query_text(&client, listens).await, "0");
}

#[tokio::test]
async fn a_connection_on_which_nothing_was_left_comes_back_at_once() {
    let plain = PlainServer::start().await;
    let router = plain.router();
    let client = router.get("acme").await.unwrap();
    client
        .batch_execute("CREATE TABLE notes (note text)")
        .await
        .unwrap();
    drop(client);
    drop(router.get("acme").await.unwrap());
    for sql in [
        "SELECT set_config('app.who', 'alice', true)",
        "INSERT INTO notes VALUES ('SET ROLE alice')",
        "SELECT pg_advisory_xact_lock(1)",
    ] {
        let client = router.get("acme").await.unwrap();
        client.query_typed(sql, &[]).await.unwrap();
        drop(client);
        let next = router.get("acme").now_or_never();
        drop(next.expect(sql).unwrap());
    }
}

/// The settings that stick to a client of the pooler, and those that reach other clients: as on the manual's page about
/// security.
#[tokio::test]
async fn through_a_pooler_some_settings_stick_to_the_client_and_the_others_reach_other_clients() {
    let plain = PlainServer::start().await;
    let config: Config = plain.server.pooled_url().await.unwrap().parse().unwrap();
    let connect = async || {
        let stream = connect_socket(&config).await.unwrap();
        let (client, connection) = config.connect_raw(stream, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let (setter, other) = (connect().await, connect().await);
    let show = async |client: &tokio_postgres::Client, setting: &str| {
        let rows = client
            .query_typed(&format!("SHOW {setting}"), &[])
            .await
            .unwrap();
        rows[0].get::<_, String>(0)
    };
    let page = include_str!("../../src/manual/security.md");
    for (setting, value) in [
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "SQL, DMY"),
        ("IntervalStyle", "iso_8601"),
        ("standard_conforming_strings", "off"),
        ("application_name", "mine"),
        ("client_encoding", "LATIN1"),
    ] {
        setter
            .batch_execute(&format!("SET {setting} = '{value}'"))
            .await
            .unwrap();
        assert_eq!(show(&setter, setting).await, value);
        assert_ne!(show(&other, setting).await, value, "it is the client's");
        assert_eq!(show(&setter, setting).await, value, "on whatever session");
        assert!(page.contains(&format!("`{setting}`")), "{setting}");
    }
    setter
        .batch_execute("SET statement_timeout = '7s'")
        .await
        .unwrap();
    assert_eq!(show(&other, "statement_timeout").await, "7s");
}
