//! Entries that no connection can be opened with: told at once, and with what to change.

use std::{fs, io, net::SocketAddr, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use tenantry::{
    BoxError, Endpoint, Error, ErrorKind, Resolve, Stage, TenantRouter,
    emulator::CatalogServer,
    tokio_postgres::{Config, NoTls},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep},
};

use crate::support::{Backend, Failure, FixedResolver, Gate, Gateway, LONG, Step, folder};

/// By when whatever cannot pass is told. It is retried for 20 s if it is not known for that.
const AT_ONCE: Duration = Duration::from_secs(15);

fn local_endpoint() -> Endpoint {
    Endpoint::postgres("localhost", "neondb", "neondb_owner", "none")
}

/// Returns the error that a caller gets whose tenant lives at `endpoint`, found at `address`.
async fn connect_error(endpoint: Endpoint, address: SocketAddr) -> Error {
    let lookup = move |_| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, BoxError>(Some(endpoint)) }
    };
    let router = TenantRouter::builder(lookup).resolve(FixedResolver(address));
    let router = router.build().unwrap();
    let began = Instant::now();
    let err = router.get("acme").await.unwrap_err();
    assert!(
        began.elapsed() < AT_ONCE,
        "after {:?}: {err:?}",
        began.elapsed()
    );
    err
}

/// Asserts that it is told once and for all, and what to change.
fn assert_misconfigured(err: &Error, advice: &str) {
    assert_eq!(err.kind(), ErrorKind::Misconfigured, "{err:?}");
    assert!(err.to_string().contains(advice), "{err}");
    assert!(!err.kind().is_transient());
}

#[tokio::test]
async fn a_postgres_without_tls_is_an_error_where_tls_is_required() {
    let server = CatalogServer::start().await.unwrap();
    let gateway = Gateway::to(&server.url()).await;
    let err = connect_error(local_endpoint(), gateway.address).await;
    assert_misconfigured(&err, "use Endpoint::without_tls");
    assert_eq!(err.stage(), Some(Stage::Wake));
}

#[tokio::test]
async fn a_postgres_that_rejects_unencrypted_logins_is_an_error_about_tls() {
    let server = CatalogServer::start().await.unwrap();
    let gateway = Gateway::to(&server.url()).await;
    let mut admin: Config = server.url().parse().unwrap();
    admin.user("cloud_admin");
    let rules = folder(&server).join("data/pg_hba.conf");
    for (rule, entry) in [
        ("", "no pg_hba.conf entry"),
        ("local all all reject\n", "rejects"),
    ] {
        fs::write(&rules, format!("local all cloud_admin trust\n{rule}")).unwrap();
        let (client, connection) = admin.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .unwrap();
        let began = Instant::now();
        let err = loop {
            // It reads them in its own time.
            let login = server.url().parse::<Config>().unwrap().connect(NoTls).await;
            match login {
                Err(err) if format!("{err:?}").contains(entry) => {
                    break connect_error(local_endpoint().without_tls(), gateway.address).await;
                }
                _ => sleep(Duration::from_millis(10)).await,
            }
            assert!(began.elapsed() < LONG, "never: {entry}");
        };
        assert_misconfigured(&err, "do not use Endpoint::without_tls");
    }
}

/// A PgBouncer in front of `server` that has one database, takes passwords, and listens beside its socket as `more`
/// says.
async fn start_pgbouncer(server: &CatalogServer, more: &str) -> String {
    let folder = folder(server);
    let users = folder.join("users.txt");
    fs::write(&users, "\"neondb_owner\" \"secret\"\n").unwrap();
    let settings = format!(
        "[databases]\nneondb = host={} port=5432\n[pgbouncer]\npool_mode = transaction\n\
         auth_file = {}\n{more}",
        folder.display(),
        users.display()
    );
    server.pooled_url_with(&settings).await.unwrap()
}

#[tokio::test]
async fn a_pgbouncer_without_that_database_user_or_password_is_an_immediate_error() {
    let server = CatalogServer::start().await.unwrap();
    let url = start_pgbouncer(&server, "auth_type = scram-sha-256").await;
    let gateway = Gateway::to(&url).await;
    let at = |database: &str, role: &str, password: &str| {
        Endpoint::postgres("localhost", database, role, password).without_tls()
    };
    let err = connect_error(at("nodb", "neondb_owner", "secret"), gateway.address).await;
    assert_misconfigured(&err, "no such database: nodb");
    for (role, password) in [("nobody", "secret"), ("neondb_owner", "wrong")] {
        let err = connect_error(at("neondb", role, password), gateway.address).await;
        assert_eq!(err.kind(), ErrorKind::BadCredential, "{role}: {err:?}");
        assert!(format!("{err:?}").contains("SASL authentication failed"));
        assert!(
            err.to_string().contains("check the role and password"),
            "{err}"
        );
    }
}

