//! Properties of the public types that no signature shows. Most of them hold if this compiles.

use std::{
    collections::BTreeMap, error::Error as StdError, fmt::Debug, future::Future, hash::Hash,
    time::Duration,
};

use tenantry::{
    AppliedStep, Baseline, BoxError, CancelToken, Decision, DirectClient, Encryption, Endpoint,
    Error, ErrorKind, ExhaustedQuota, Fleet, Identify, InvalidConfig, InvalidNamespace,
    InvalidTenantId, KeyRing, Login, Migrated, MigrationClient, Namespace, Neon, Plan,
    PrepareClient, Provisioner, Quota, Reconcile, RequestHead, RouterBuilder, Schema, SchemaFault,
    Secret, Settings, Stage, Status, Suspend, SystemResolver, Tenant, TenantClient, TenantHandle,
    TenantId, TenantRouter, Tenants, TransactionOptions, Tx, WakeCount, Warm, WarmLayer, Warming,
    catalog::{
        AfterWrite, Attempt, CallError, Changes, InvalidRecord, Lease, Leased, Memory, Placement,
        Postgres, PostgresBuilder, Record, SchemaFailure, SchemaState, SchemaTally, State,
    },
    control_plane::{Database, Found, Order, Progress},
    emulator::{CatalogServer, Emulator, EmulatorBuilder, EmulatorError, EmulatorResolver},
    fleet::{Finding, Outcome, PendingStep, Report, TenantSchema, Trouble},
    neon::NeonBuilder,
};

/// It may be held by any task, moved to any thread, shared between them, and printed.
fn assert_shareable<T: Debug + Send + Sync + Unpin + 'static>() {}

/// The same, and handed out to many.
fn assert_clonable<T: Clone + Debug + Send + Sync + Unpin + 'static>() {}

/// The same, and compared: a key, a kind, a label of a metric.
fn assert_comparable<T: Clone + Debug + Eq + Hash + Send + Sync + Unpin + 'static>() {}

/// `?` takes it wherever errors are boxed, and it may be kept for any time.
fn assert_error<T: StdError + Into<BoxError> + Send + Sync + Unpin + 'static>() {}

/// It can be spawned.
fn assert_send(future: impl Future + Send) {
    drop(future);
}

#[test]
fn handles_can_be_shared_between_threads_and_printed() {
    assert_shareable::<TenantClient>();
    assert_shareable::<DirectClient>();
    assert_shareable::<Tx>();
    assert_shareable::<PrepareClient>();
    assert_shareable::<MigrationClient>();
    assert_shareable::<Warm>();
    assert_shareable::<RouterBuilder>();
    assert_shareable::<Provisioner>();
    assert_shareable::<Memory>();
    assert_shareable::<Emulator>();
    assert_shareable::<CatalogServer>();
    assert_clonable::<TenantRouter>();
    assert_clonable::<TenantHandle>();
    assert_clonable::<Fleet>();
    assert_clonable::<CancelToken>();
    assert_clonable::<Neon>();
    assert_clonable::<NeonBuilder>();
    assert_clonable::<Postgres>();
    assert_clonable::<PostgresBuilder>();
    assert_clonable::<EmulatorBuilder>();
    assert_clonable::<EmulatorResolver>();
    assert_clonable::<SystemResolver>();
    assert_clonable::<Identify>();
    assert_clonable::<RequestHead>();
    assert_clonable::<Tenant>();
    assert_clonable::<Tenants>();
    assert_clonable::<WarmLayer>();
    assert_clonable::<Warming<()>>();
    assert_clonable::<Progress>();
    assert_clonable::<KeyRing>();
    assert_clonable::<Secret>();
    assert_clonable::<Settings>();
    assert_clonable::<TransactionOptions>();
    assert_clonable::<Reconcile>();
    assert_clonable::<Schema>();
}

