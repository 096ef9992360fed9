//! The emulator at the wire, held against what Neon's own proxy was observed to do.

use std::time::Duration;

use tenantry::{
    ErrorKind, TenantId, TenantRouter, neon::ConnectionParameters,
    tokio_postgres::config::ChannelBinding,
};

use crate::emulator::login_config;
use crate::support::{Message, RawClient, TestEnv, retry_timeouts};

const WAKE_DELAY: Duration = Duration::from_millis(300);
const BURST: Duration = Duration::from_millis(200);

/// A project whose compute sleeps.
async fn sleeping_project(env: &TestEnv) -> ConnectionParameters {
    let created = env.project().await;
    env.emulator.suspend_all().await;
    created.connection_uris[0].connection_parameters.clone()
}

fn tags(seen: &[Message]) -> String {
    seen.iter().map(|message| message.tag).collect()
}

/// Asserts that it is an error as Neon's proxy sends it, and nothing came before or comes after.
async fn assert_refused(client: &mut RawClient, seen: &[Message], text: &str) {
    assert_eq!(tags(seen), "E", "{seen:?}");
    let field = |field| seen[0].field(field).unwrap_or_default();
    assert_eq!(
        (field('S').as_str(), field('C').as_str()),
        ("ERROR", "XX000")
    );
    assert!(field('M').starts_with(text), "{}", field('M'));
    assert!(seen[0].field('V').is_none(), "Neon sends no such field");
    assert!(client.next().await.is_none(), "closed after the error");
}

#[tokio::test]
async fn the_proxy_sends_nothing_between_the_proof_and_the_end_of_the_wake() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(WAKE_DELAY)).await;
    let at = sleeping_project(&env).await;
    for host in [&at.host, &at.pooler_host] {
        let wakes = env.emulator.witnesses()[0].wakes.len();
        let mut client = RawClient::connect(&env, host).await;
        client
            .startup(0, &[("user", &at.role), ("database", &at.database)])
            .await;
        client.answer_scram(at.password.expose()).await;
        assert_eq!(
            env.emulator.witnesses()[0].wakes.len(),
            wakes,
            "not before the proof"
        );
        let seen = client.until_ready().await;
        assert_eq!((seen[0].kind(), seen[1].kind()), (12, 0), "final, then ok");
        assert!(
            tags(&seen).ends_with("KZ") && tags(&seen[2..]).starts_with('S'),
            "{}",
            tags(&seen)
        );
        let (first, last) = (seen[0].after, seen[seen.len() - 1].after);
        assert!(
            first >= WAKE_DELAY,
            "held back until the compute was up: {first:?}"
        );
        assert!(last < first + BURST, "in one burst: {first:?} to {last:?}");
        env.emulator.suspend_all().await;
    }
}

#[tokio::test]
async fn a_wrong_password_an_unknown_role_and_an_unknown_endpoint_look_alike_and_wake_nothing() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let nowhere = at.host.replacen("ep-", "ep-no-", 1);
    let right = at.password.expose();
    for (host, user, password) in [
        (at.host.as_str(), "neondb_owner", "wrong"),
        (at.pooler_host.as_str(), "neondb_owner", "wrong"),
        (at.host.as_str(), "nobody", right),
        (at.host.as_str(), "cloud_admin", right),
        (nowhere.as_str(), "neondb_owner", right),
    ] {
        let mut client = RawClient::connect(&env, host).await;
        let seen = client.log_in(password, &[("user", user)]).await;
        let text = format!("password authentication failed for user '{user}'");
        assert_refused(&mut client, &seen, &text).await;
    }
    let it = &env.emulator.witnesses()[0];
    assert!(!it.is_awake);
    assert_eq!(it.wakes.len(), 1, "that was its creation");
}