#[tokio::test]
async fn a_pgbouncer_that_asks_the_database_for_its_users_says_no_such_user_at_once() {
    let server = CatalogServer::start().await.unwrap();
    let query = "auth_type = scram-sha-256\nauth_user = cloud_admin\n\
                 auth_query = SELECT rolname::text, ''::text FROM pg_roles WHERE rolname = $1";
    let url = start_pgbouncer(&server, query).await;
    let gateway = Gateway::to(&url).await;
    let endpoint = Endpoint::postgres("localhost", "neondb", "nobody", "secret").without_tls();
    let err = connect_error(endpoint, gateway.address).await;
    assert_eq!(err.kind(), ErrorKind::BadCredential, "{err:?}");
    assert!(format!("{err:?}").contains("no such user"), "{err:?}");
}

#[tokio::test]
async fn a_pgbouncer_that_requires_tls_is_an_error_where_there_is_none() {
    let server = CatalogServer::start().await.unwrap();
    let folder = folder(&server);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    fs::write(folder.join("certificate.pem"), certificate.pem()).unwrap();
    // Its socket needs no TLS, so it has to listen on TCP: at an address that nobody else has.
    let [b, c, d] = std::array::from_fn(|_| fastrand::u8(1..255));
    let address = SocketAddr::from(([127, b, c, d], 6432));
    let tls = format!(
        "auth_type = scram-sha-256\nlisten_addr = {}\nclient_tls_sslmode = require\n\
         client_tls_key_file = {}\nclient_tls_cert_file = {}",
        address.ip(),
        folder.join("key.pem").display(),
        folder.join("certificate.pem").display(),
    );
    start_pgbouncer(&server, &tls).await;
    let err = connect_error(local_endpoint().without_tls(), address).await;
    assert_misconfigured(&err, "do not use Endpoint::without_tls");
    let err = connect_error(local_endpoint(), address).await;
    assert_misconfigured(&err, "add its root certificate");
}

#[tokio::test]
async fn a_failed_tls_handshake_is_an_immediate_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // The request for TLS, our consent, the greeting, and the alert of a failed handshake.
            client.read_exact(&mut [0; 8]).await.unwrap();
            client.write_all(b"S").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            client.write_all(&[21, 3, 3, 0, 2, 2, 40]).await.unwrap();
            let _ = client.read_to_end(&mut Vec::new()).await;
        }
    });
    let err = connect_error(local_endpoint(), address).await;
    assert_misconfigured(&err, "tls");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn startup_parameters_that_a_server_refuses_are_an_immediate_error() {
    for (code, text) in [
        ("22023", "invalid value for parameter \"work_mem\": \"x\""),
        ("42704", "unrecognized configuration parameter \"foo\""),
        ("0A000", "unsupported frontend protocol"),
        ("42501", "permission denied"),
    ] {
        let backend = Backend::default();
        backend.set(Step::Login, Gate::Fail(Failure::Fatal { code, text }));
        let router = backend.router().build().unwrap();
        let err = router.get("acme").await.unwrap_err();
        assert_misconfigured(&err, text);
        assert_eq!(backend.counts().logins_started, 1, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_error_code_is_retried() {
    let backend = Backend::default();
    let (code, text) = ("ZZ999", "of a later release");
    backend.set(Step::Login, Gate::Fail(Failure::Fatal { code, text }));
    let router = backend.router().build().unwrap();
    let repair = async {
        backend
            .until("it tries again", |it| it.logins_started > 2)
            .await;
        backend.set(Step::Login, Gate::Open);
    };
    let (got, ()) = tokio::join!(router.get("acme"), repair);
    drop(got.unwrap());
}

/// Fails the test if it is asked anything.
struct UnusedResolver;

impl Resolve for UnusedResolver {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        panic!("asked for {host:?}");
    }
}

#[tokio::test]
async fn an_invalid_host_is_refused_before_it_is_resolved_and_is_not_repeated() {
    for (host, advice) in [
        ("", "empty"),
        (
            "postgres://app:hunter2@db.example.org/app",
            "connection string",
        ),
        ("db.example.org:5432", "port in its own field"),
        ("[::1]:5432", "port in its own field"),
        ("/run/postgresql", "by TCP"),
        ("db.example.org\n", "line break"),
    ] {
        for encrypted in [true, false] {
            let mut endpoint = Endpoint::postgres(host, "app", "app", "secret");
            if !encrypted {
                endpoint = endpoint.without_tls();
            }
            let lookup = move |_| {
                let endpoint = endpoint.clone();
                async move { Ok::<_, BoxError>(Some(endpoint)) }
            };
            let router = TenantRouter::builder(lookup).resolve(UnusedResolver);
            let router = router.build().unwrap();
            let err = router.get("acme").await.unwrap_err();
            assert_misconfigured(&err, advice);
            assert_eq!(err.stage(), Some(Stage::Lookup));
            assert!(!format!("{err:?}").contains("hunter2"), "{err:?}");
            let err = router.direct("acme").await.unwrap_err();
            assert_misconfigured(&err, advice);
        }
    }
}
