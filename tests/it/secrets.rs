//! No secret in any `Debug`, error or log, and none sent to whoever answers.

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

use crate::support::{Stage, run_on};

/// What must not be logged, and the lines in which it was. Everything in this process is watched from the first
/// `watch` on, whichever test logs it.
#[derive(Clone, Copy, Default)]
struct Watchman;

static SECRETS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LINES: Mutex<usize> = Mutex::new(0);

impl io::Write for Watchman {
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

impl<'a> MakeWriter<'a> for Watchman {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

/// Logs everything that anybody in the process says, at the finest level, to the watchman.
fn watch(secrets: impl IntoIterator<Item = String>) {
    static START: Once = Once::new();
    START.call_once(|| {
        let everything = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_writer(Watchman)
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
async fn no_secret_is_logged_printed_or_told() {
    let stage = Stage::new().await;
    let wrong_password = "wrong-password".to_owned();
    watch([
        stage.emulator.api_key().expose().to_owned(),
        wrong_password.clone(),
    ]);
    let neon = stage.neon();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let at = created.connection_uris[0].connection_parameters.clone();
    let (id, compute) = (&created.project.id, &created.endpoints[0].id);
    let uri = neon
        .get_connection_uri(id, compute, &at.database, &at.role, true)
        .await
        .unwrap();
    let secrets = [
        stage.emulator.api_key().expose().to_owned(),
        at.password.expose().to_owned(),
        wrong_password,
    ];
    watch([secrets[1].clone()]);
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
    let router = stage.at(TenantRouter::builder(move |tenant: tenantry::TenantId| {
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
    run_on(&client, "SELECT 1").await;
    assert_clean(&(&client, &*client, &router), &secrets);
    drop(client);
    stage.emulator.suspend_all().await;
    drop(router.get("acme").await.unwrap());
    let refused = router.get("globex").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadCredential);
    assert_clean(&refused, &secrets);
    assert_nothing_leaked();
}

#[tokio::test]
async fn no_api_key_is_logged_printed_or_told() {
    let stage = Stage::new().await;
    let secrets = [
        "napi_wrong_key".to_owned(),
        stage.emulator.api_key().expose().to_owned(),
    ];
    watch(secrets.clone());
    let builder = Neon::builder("napi_wrong_key").base_url(stage.emulator.api_url());
    assert_clean(&builder, &secrets);
    let refused = builder
        .build()
        .unwrap()
        .get_project("p-1")
        .await
        .unwrap_err();
    assert_clean(&refused, &secrets);
    let provisioner = Provisioner::new(Memory::new(), stage.neon(), "test").on_first_access();
    assert_clean(&provisioner, &secrets);
    drop(stage.router().get("initech").await.unwrap());
    assert_nothing_leaked();
}

#[tokio::test]
async fn what_an_applications_own_error_says_is_told_to_the_application_and_not_logged() {
    let stage = Stage::new().await;
    let secret = "CREATE ROLE app PASSWORD 'hunter2-of-a-hook'";
    watch([secret.to_owned()]);
    let router = stage.provisioning(|provisioner| {
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
async fn no_password_is_sent_to_a_server_that_nobody_vouches_for() {
    let stage = Stage::new().await;
    stage.project().await;
    let compute = stage.emulator.witnesses().remove(0);
    let endpoint = stage.endpoint(&compute).await;
    let lookup = move |_| {
        let endpoint = endpoint.clone();
        async move { Ok(Some(endpoint)) }
    };
    // By its addresses, and without its root certificate.
    let router = TenantRouter::builder(lookup).resolve(stage.emulator.resolver());
    let err = router.build().unwrap().get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Misconfigured);
    let causes = successors(err.source(), |&cause| cause.source());
    let cause = causes.last().unwrap().to_string();
    assert!(cause.contains("UnknownIssuer"), "{cause}");
    let compute = stage.emulator.witnesses().remove(0);
    assert_eq!(compute.auth_attempts.len(), 0);
}
