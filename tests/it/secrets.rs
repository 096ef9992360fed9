//! No secret in any `Debug`, error or log, and none sent to an untrusted server.

use std::{
    error::Error as _,
    fmt::Debug,
    io,
    iter::successors,
    sync::{Mutex, Once, PoisonError},
};

use tenantry::{
    Endpoint, ErrorKind, Neon, Provisioner, Reconcile, TenantRouter, catalog::Memory,
    fleet::Outcome, neon::CreateProject,
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::support::{TestEnv, query_text};

/// The writer that finds the lines in which a secret was logged. It watches everything in this process from the first
/// `detect_leaks` on, whichever test logs it.
#[derive(Clone, Copy, Default)]
struct LeakDetector;

static SECRETS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LINES: Mutex<usize> = Mutex::new(0);

impl io::Write for LeakDetector {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let secrets = SECRETS.lock().unwrap_or_else(PoisonError::into_inner);
        if secrets.iter().any(|secret| text.contains(secret)) {
            LEAKS
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text.into_owned());
        }
        *LINES.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LeakDetector {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

/// Sends everything that the process logs, at the finest level, to the leak detector.
fn detect_leaks(secrets: impl IntoIterator<Item = String>) {
    static START: Once = Once::new();
    START.call_once(|| {
        let everything = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_writer(LeakDetector)
            .finish();
        tracing::subscriber::set_global_default(everything).unwrap();
        tracing_log::LogTracer::init().unwrap();
    });
    SECRETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(secrets);
}

fn assert_clean(value: &impl Debug, secrets: &[String]) {
    let printed = format!("{value:?} {value:#?}");
    for secret in secrets {
        assert!(!printed.contains(secret), "{printed}");
    }
}

fn assert_nothing_leaked() {
    let lines = *LINES.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(lines > 10, "nothing was logged");
    let leaks = LEAKS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[tokio::test]
async fn no_secret_is_logged_printed_or_returned_in_an_error() {
    let env = TestEnv::new().await;
    let wrong_password = "wrong-password".to_owned();
    detect_leaks([
        env.emulator.api_key().expose().to_owned(),
        wrong_password.clone(),
    ]);
    let neon = env.neon();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let at = created.connection_uris[0].connection_parameters.clone();
    let (id, compute) = (&created.project.id, &created.endpoints[0].id);
    let uri = neon
        .get_connection_uri(id, compute, &at.database, &at.role, true)
        .await
        .unwrap();
    let secrets = [
        env.emulator.api_key().expose().to_owned(),
        at.password.expose().to_owned(),
        wrong_password,
    ];
    detect_leaks([secrets[1].clone()]);
    assert_clean(&(&created, &at, &neon, uri), &secrets);

    // A whole life of a tenant at the finest log level, and a refused one.
    let known = Endpoint::neon(
        &at.host,
        &at.pooler_host,
        &at.database,
        &at.role,
        at.password.clone(),
    );
    let mut wrong = known.clone();
    wrong.password = secrets[2].as_str().into();
    assert_clean(&(&known, &wrong), &secrets);
    let router = env.configure(TenantRouter::builder(move |tenant: tenantry::TenantId| {
        let endpoint = if tenant.as_str() == "acme" {
            known.clone()
        } else {
            wrong.clone()
        };
        async move { Ok(Some(endpoint)) }
    }));
    assert_clean(&router, &secrets);
    let router = router.build().unwrap();
    let client = router.get("acme").await.unwrap();
    query_text(&client, "SELECT 1").await;
    assert_clean(&(&client, &*client, &router), &secrets);
    drop(client);
    env.emulator.suspend_all().await;
    drop(router.get("acme").await.unwrap());
    let refused = router.get("globex").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadCredential);
    assert_clean(&refused, &secrets);
    assert_nothing_leaked();
}

#[tokio::test]
async fn no_api_key_is_logged_printed_or_returned_in_an_error() {
    let env = TestEnv::new().await;
    let secrets = [
        "napi_wrong_key".to_owned(),
        env.emulator.api_key().expose().to_owned(),
    ];
    detect_leaks(secrets.clone());
    let builder = Neon::builder("napi_wrong_key").base_url(env.emulator.api_url());
    assert_clean(&builder, &secrets);
    let refused = builder
        .build()
        .unwrap()
        .get_project("p-1")
        .await
        .unwrap_err();
    assert_clean(&refused, &secrets);
    let provisioner = Provisioner::new(Memory::new(), env.neon(), "test").on_first_access();
    assert_clean(&provisioner, &secrets);
    drop(env.router().get("initech").await.unwrap());
    assert_nothing_leaked();
}

#[tokio::test]
async fn the_text_of_an_applications_own_error_is_returned_and_not_logged() {
    let env = TestEnv::new().await;
    let secret = "CREATE ROLE app PASSWORD 'hunter2-of-a-hook'";
    detect_leaks([secret.to_owned()]);
    let router = env.provisioning(|provisioner| {
        provisioner.prepare(move |_| async move { Err(secret.into()) })
    });
    let router = router.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    let answer = axum::response::IntoResponse::into_response(err);
    let body = axum::body::to_bytes(answer.into_body(), 10_000)
        .await
        .unwrap();
    assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
    let fleet = router.fleet().unwrap();
    let report = fleet.reconcile(&Reconcile::repair()).await.unwrap();
    let [finding] = &report.findings[..] else {
        panic!("{report:?}");
    };
    assert!(matches!(finding.outcome, Outcome::Failed(_)), "{finding:?}");
    assert_nothing_leaked();
}

#[tokio::test]
async fn no_password_is_sent_to_a_server_with_an_untrusted_certificate() {
    let env = TestEnv::new().await;
    env.project().await;
    let compute = env.emulator.witnesses().remove(0);
    let endpoint = env.endpoint(&compute).await;
    let lookup = move |_| {
        let endpoint = endpoint.clone();
        async move { Ok(Some(endpoint)) }
    };
    // By its addresses, and without its root certificate.
    let router = TenantRouter::builder(lookup).resolve(env.emulator.resolver());
    let err = router.build().unwrap().get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misconfigured);
    let causes = successors(err.source(), |&cause| cause.source());
    let cause = causes.last().unwrap().to_string();
    assert!(cause.contains("UnknownIssuer"), "{cause}");
    let compute = env.emulator.witnesses().remove(0);
    assert_eq!(compute.auth_attempts.len(), 0);
}
