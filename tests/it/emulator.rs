//! The emulator by itself, seen by clients that are not the router.

use std::{
    env,
    fs::{self, Permissions},
    future::Future,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{self, Command},
    time::Duration,
};

use tokio::time::Instant;

use tenantry::{
    neon::{ConnectionParameters, CreatedProject},
    tokio_postgres::{self, Client, Config, config::SslMode, error::SqlState, tls::MakeTlsConnect},
};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::support::{LONG, TestEnv, eventually};

/// A client's half of a connection, and how its task ends.
pub(crate) type Connected = (Client, JoinHandle<Result<(), tokio_postgres::Error>>);

impl TestEnv {
    fn tls(&self) -> MakeRustlsConnect {
        let mut config = (*self.tls_config()).clone();
        config.alpn_protocols.clear();
        MakeRustlsConnect::new(config)
    }

    /// Connects with TLS for the name `host`, after the request for it.
    pub(crate) async fn connect(
        &self,
        host: &str,
        config: &Config,
    ) -> Result<Connected, tokio_postgres::Error> {
        let stream = TcpStream::connect(self.emulator.proxy_address())
            .await
            .unwrap();
        let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut self.tls(), host).unwrap();
        let (client, connection) = config.connect_raw(stream, tls).await?;
        Ok((client, tokio::spawn(connection)))
    }
}

pub(crate) fn login_config(at: &ConnectionParameters) -> Config {
    let mut config = Config::new();
    config
        .user(&at.role)
        .password(at.password.expose())
        .dbname(&at.database)
        .ssl_mode(SslMode::Require);
    config
}

fn parameters(created: &CreatedProject) -> &ConnectionParameters {
    &created.connection_uris[0].connection_parameters
}

async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("too long")
}

#[tokio::test]
async fn an_endpoint_is_found_by_sni_or_by_option() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let at = parameters(&created);
    for host in [&at.host, &at.pooler_host] {
        let (client, _) = env.connect(host, &login_config(at)).await.unwrap();
        assert_eq!(
            client
                .query_one("SELECT current_user::text", &[])
                .await
                .unwrap()
                .get::<_, &str>(0),
            at.role
        );
    }
    // The certificate is valid for the loopback address, for clients that cannot resolve the emulator's names.
    for host in ["127.0.0.1", "localhost"] {
        let option = format!("endpoint={}", created.endpoints[0].id);
        let (client, _) = env
            .connect(host, login_config(at).options(&option))
            .await
            .unwrap();
        client.batch_execute("SELECT 1").await.unwrap();
    }
    assert_eq!(env.emulator.witnesses()[0].sessions.len(), 4);
}