#[tokio::test]
async fn errors_of_postgres_lose_their_code_while_connecting() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    for host in [&at.host, &at.pooler_host] {
        let mut client = RawClient::connect(&env, host).await;
        let seen = client
            .log_in(at.password.expose(), &[("database", "nodb")])
            .await;
        assert_refused(&mut client, &seen, "database \"nodb\" does not exist").await;
    }
}

#[tokio::test]
async fn a_switch_gives_errors_the_codes_of_the_live_service() {
    let env = TestEnv::with(|emulator| emulator.live_codes(true)).await;
    let at = sleeping_project(&env).await;
    let mut client = RawClient::connect(&env, &at.host).await;
    let seen = client.log_in("wrong", &[]).await;
    assert_eq!(seen[0].field('C').as_deref(), Some("28P01"));
}

#[tokio::test]
async fn without_a_name_the_endpoint_may_stand_in_the_password() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let id = at.host.split('.').next().unwrap();
    for (password, works) in [(at.password.expose(), true), ("wrong", false)] {
        for separator in [';', '$'] {
            let mut client = RawClient::connect(&env, "127.0.0.1").await;
            client
                .startup(0, &[("user", &at.role), ("database", &at.database)])
                .await;
            assert_eq!(client.next().await.unwrap().kind(), 3, "in clear");
            client
                .send(
                    b'p',
                    format!("endpoint={id}{separator}{password}\0").as_bytes(),
                )
                .await;
            let seen = client.until_ready().await;
            assert_eq!(tags(&seen).ends_with('Z'), works, "{seen:?}");
        }
    }
    let mut client = RawClient::connect(&env, "127.0.0.1").await;
    client.startup(0, &[("user", &at.role)]).await;
    client.next().await.unwrap();
    client.send(b'p', b"just a password\0").await;
    let seen = client.until_ready().await;
    assert_refused(&mut client, &seen, "Endpoint ID is not specified.").await;
}

/// The first column of the first row.
fn first_column(seen: &[Message]) -> String {
    let row = seen
        .iter()
        .find(|message| message.tag == 'D')
        .expect("a row");
    String::from_utf8_lossy(&row.body[6..]).into_owned()
}

#[tokio::test]
async fn startup_parameters_are_passed_on_or_dropped_as_at_neon() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let mut client = RawClient::connect(&env, &at.host).await;
    let more = [
        ("statement_timeout", "1234"),
        ("client_encoding", "LATIN1"),
        ("application_name", "mine"),
        ("options", "-c lock_timeout=77"),
    ];
    client.log_in(at.password.expose(), &more).await;
    assert_eq!(
        first_column(&client.query("SHOW statement_timeout").await),
        "0",
        "dropped without a word"
    );
    assert_eq!(
        first_column(&client.query("SHOW client_encoding").await),
        "UTF8",
        "forced"
    );
    assert_eq!(
        first_column(&client.query("SHOW application_name").await),
        "mine"
    );
    assert_eq!(
        first_column(&client.query("SHOW lock_timeout").await),
        "77ms"
    );

    let mut client = RawClient::connect(&env, &at.host).await;
    let compat = [
        ("statement_timeout", "1234"),
        ("options", "neon_proxy_params_compat:true"),
    ];
    client.log_in(at.password.expose(), &compat).await;
    assert_eq!(
        first_column(&client.query("SHOW statement_timeout").await),
        "1234ms"
    );
}

#[tokio::test]
async fn a_newer_protocol_is_negotiated_down() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let mut client = RawClient::connect(&env, &at.host).await;
    client
        .startup(
            2,
            &[
                ("user", &at.role),
                ("database", &at.database),
                ("_pq_.teleport", "on"),
            ],
        )
        .await;
    let answer = client.next().await.unwrap();
    assert_eq!(answer.tag, 'v');
    assert_eq!(
        answer.body,
        [&[0, 0, 0, 0, 0, 0, 0, 1][..], b"_pq_.teleport\0"].concat()
    );
    client.answer_scram(at.password.expose()).await;
    assert!(tags(&client.until_ready().await).ends_with('Z'));
}