#[test]
fn values_can_be_cloned_and_compared() {
    assert_clonable::<Status>();
    assert_clonable::<Migrated>();
    assert_clonable::<AppliedStep>();
    assert_clonable::<Baseline>();
    assert_clonable::<WakeCount>();
    assert_clonable::<Report>();
    assert_clonable::<Finding>();
    assert_clonable::<Outcome>();
    assert_clonable::<Trouble>();
    assert_clonable::<Decision>();
    assert_clonable::<Plan>();
    assert_clonable::<Quota>();
    assert_clonable::<Suspend>();
    assert_clonable::<Endpoint>();
    assert_clonable::<Encryption>();
    assert_clonable::<Login>();
    assert_clonable::<Record>();
    assert_clonable::<Placement>();
    assert_clonable::<SchemaState>();
    assert_clonable::<SchemaFailure>();
    assert_clonable::<SchemaTally>();
    assert_clonable::<TenantSchema>();
    assert_clonable::<PendingStep>();
    assert_clonable::<AfterWrite>();
    assert_comparable::<TenantId>();
    assert_comparable::<Namespace>();
    assert_comparable::<ErrorKind>();
    assert_comparable::<ExhaustedQuota>();
    assert_comparable::<SchemaFault>();
    assert_comparable::<Stage>();
    assert_comparable::<State>();
}

#[test]
fn errors_implement_the_error_trait_and_can_be_sent() {
    assert_error::<Error>();
    assert_error::<InvalidConfig>();
    assert_error::<InvalidNamespace>();
    assert_error::<InvalidTenantId>();
    assert_error::<CallError>();
    assert_error::<InvalidRecord>();
    assert_error::<EmulatorError>();
    assert_clonable::<Error>();
    assert_clonable::<InvalidConfig>();
}

#[tokio::test]
async fn futures_of_a_router_can_be_spawned() {
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
    assert_send(router.get("acme"));
    assert_send(router.direct(acme.tenant()));
    assert_send(router.migrate("acme"));
    assert_send(router.read("acme", work));
    assert_send(router.read_with("acme", &options, work));
    assert_send(router.transaction(&String::from("acme"), work));
    assert_send(router.transaction_with("acme", &options, work));
    assert_send(router.preload());
    assert_send(router.close());
    assert_send(router.close_within(Duration::ZERO));
    assert_send(acme.get());
    assert_send(acme.direct());
    assert_send(acme.read(work));
    assert_send(acme.read_with(&options, work));
    assert_send(acme.transaction(work));
    assert_send(acme.transaction_with(&options, work));
    assert_send(router.warm("acme").wait());
    assert!(router.fleet().is_none());
    let _: [fn(_, _); 1] = [connection_futures];
    let _: [fn(_); 1] = [fleet_futures];
}

fn connection_futures(direct: &mut DirectClient, token: &CancelToken) {
    assert_send(token.cancel());
    assert_send(direct.notification());
    assert_send(direct.simple_query("SELECT 1"));
}

fn fleet_futures(fleet: &Fleet) {
    let (how, plan) = (Reconcile::dry_run(), Plan::new());
    assert_send(fleet.provision("acme"));
    assert_send(fleet.provision_with("acme", &plan));
    assert_send(fleet.reprovision("acme", &plan));
    assert_send(fleet.import("acme", "project", None));
    assert_send(fleet.delete("acme"));
    assert_send(fleet.undelete("acme"));
    assert_send(fleet.record("acme"));
    assert_send(fleet.schema_of("acme"));
    assert_send(fleet.schema_versions());
    assert_send(fleet.retry_schema("acme"));
    assert_send(fleet.forget_schema("acme"));
    assert_send(fleet.baseline("acme", 1));
    assert_send(fleet.import_at("acme", "project", None, 1));
    assert_send(fleet.reconcile(&how));
}

/// Values that grow with time have no public shape, so each needs another way to be made.
#[test]
fn an_implementation_of_a_public_trait_can_construct_every_value_it_needs() {
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
async fn an_invalid_root_certificate_is_refused() {
    for wrong in ["", "-----BEGIN CERTIFICATE-----"] {
        let router = TenantRouter::builder(|_: TenantId| async { Ok(None) });
        let err = router.root_certificate(wrong).build().unwrap_err();
        assert!(err.to_string().contains("DER"), "{err}");
    }
}
