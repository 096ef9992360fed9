//! What those who use the public types lean on, though no signature says it. Most of it is held as soon as this compiles.

use std::{
    collections::BTreeMap, error::Error as StdError, fmt::Debug, future::Future, hash::Hash,
    time::Duration,
};

use tenantry::{
    BoxError, CancelToken, Decision, DirectClient, Encryption, Endpoint, Error, ErrorKind,
    ExhaustedQuota, Fleet, Identify, InvalidConfig, InvalidNamespace, InvalidTenantId, KeyRing,
    Login, Namespace, Neon, Plan, PrepareClient, Provisioner, Quota, Reconcile, RequestHead,
    RouterBuilder, Secret, Settings, Stage, Status, Suspend, SystemResolver, Tenant, TenantClient,
    TenantHandle, TenantId, TenantRouter, Tenants, TransactionOptions, Tx, WakeCount, Warm,
    WarmLayer, Warming,
    catalog::{
        AfterWrite, Attempt, CallError, Changes, InvalidRecord, Lease, Leased, Memory, Placement,
        Postgres, PostgresBuilder, Record, State,
    },
    control_plane::{Database, Found, Order, Progress},
    emulator::{CatalogServer, Emulator, EmulatorBuilder, EmulatorError, EmulatorResolver},
    fleet::{Finding, Outcome, Report, Trouble},
    neon::NeonBuilder,
};

/// It may be held by any task, moved to any thread, shared between them, and printed.
fn held<T: Debug + Send + Sync + Unpin + 'static>() {}

/// The same, and handed out to many.
fn copied<T: Clone + Debug + Send + Sync + Unpin + 'static>() {}

/// The same, and compared: a key, a kind, a label of a metric.
fn compared<T: Clone + Debug + Eq + Hash + Send + Sync + Unpin + 'static>() {}

/// `?` takes it wherever errors are boxed, and it is kept for as long as somebody likes.
fn error<T: StdError + Into<BoxError> + Send + Sync + Unpin + 'static>() {}

/// It can be spawned.
fn send(future: impl Future + Send) {
    drop(future);
}

#[test]
fn what_is_held_can_be_shared_between_threads_and_printed() {
    held::<TenantClient>();
    held::<DirectClient>();
    held::<Tx>();
    held::<PrepareClient>();
    held::<Warm>();
    held::<RouterBuilder>();
    held::<Provisioner>();
    held::<Memory>();
    held::<Emulator>();
    held::<CatalogServer>();
    copied::<TenantRouter>();
    copied::<TenantHandle>();
    copied::<Fleet>();
    copied::<CancelToken>();
    copied::<Neon>();
    copied::<NeonBuilder>();
    copied::<Postgres>();
    copied::<PostgresBuilder>();
    copied::<EmulatorBuilder>();
    copied::<EmulatorResolver>();
    copied::<SystemResolver>();
    copied::<Identify>();
    copied::<RequestHead>();
    copied::<Tenant>();
    copied::<Tenants>();
    copied::<WarmLayer>();
    copied::<Warming<()>>();
    copied::<Progress>();
    copied::<KeyRing>();
    copied::<Secret>();
    copied::<Settings>();
    copied::<TransactionOptions>();
    copied::<Reconcile>();
}

#[test]
fn what_is_told_can_be_kept_and_compared() {
    copied::<Status>();
    copied::<WakeCount>();
    copied::<Report>();
    copied::<Finding>();
    copied::<Outcome>();
    copied::<Trouble>();
    copied::<Decision>();
    copied::<Plan>();
    copied::<Quota>();
    copied::<Suspend>();
    copied::<Endpoint>();
    copied::<Encryption>();
    copied::<Login>();
    copied::<Record>();
    copied::<Placement>();
    copied::<AfterWrite>();
    compared::<TenantId>();
    compared::<Namespace>();
    compared::<ErrorKind>();
    compared::<ExhaustedQuota>();
    compared::<Stage>();
    compared::<State>();
}

#[test]
fn what_fails_is_an_error_like_any_other() {
    error::<Error>();
    error::<InvalidConfig>();
    error::<InvalidNamespace>();
    error::<InvalidTenantId>();
    error::<CallError>();
    error::<InvalidRecord>();
    error::<EmulatorError>();
    copied::<Error>();
    copied::<InvalidConfig>();
}

#[tokio::test]
async fn what_a_router_does_can_be_spawned() {
    let router = TenantRouter::builder(|_: TenantId| async { Ok(None) });
    let router = router.build().unwrap();
    let (acme, options) = (router.handle("acme").unwrap(), TransactionOptions::new());
    let note = String::from("borrowed by the closures");
    let note = note.as_str();
    let work = |tx: Tx| async move {
        tx.execute("INSERT INTO notes VALUES ($1)", &[&note])
            .await?;
        Ok::<_, Error>(())
    };
    send(router.get("acme"));
    send(router.direct(acme.tenant()));
    send(router.read("acme", work));
    send(router.read_with("acme", &options, work));
    send(router.transaction(&String::from("acme"), work));
    send(router.transaction_with("acme", &options, work));
    send(router.preload());
    send(router.close());
    send(router.close_within(Duration::ZERO));
    send(acme.get());
    send(acme.direct());
    send(acme.read(work));
    send(acme.read_with(&options, work));
    send(acme.transaction(work));
    send(acme.transaction_with(&options, work));
    send(router.warm("acme").wait());
    assert!(router.fleet().is_none());
    let _: [fn(_, _); 1] = [of_a_connection];
    let _: [fn(_); 1] = [of_a_fleet];
}

fn of_a_connection(direct: &mut DirectClient, token: &CancelToken) {
    send(token.cancel());
    send(direct.notification());
    send(direct.simple_query("SELECT 1"));
}

fn of_a_fleet(fleet: &Fleet) {
    let (how, plan) = (Reconcile::dry_run(), Plan::new());
    send(fleet.provision("acme"));
    send(fleet.provision_with("acme", &plan));
    send(fleet.reprovision("acme", &plan));
    send(fleet.import("acme", "project", None));
    send(fleet.delete("acme"));
    send(fleet.undelete("acme"));
    send(fleet.record("acme"));
    send(fleet.reconcile(&how));
}

/// Values that grow with time have no public shape, so each needs another way to be made.
#[test]
fn whoever_implements_a_seam_can_make_what_is_asked_for() {
    let (acme, endpoint) = (
        TenantId::parse("acme").unwrap(),
        Endpoint::postgres("h", "d", "r", "p"),
    );
    let placement = Placement::new("project");
    let lease = Lease::new(acme.clone(), "me", 1);
    let mut record = Record::new(acme.clone(), State::Creating);
    record.attempt = Some(Attempt::new("attempt", Duration::ZERO));
    let mut changes = Changes::default();
    changes.tenants.push(acme);
    let order = Order::new("name", BTreeMap::new(), Plan::new());
    assert_eq!(Found::new("id", &order.name, None).name, "name");
    assert_eq!(
        Database::new(placement, endpoint).placement.project,
        "project"
    );
    assert!(matches!(
        Leased::Granted(lease, Box::new(record)),
        Leased::Granted(..)
    ));
    let namespace: Namespace = "test".parse().unwrap();
    assert_eq!(namespace.as_ref(), "test");
}

#[tokio::test]
async fn a_root_certificate_is_bytes_and_what_is_none_is_refused() {
    for wrong in ["", "-----BEGIN CERTIFICATE-----"] {
        let router = TenantRouter::builder(|_: TenantId| async { Ok(None) });
        let err = router.root_certificate(wrong).build().unwrap_err();
        assert!(err.to_string().contains("DER"), "{err}");
    }
}
