//! Each kind of error as `main` prints it, side by side, to be read by people: does it say what to do?

use std::{
    collections::BTreeSet, env, error::Error as _, fmt::Write as _, fs, path::PathBuf,
    time::Duration,
};

use tenantry::{Error, Plan, Schema, TenantRouter, catalog::State};

use crate::support::{Backend, DOWN, Failure, FakeCatalog, FakeControlPlane, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);
const MANUAL: &str = include_str!("../../src/manual/errors.md");

/// The SQLSTATE and text of each error that a proxy or a server sends in place of a login.
const LOGINS: &[(&str, &str)] = &[
    (
        "28P01",
        "password authentication failed for user 'neondb_owner'",
    ),
    (
        "XX000",
        "password authentication failed for user \"neondb_owner\"",
    ),
    (
        "XX000",
        "The endpoint has been disabled. Enable it using Neon API and retry.",
    ),
    (
        "XX000",
        "The requested endpoint could not be found, or you don't have access to it.",
    ),
    (
        "XX000",
        "This IP address 10.0.0.1 is not allowed to connect to this endpoint.",
    ),
    (
        "XX000",
        "Your project has exceeded the compute time quota. Upgrade your plan to increase limits.",
    ),
    (
        "XX000",
        "You have exceeded the limit of concurrently active endpoints.",
    ),
    ("XX000", "Too many connections attempts"),
    (
        "XX000",
        "Your project already has running operations. Please wait until they complete",
    ),
    ("XX000", "Control plane request failed"),
    ("3D000", "database \"nodb\" does not exist"),
];

/// Errors by what went wrong.
type Errors = Vec<(String, Error)>;

async fn login_errors(errors: &mut Errors) {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    for (number, (code, text)) in LOGINS.iter().enumerate() {
        let tenant = format!("t{number}");
        backend.set_at(
            &tenant,
            Step::Login,
            Gate::Fail(Failure::Error { code, text }),
        );
        let err = router.get(&tenant).await.unwrap_err();
        errors.push((format!("login: {text}"), err));
    }
    for (step, what) in [
        (Step::Open, "no way to the host"),
        (Step::Login, "cut off while connecting"),
    ] {
        let tenant = format!("{step:?}").to_lowercase();
        backend.set_at(&tenant, step, Gate::Fail(Failure::Cut));
        errors.push((what.into(), router.get(&tenant).await.unwrap_err()));
    }
    errors.push(("an empty id".into(), router.get("").await.unwrap_err()));
}

async fn transaction_errors(errors: &mut Errors) {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    backend.set(Step::Commit, Gate::Fail(Failure::Cut));
    let lost = router.transaction("acme", |_tx| async { Ok::<_, Error>(()) });
    errors.push(("COMMIT without an answer".into(), lost.await.unwrap_err()));
    backend.set(Step::Commit, Gate::Open);
    backend.set(
        Step::Query,
        Gate::Fail(Failure::Error {
            code: "23505",
            text: "duplicate key value violates unique constraint \"k\"",
        }),
    );
    let failed = router.transaction("acme", |tx| async move {
        tx.batch_execute("x").await?;
        Ok::<_, Error>(())
    });
    errors.push(("a failed query".into(), failed.await.unwrap_err()));
    let rolled_back = router.transaction("acme", |tx| async move {
        drop(tx.batch_execute("x").await);
        Ok::<_, Error>(())
    });
    errors.push((
        "COMMIT after a failed query".into(),
        rolled_back.await.unwrap_err(),
    ));
    backend.set(Step::Query, Gate::Open);
    let ended = router.transaction("acme", |tx| async move {
        tx.batch_execute("COMMIT").await?;
        Ok::<_, Error>(())
    });
    errors.push(("COMMIT by the closure".into(), ended.await.unwrap_err()));
    backend.set(Step::Query, Gate::Stuck);
    let slow = router.read("acme", |tx| async move {
        tx.batch_execute("x").await?;
        Ok::<_, Error>(())
    });
    errors.push(("a query without an end".into(), slow.await.unwrap_err()));
    router.close().await;
    errors.push((
        "a closed router".into(),
        router.get("acme").await.unwrap_err(),
    ));
}

async fn schema_errors(errors: &mut Errors) {
    let backend = Backend::default();
    let schema = Schema::new().step(1, "notes", "CREATE TABLE notes (day date)");
    let router = backend.router().schema(schema).build().unwrap();
    let code = "42501";
    let text = "permission denied for schema tenantry";
    backend.set(Step::Query, Gate::Fail(Failure::Error { code, text }));
    let err = router.migrate("acme").await.unwrap_err();
    errors.push(("a history that cannot be read".into(), err));
}