#[tokio::test]
async fn the_emulator_refuses_logins_with_neons_texts_and_codes() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let at = parameters(&created);
    let nowhere = at.host.replacen("ep-", "ep-no-", 1);
    let cases = [
        (
            nowhere.as_str(),
            None,
            "password authentication failed for user 'neondb_owner'",
        ),
        ("127.0.0.1", None, "Endpoint ID is not specified."),
        (
            at.host.as_str(),
            Some("endpoint=ep-other"),
            "Inconsistent project name inferred from SNI",
        ),
    ];
    for (host, option, text) in cases {
        let mut config = login_config(at);
        option.map(|option| config.options(option));
        let err = env.connect(host, &config).await.expect_err(text);
        let db = err.as_db_error().expect(text);
        assert!(db.message().starts_with(text), "{}", db.message());
        assert_eq!(
            (db.severity(), db.code()),
            ("ERROR", &SqlState::INTERNAL_ERROR)
        );
    }
    let mut plain = login_config(at);
    let stream = TcpStream::connect(env.emulator.proxy_address())
        .await
        .unwrap();
    let refused = plain
        .ssl_mode(SslMode::Disable)
        .connect_raw(stream, tokio_postgres::NoTls)
        .await
        .err()
        .unwrap();
    assert!(
        refused
            .as_db_error()
            .unwrap()
            .message()
            .starts_with("connection is insecure")
    );
    assert!(
        env.connect(&at.host, login_config(at).password("wrong"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn suspend_tells_direct_sessions_and_cuts_pooled_ones_without_a_word() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let at = parameters(&created);
    let (direct, direct_end) = env.connect(&at.host, &login_config(at)).await.unwrap();
    let (pooled, pooled_end) = env
        .connect(&at.pooler_host, &login_config(at))
        .await
        .unwrap();
    direct
        .batch_execute("CREATE TABLE t AS SELECT 1 AS n")
        .await
        .unwrap();
    assert!(env.emulator.suspend(&created.endpoints[0].id).await);

    let err = with_timeout(direct_end).await.unwrap().unwrap_err();
    assert_eq!(err.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    let cut = with_timeout(pooled_end).await.unwrap().unwrap_err();
    assert!(cut.is_closed() && cut.code().is_none(), "{cut:?}");
    assert!(direct.is_closed() && pooled.is_closed());

    // It comes back with its data on the next connection, through either host.
    let (client, _) = env
        .connect(&at.pooler_host, &login_config(at))
        .await
        .unwrap();
    assert_eq!(
        client
            .query_one("SELECT n FROM t", &[])
            .await
            .unwrap()
            .get::<_, i32>(0),
        1
    );
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 2);
}

#[tokio::test]
async fn a_compute_sleeps_after_its_window_though_connections_are_open_and_not_while_one_works() {
    // So long that a busy machine takes no pause of that length between two statements.
    let window = Duration::from_millis(2500);
    let env = TestEnv::with(|emulator| emulator.suspend_after(window)).await;
    let created = env.project().await;
    let at = parameters(&created);
    let (client, end) = env.connect(&at.host, &login_config(at)).await.unwrap();
    let working = Instant::now();
    client
        .batch_execute("SELECT pg_sleep(4)")
        .await
        .expect("awake as long as a query runs");
    client.batch_execute("BEGIN").await.unwrap();
    tokio::time::sleep(window + window / 2).await; // time itself is under test: a transaction keeps it awake
    client
        .batch_execute("COMMIT")
        .await
        .expect("awake as long as a transaction is open");
    assert!(env.emulator.witnesses()[0].suspends.is_empty());
    let err = with_timeout(end).await.unwrap().unwrap_err();
    assert_eq!(err.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    assert!(working.elapsed() > Duration::from_secs(4) + window + window / 2);
    assert!(!env.emulator.witnesses()[0].is_awake);
}

#[tokio::test]
async fn a_query_is_cancelled_through_either_host() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let at = parameters(&created);
    for host in [&at.host, &at.pooler_host] {
        let (client, _) = env.connect(host, &login_config(at)).await.unwrap();
        let token = client.cancel_token();
        let cancel = async {
            let running = || async {
                let (other, _) = env.connect(&at.host, &login_config(at)).await.unwrap();
                let count = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
                other.query_one(count, &[]).await.unwrap().get::<_, i64>(0) > 0
            };
            while !running().await {}
            let stream = TcpStream::connect(env.emulator.proxy_address())
                .await
                .unwrap();
            let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut env.tls(), host).unwrap();
            token.cancel_query_raw(stream, tls).await.unwrap();
        };
        let (result, ()) = with_timeout(async {
            tokio::join!(client.batch_execute("SELECT pg_sleep(60)"), cancel)
        })
        .await;
        assert_eq!(result.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    }
}

#[tokio::test]
async fn a_wake_takes_the_delay_and_little_more() {
    let env = TestEnv::with(|emulator| emulator.wake_delay(Duration::from_millis(350))).await;
    let created = env.project().await;
    let at = parameters(&created);
    env.emulator.suspend(&created.endpoints[0].id).await;
    let start = Instant::now();
    let callers = (0..10).map(|_| async {
        env.connect(&at.pooler_host, &login_config(at))
            .await
            .map(|(client, _)| client)
    });
    let clients = futures_util::future::join_all(callers).await;
    assert!(clients.iter().all(Result::is_ok));
    assert!(start.elapsed() >= Duration::from_millis(350));
    let it = env.emulator.witnesses().remove(0);
    assert_eq!(it.wakes.len(), 2, "one start for ten clients");
    assert!(it.wakes[1].took >= Duration::from_millis(350));
    assert_eq!(it.most_open_sessions, 10);
}

#[tokio::test]
async fn sessions_count_over_all_computes_until_postgres_has_ended_them() {
    let env = TestEnv::new().await;
    let (first, second) = (env.project().await, env.project().await);
    let at = parameters(&first);
    let mut wrong = login_config(at);
    wrong.password("wrong");
    assert!(env.connect(&at.host, &wrong).await.is_err());
    assert_eq!(env.emulator.most_open_sessions(), 0);
    let (direct, _) = env.connect(&at.host, &login_config(at)).await.unwrap();
    let other = parameters(&second);
    let (pooled, _) = env
        .connect(&other.pooler_host, &login_config(other))
        .await
        .unwrap();
    assert_eq!(env.emulator.open_sessions(), 2);

    let start = Instant::now();
    let sleep = direct.batch_execute("SELECT pg_sleep(1)");
    let left = tokio::time::timeout(Duration::from_millis(100), sleep).await;
    assert!(left.is_err());
    drop((direct, pooled));
    eventually("the pooler has ended its session", || {
        env.emulator.open_sessions() == 1
    })
    .await;
    eventually("so has Postgres", || env.emulator.open_sessions() == 0).await;
    assert!(start.elapsed() >= Duration::from_millis(900), "it slept on");
    assert_eq!(env.emulator.most_open_sessions(), 2);
}

#[tokio::test]
async fn deleting_a_project_ends_its_compute_and_recovering_it_brings_its_data_back() {
    let env = TestEnv::new().await;
    let created = env.project().await;
    let (at, id) = (parameters(&created), &created.project.id);
    let (client, _) = env.connect(&at.host, &login_config(at)).await.unwrap();
    client
        .batch_execute("CREATE TABLE t AS SELECT 1 AS n")
        .await
        .unwrap();
    env.neon().delete_project(id).await.unwrap();
    eventually("its sessions are closed", || client.is_closed()).await;
    assert!(env.connect(&at.host, &login_config(at)).await.is_err());
    assert!(env.emulator.witnesses().is_empty());

    let recovered = env.neon().recover_project(id).await.unwrap();
    assert_eq!(recovered.id, *id);
    let (client, _) = env
        .connect(&at.pooler_host, &login_config(at))
        .await
        .unwrap();
    let row = client.query_one("SELECT n FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 1);
}

#[tokio::test]
async fn hostile_clients_do_not_disturb_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let env = TestEnv::new().await;
    let created = env.project().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x16\x03\x01\x00\x05hello",
        b"",
    ] {
        let mut stream = TcpStream::connect(env.emulator.proxy_address())
            .await
            .unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = with_timeout(stream.read_to_end(&mut answer)).await;
    }
    let at = parameters(&created);
    env.connect(&at.host, &login_config(at)).await.unwrap();
}

#[test]
fn the_emulator_works_in_any_temporary_folder() {
    let place = env::temp_dir().join(format!("tenantry-test-{}", process::id()));
    fs::create_dir(&place).unwrap();
    let open_up = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    open_up(&place);
    for name in [
        "a b".to_owned(),
        "it's, [1]* \"x\"; #%=".to_owned(),
        "long-".repeat(8),
    ] {
        let folder = place.join(&name);
        fs::create_dir(&folder).unwrap();
        open_up(&folder);
        for test in [
            "connections::the_second_access_opens_nothing",
            "wake::when_all_sockets_died_by_suspend_the_next_get_works",
        ] {
            let mut test_run = Command::new(env::current_exe().unwrap());
            test_run.args(["--exact", test]).env("TMPDIR", &folder);
            let ran = test_run.output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(ran.status.success(), "{name}: {said}");
        }
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 0, "left in {name}");
    }
    fs::remove_dir_all(&place).unwrap();
}
