//! No secret in any `Debug`, error or log.

use std::{
    fmt::Debug,
    io,
    sync::{Mutex, Once, PoisonError},
};

use tenantry::{
    Endpoint, ErrorKind, Neon, Provisioner, TenantRouter, neon::CreateProject, records::Memory,
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

#[tokio::test]
async fn no_secret_is_logged_printed_or_told() {
    let stage = Stage::new().await;
    let key = stage.emulator.api_key().expose().to_owned();
    watch([
        key.clone(),
        "napi_wrong_key".into(),
        "wrong-password".into(),
    ]);
    let neon = stage.neon();
    let created = neon.create_project(&CreateProject::new("p")).await.unwrap();
    let at = created.connection_uris[0].connection_parameters.clone();
    let secrets = [
        key,
        at.password.expose().to_owned(),
        "napi_wrong_key".into(),
        "wrong-password".into(),
    ];
    watch([secrets[1].clone()]);
    let uri = neon
        .connection_uri(
            &created.project.id,
            &created.endpoints[0].id,
            &at.database,
            &at.role,
            true,
        )
        .await;
    assert_clean(&(&created, &at, &neon, uri.unwrap()), &secrets);

    // A whole life of a tenant at the finest log level.
    let endpoint = Endpoint::neon(
        &at.host,
        &at.pooler_host,
        &at.database,
        &at.role,
        at.password.clone(),
    );
    let mut wrong = endpoint.clone();
    wrong.password = "wrong-password".into();
    let (known, unknown) = (endpoint.clone(), wrong.clone());
    let router = stage.at(TenantRouter::builder(move |tenant: tenantry::TenantId| {
        let endpoint = if tenant.as_str() == "acme" {
            known.clone()
        } else {
            unknown.clone()
        };
        async move { Ok(Some(endpoint)) }
    }));
    assert_clean(&router, &secrets);
    let router = router.build().unwrap();
    let client = router.get("acme").await.unwrap();
    run_on(&client, "SELECT 1").await;
    assert_clean(&(&client, &*client, &router, &endpoint, &wrong), &secrets);
    drop(client);
    stage.emulator.suspend_all().await;
    drop(router.get("acme").await.unwrap());
    let refused = router.get("globex").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_clean(&refused, &secrets);

    // A refused key, and provisioning.
    let builder = Neon::builder("napi_wrong_key").base_url(stage.emulator.api_url());
    assert_clean(&builder, &secrets);
    let refused = builder
        .build()
        .unwrap()
        .get_project("p-1")
        .await
        .unwrap_err();
    assert_clean(&refused, &secrets);
    let provisioner = Provisioner::new(Memory::new(), stage.neon(), "test");
    assert_clean(&provisioner, &secrets);
    drop(stage.router().get("initech").await.unwrap());

    assert!(
        *LINES.lock().unwrap_or_else(PoisonError::into_inner) > 100,
        "nothing was logged"
    );
    let leaks = LEAKS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(leaks.is_empty(), "{leaks:#?}");
}
