//! The example of a whole service, driven over HTTP as its clients would.

use std::{env, process::Stdio, sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tenantry::{Status, TenantRouter, emulator::Emulator};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

use super::support::{LONG, eventually};

#[expect(dead_code, reason = "the example has a `main` as well")]
#[path = "../../examples/services/saas.rs"]
mod example;

const WAKE: Duration = Duration::from_millis(350);
const HERD: usize = 200;
/// Set for a process that is to be a service whose sign-ups are stuck.
const STUCK: &str = "SAAS_TEST_STUCK";
/// The test that is that service.
const STUCK_SERVICE: &str = "saas::a_service_whose_sign_ups_are_stuck";

/// Settings for a client that needs none: reqwest takes no guess where several providers of cryptography are linked.
fn no_tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn client() -> Client {
    let client = Client::builder().tls_backend_preconfigured(no_tls());
    client.build().unwrap()
}

/// The service on an emulator, and a client of it.
struct Service {
    emulator: Emulator,
    router: TenantRouter,
    address: String,
    client: Client,
}

impl Service {
    async fn start() -> Self {
        let emulator = Emulator::builder().wake_delay(WAKE).start().await.unwrap();
        let metrics = example::metrics().build_recorder();
        let router =
            metrics::with_local_recorder(&metrics, || example::router_on(&emulator).unwrap());
        let app = example::app(&router, metrics.handle()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = client();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            emulator,
            router,
            address,
            client,
        }
    }

    /// A request by path.
    async fn get(&self, path: &str) -> Response {
        let url = format!("http://{}{path}", self.address);
        self.client.get(url).send().await.unwrap()
    }

    /// A request to the host of `tenant`, or to that of all.
    async fn post(&self, tenant: Option<&str>, path: &str, body: &str) -> Response {
        let host = tenant.map_or("localhost".to_owned(), |it| format!("{it}.localhost"));
        let request = self.client.post(format!("http://{}{path}", self.address));
        let request = request.header("host", host).body(body.to_owned());
        request.send().await.unwrap()
    }

    async fn notes(&self, tenant: &str) -> Value {
        let answer = self.get(&format!("/t/{tenant}/notes")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }
}

#[tokio::test]
async fn a_tenant_signs_up_writes_falls_asleep_and_reads_and_so_does_a_herd() {
    let service = Service::start().await;
    for tenant in ["acme", "globex"] {
        for _ in 0..2 {
            let signed_up = service.post(None, &format!("/signup/{tenant}"), "").await;
            assert_eq!(
                signed_up.status(),
                StatusCode::CREATED,
                "also if it was lost"
            );
        }
    }
    let written = service.post(Some("acme"), "/notes", "hello").await;
    assert_eq!(written.status(), StatusCode::CREATED);
    let note = json!([{ "id": 1, "text": "hello" }]);
    assert_eq!(service.notes("acme").await, note);
    assert_eq!(
        service.notes("globex").await,
        json!([]),
        "what is acme's is acme's"
    );

    service.emulator.suspend_all().await;
    assert_eq!(service.notes("acme").await, note);

    service.emulator.suspend_all().await;
    let before = service.router.status();
    let stray = service.post(Some("acme"), "/nowhere", "").await;
    assert_eq!(stray.status(), StatusCode::NOT_FOUND);
    assert_eq!(service.notes("globex").await, json!([]));
    let after = service.router.status();
    let wakes = |it: &Status| it.wakes_by_request.started + it.wakes_by_hint.started;
    assert_eq!(
        wakes(&after) - wakes(&before),
        1,
        "what no route matches wakes nobody"
    );

    let before = service.router.status();
    let herd = join_all((0..HERD).map(|_| service.notes("acme"))).await;
    assert!(herd.iter().all(|it| *it == note));
    let after = service.router.status();
    assert_eq!(wakes(&after) - wakes(&before), 1);
    assert_eq!(after.gets_failed, 0);
    service.router.close().await;
}

#[tokio::test]
async fn unknown_tenants_get_404_and_operators_get_status_and_metrics() {
    let service = Service::start().await;
    let unknown = service.get("/t/nobody/notes").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let problem: Value = unknown.json().await.unwrap();
    assert_eq!(problem["code"], "unknown_tenant");
    assert_eq!(
        service.get("/notes").await.status(),
        StatusCode::NOT_FOUND,
        "no tenant named"
    );
    service.post(None, "/signup/acme", "").await;
    let long = "x".repeat(10_001);
    for (text, status) in [
        ("", StatusCode::UNPROCESSABLE_ENTITY),
        (&*long, StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(
            service.post(Some("acme"), "/notes", text).await.status(),
            status
        );
    }
    service.notes("acme").await;

    let status: Value = service.get("/status").await.json().await.unwrap();
    assert_eq!(status["provisioned"], 1);
    let acme: Value = service.get("/status/acme").await.json().await.unwrap();
    assert_eq!(
        (&acme["tenant"], &acme["next"]),
        (&json!("acme"), &json!("reuse"))
    );
    let metrics = service.get("/metrics").await.text().await.unwrap();
    let created = r#"tenantry_databases_created{db_client_connection_pool_name="tenantry"} 1"#;
    assert!(metrics.contains(created), "{metrics}");
    assert_eq!(service.get("/ready").await.status(), StatusCode::OK);
    service.router.close().await;
    assert_eq!(
        service.get("/ready").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn only_a_sign_up_creates_a_database() {
    let service = Service::start().await;
    for path in ["/notes", "/t/acme/notes"] {
        let read = service.get(path).await.status();
        assert_eq!(read, StatusCode::NOT_FOUND);
        let written = service.post(Some("globex"), path, "hello").await.status();
        assert!(written.is_client_error(), "{written}");
    }
    for name in ["bob@acme", "*", "Acme", "a.b", "-acme", "acme%2e"] {
        let signed_up = service.post(None, &format!("/signup/{name}"), "").await;
        assert_eq!(
            signed_up.status(),
            StatusCode::UNPROCESSABLE_ENTITY,
            "{name}"
        );
    }
    assert!(service.emulator.witnesses().is_empty());
}

#[tokio::test]
async fn a_host_and_a_path_that_contradict_each_other_are_a_bad_request() {
    let service = Service::start().await;
    for tenant in ["acme", "globex"] {
        service.post(None, &format!("/signup/{tenant}"), "").await;
    }
    for (host, status) in [
        ("acme", StatusCode::BAD_REQUEST),
        ("bob@globex", StatusCode::BAD_REQUEST),
        ("globex", StatusCode::CREATED),
    ] {
        let written = service.post(Some(host), "/t/globex/notes", "hello").await;
        assert_eq!(written.status(), status, "{host}");
    }
    assert_eq!(service.notes("acme").await, json!([]));
}

#[tokio::test]
async fn a_request_for_an_unknown_path_is_told_where_the_paths_are_listed() {
    let service = Service::start().await;
    for (path, status, says) in [
        ("/", StatusCode::OK, "/signup/acme"),
        ("/nowhere", StatusCode::NOT_FOUND, "GET / says"),
        ("/signup/acme", StatusCode::METHOD_NOT_ALLOWED, "GET / says"),
    ] {
        let answer = service.get(path).await;
        assert_eq!(answer.status(), status);
        let text = answer.text().await.unwrap();
        assert!(text.contains(says), "{text:?}");
    }
}

#[tokio::test]
async fn a_stuck_request_does_not_keep_the_service_from_ending() {
    let mut process = Process::start().await;
    let first = format!("curl -X POST http://{}/signup/acme", process.address);
    assert!(process.read_until("/signup/").await.starts_with(&first));
    process.start_stuck_sign_up().await;
    let interrupted = Instant::now();
    process.interrupt();
    process.read_until("stopping, within 8 s").await;
    process.read_until("WARN").await; // without RUST_LOG
    let ended = timeout(LONG, process.child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
    assert!(
        interrupted.elapsed() < Duration::from_secs(40),
        "{:?}",
        interrupted.elapsed()
    );
}

#[tokio::test]
async fn a_second_interrupt_ends_the_service_at_once() {
    let mut process = Process::start().await;
    process.start_stuck_sign_up().await;
    process.interrupt();
    process.read_until("stopping").await;
    process.interrupt();
    let ended = timeout(LONG, process.child.wait()).await;
    let code = ended.expect("it ends").unwrap().code();
    assert_eq!(code, Some(130), "it did not wait for the request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_sign_ups_are_stuck() {
    if env::var_os(STUCK).is_none() {
        return;
    }
    example::log().unwrap();
    let sleepy = Emulator::builder().wake_delay(Duration::from_secs(600));
    let emulator = Arc::new(sleepy.start_on_create(false).start().await.unwrap());
    let router = example::router_on(&emulator).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let seen = Arc::clone(&emulator);
    tokio::spawn(async move {
        eventually("a sign-up", || !seen.witnesses().is_empty()).await;
        drop(seen);
        println!("a sign-up is stuck");
    });
    let metrics = example::metrics().build_recorder().handle();
    example::serve(listener, &router, metrics).await.unwrap();
}

/// The service in a process of its own, with sign-ups that get a database which does not wake.
struct Process {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl Process {
    async fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", STUCK_SERVICE, "--nocapture"])
            .env(STUCK, "1")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut process = Self {
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            address: String::new(),
        };
        let line = process.read_until("listening on http://").await;
        let (_, address) = line.split_once("http://").unwrap();
        address.clone_into(&mut process.address);
        process
    }

    /// Waits for a line with `text`, and returns it.
    async fn read_until(&mut self, text: &str) -> String {
        let lines = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if line.contains(text) {
                    return line;
                }
            }
            panic!("it ended and never said {text:?}")
        };
        let output = timeout(2 * LONG, lines).await;
        output.unwrap_or_else(|_| panic!("it never said {text:?}"))
    }

    /// Sends a sign-up, and waits until it is stuck.
    async fn start_stuck_sign_up(&mut self) {
        let request = client().post(format!("http://{}/signup/acme", self.address));
        tokio::spawn(request.send());
        self.read_until("a sign-up is stuck").await;
    }

    /// Does what Ctrl-C does.
    fn interrupt(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        kill_process(pid.and_then(Pid::from_raw).unwrap(), Signal::INT).unwrap();
    }
}