#[tokio::test]
async fn channel_binding_works() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let mut config = login_config(&at);
    config.channel_binding(ChannelBinding::Require);
    let (client, _) = env.connect(&at.host, &config).await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn the_pooler_is_a_real_one_in_transaction_mode() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let pooled = async || {
        let mut client = RawClient::connect(&env, &at.pooler_host).await;
        let seen = client.log_in(at.password.expose(), &[]).await;
        assert!(tags(&seen).ends_with('Z'), "{seen:?}");
        client
    };
    let (mut first, mut second) = (pooled().await, pooled().await);
    let pid = "SELECT pg_backend_pid()";
    assert_eq!(
        first_column(&first.query(pid).await),
        first_column(&second.query(pid).await),
        "they share a server connection"
    );

    // What one sets the other has, and what one prepares another connection does not know.
    first.query("SET statement_timeout = 777").await;
    assert_eq!(
        first_column(&second.query("SHOW statement_timeout").await),
        "777ms"
    );
    first.query("PREPARE q1 AS SELECT 1").await;
    second.query("BEGIN").await;
    let missing = first.query("EXECUTE q1").await;
    assert_eq!(
        missing[0].field('C').as_deref(),
        Some("26000"),
        "{missing:?}"
    );
    second.query("COMMIT").await;
}

#[tokio::test]
async fn options_that_the_pooler_does_not_know_are_refused_with_neons_advice() {
    let env = TestEnv::new().await;
    let at = sleeping_project(&env).await;
    let mut client = RawClient::connect(&env, &at.pooler_host).await;
    let seen = client
        .log_in(
            at.password.expose(),
            &[("options", "-c statement_timeout=1234")],
        )
        .await;
    let text = "unsupported startup parameter in options: statement_timeout. Please use unpooled connection";
    assert_refused(&mut client, &seen, text).await;
}

#[tokio::test]
async fn prepared_statements_of_the_protocol_outlive_a_change_of_the_server_connection() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (client, mut other) = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    let statement = client
        .prepare_cached("SELECT pg_backend_pid()")
        .await
        .unwrap();
    let first: i32 = client.query_one(&statement, &[]).await.unwrap().get(0);
    let held = other.transaction().await.unwrap();
    held.query_typed("SELECT 1", &[]).await.unwrap(); // takes the server connection that both had
    let second: i32 = client.query_one(&statement, &[]).await.unwrap().get(0);
    assert_ne!(first, second);
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn forty_tenants_resume_their_tls_sessions() {
    const TENANTS: usize = 40; // more than rustls remembers by default
    let env = TestEnv::new().await;
    let router = env.router();
    let names: Vec<_> = (0..TENANTS).map(|number| format!("t{number}")).collect();
    for name in &names {
        drop(retry_timeouts(|| router.get(name)).await);
        assert_eq!(env.witness(name).resumed, 0);
        router.evict(name);
        env.suspend(name).await;
    }
    for name in &names {
        let before = env.witness(name).handshakes.len();
        drop(retry_timeouts(|| router.get(name)).await);
        let after = env.witness(name);
        assert_eq!(after.resumed, after.handshakes.len() - before, "{name}");
        assert_eq!(after.retried, 0);
        assert!(after.resumed > 0);
        env.suspend(name).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_root_resumes_nothing() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(retry_timeouts(|| router.get("acme")).await);
    let endpoint = env.endpoint(&env.witness("acme")).await;
    let lookup = move |_: TenantId| std::future::ready(Ok(Some(endpoint.clone())));
    let distrustful = TenantRouter::builder(lookup).resolve(env.emulator.resolver());
    let distrustful = distrustful.build().unwrap();
    let before = env.witness("acme").handshakes.len();
    let err = distrustful.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misconfigured, "{err}");
    let after = env.witness("acme");
    assert_eq!((after.handshakes.len(), after.resumed), (before, 0));
}