async fn limit_errors(errors: &mut Errors) {
    let backend = Backend::default();
    let router = backend
        .router()
        .pool_size(1)
        .waiting_per_tenant(1)
        .build()
        .unwrap();
    let _held = router.get("acme").await.unwrap();
    let waits = router.get("acme");
    let rejected = async {
        tokio::time::sleep(SECOND).await;
        router.get("acme").await.unwrap_err()
    };
    let (full, rejected) = tokio::join!(waits, rejected);
    errors.push(("a full pool".into(), full.unwrap_err()));
    errors.push(("too many who wait".into(), rejected));
    let router = backend
        .router()
        .max_connections(1)
        .wake_reserve(0)
        .build()
        .unwrap();
    let _held = router.get("acme").await.unwrap();
    let err = router.get("globex").await.unwrap_err();
    errors.push(("no connection left for another tenant".into(), err));
}

async fn lookup_errors(errors: &mut Errors) {
    let backend = Backend::default();
    let router = backend.router_with_lookup(|_| None).build().unwrap();
    errors.push((
        "no such tenant".into(),
        router.get("acme").await.unwrap_err(),
    ));
    let router =
        TenantRouter::builder(|_| async { panic!("the test's look-up panics, as it should") });
    let router = router.build().unwrap();
    errors.push((
        "a panic of the look-up".into(),
        router.get("acme").await.unwrap_err(),
    ));
}

async fn record_errors(errors: &mut Errors) {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    for tenant in ["deleted", "held", "broken", "there"] {
        catalog.publish(tenant, tenant).await;
    }
    catalog.set_state("deleted", State::Deleting).await;
    catalog.set_state("deleted", State::Deleted).await;
    catalog.set_state("held", State::Held).await;
    catalog.break_record("broken");
    let provisioner = FakeControlPlane::provisioner(&backend, catalog.clone());
    let router = backend
        .configure(TenantRouter::provisioning(provisioner))
        .build()
        .unwrap();
    for tenant in ["deleted", "held", "broken"] {
        errors.push((
            format!("a record that is {tenant}"),
            router.get(tenant).await.unwrap_err(),
        ));
    }
    let fleet = router.fleet().unwrap();
    errors.push((
        "an undelete of a tenant that is held".into(),
        fleet.undelete("held").await.unwrap_err(),
    ));
    errors.push((
        "an import of no project".into(),
        fleet.import("new", "p", None).await.unwrap_err(),
    ));
    let contradiction = Plan::new().compute_units(4.0, 1.0);
    errors.push((
        "a plan that contradicts itself".into(),
        fleet
            .provision_with("plan", &contradiction)
            .await
            .unwrap_err(),
    ));
    backend.set(Step::Create, Gate::Slow(60 * SECOND));
    errors.push((
        "a slow creation".into(),
        router.get("new").await.unwrap_err(),
    ));
    catalog.set(DOWN);
    errors.push((
        "a catalog that is down".into(),
        router.get("other").await.unwrap_err(),
    ));
}

/// The codes of an error and of its causes.
fn codes(err: &Error) -> Vec<&'static str> {
    let (mut codes, mut next) = (vec![err.kind().code()], err.source());
    while let Some(cause) = next {
        codes.extend(cause.downcast_ref::<Error>().map(|it| it.kind().code()));
        next = cause.source();
    }
    codes
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_error_is_printed_as_in_the_reviewed_fixture() {
    let mut errors = Errors::new();
    login_errors(&mut errors).await;
    transaction_errors(&mut errors).await;
    schema_errors(&mut errors).await;
    limit_errors(&mut errors).await;
    lookup_errors(&mut errors).await;
    record_errors(&mut errors).await;
    let mut page = String::new();
    let mut seen = BTreeSet::new();
    for (what, err) in &errors {
        seen.extend(codes(err));
        let codes = codes(err).join(" < ");
        write!(page, "# {what}\n{codes}\n{err:?}\n\n").unwrap();
    }
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/errors.txt");
    if env::var_os("WRITE_FIXTURES").is_some() {
        fs::write(&place, &page).unwrap();
    }
    let read = fs::read_to_string(&place).unwrap();
    assert_eq!(
        page, read,
        "read what is new, then run it with WRITE_FIXTURES=1"
    );
    let sections = MANUAL.lines().filter_map(|line| line.strip_prefix("## "));
    let missing: Vec<_> = sections.filter(|code| !seen.contains(code)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "kinds that nothing here meets");
}
