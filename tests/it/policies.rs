//! The tenants that get a database, by which plan, and how many at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{Decision, ErrorKind, Plan, Provisioner};

use crate::support::{Backend, FakeControlPlane, TestEnv};

#[tokio::test]
async fn the_application_decides_which_tenant_gets_a_database_and_by_which_plan() {
    let env = TestEnv::new().await;
    let router = env.provisioning(|provisioner| {
        provisioner.decide(|tenant| async move {
            match tenant.as_str().split_once('-') {
                Some(("eu", _)) => Ok(Decision::Create(
                    Plan::new().named("eu").region("aws-eu-central-1"),
                )),
                Some(("us", _)) => Ok(Decision::Create(Plan::new().region("aws-us-east-2"))),
                Some(("mars", _)) => Ok(Decision::Create(Plan::new().region("mars-1"))),
                Some(_) => Err("the table of sign-ups cannot be read".into()),
                None => Ok(Decision::Refuse),
            }
        })
    });
    let router = router.build().unwrap();
    for tenant in ["eu-acme", "us-acme"] {
        drop(router.get(tenant).await.unwrap());
    }
    let region = |tenant: &str| {
        env.witness(tenant)
            .host
            .split_once('.')
            .unwrap()
            .1
            .to_owned()
    };
    assert!(region("eu-acme").starts_with("eu-central-1"));
    assert!(region("us-acme").starts_with("us-east-2"));
    for (tenant, kind) in [
        ("acme", ErrorKind::UnknownTenant),
        ("mars-acme", ErrorKind::Refused),
        ("x-acme", ErrorKind::Catalog),
    ] {
        let err = router.get(tenant).await.unwrap_err();
        assert_eq!(err.kind(), kind, "{err:?}");
    }
    assert_eq!(
        env.emulator.witnesses().len(),
        2,
        "nothing was created for the others"
    );
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_new_ids_meets_a_limit_and_not_the_api() {
    let backend = Backend::default();
    let router = FakeControlPlane::router_with(&backend, |it| it.creations_per_minute(60));
    let router = router.get_timeout(Duration::from_secs(50)).build().unwrap();
    let calls = (0..1000).map(|n| {
        let router = router.clone();
        tokio::spawn(async move { router.get(&format!("tenant-{n}")).await.map(drop) })
    });
    let (mut served, mut errors) = (0, Vec::new());
    for call in futures_util::future::join_all(calls).await {
        match call.unwrap() {
            Ok(()) => served += 1,
            Err(err) => errors.push(err),
        }
    }
    let created = backend.counts().created;
    assert!(
        (50..=66).contains(&created),
        "60 a minute, and 6 at once: {created}"
    );
    assert!(served > 0 && served <= created, "{served}");
    for err in &errors {
        assert!(
            matches!(err.kind(), ErrorKind::Overloaded | ErrorKind::Provisioning),
            "{err:?}"
        );
        assert!(err.retry_after().is_some(), "{err:?}");
    }
    let overloaded = errors
        .iter()
        .filter(|it| it.kind() == ErrorKind::Overloaded);
    assert!(overloaded.count() > 900);
    // Known tenants are none of it.
    drop(router.get("tenant-0").await.unwrap());
}

#[tokio::test]
async fn the_policy_is_not_asked_again_about_a_known_tenant() {
    let (env, asked) = (TestEnv::new().await, Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&asked);
    let router = env.provisioning(|provisioner| {
        provisioner.decide(move |_| {
            counter.fetch_add(1, Relaxed);
            async { Ok(Decision::Create(Plan::new())) }
        })
    });
    let router = router.build().unwrap();
    for _ in 0..3 {
        drop(router.get("acme").await.unwrap());
        router.evict("acme");
    }
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test]
async fn without_passwords_in_the_catalog_they_are_read_from_the_api() {
    let env = TestEnv::new().await;
    let router = env.provisioning(Provisioner::passwords_from_control_plane);
    let router = router.build().unwrap();
    drop(router.get("acme").await.unwrap());
    let record = router.fleet().unwrap().record("acme").await.unwrap();
    let endpoint = record.unwrap().endpoint.unwrap();
    assert_eq!(endpoint.password.expose(), "");
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
    assert_eq!(env.emulator.witnesses().len(), 1);
}
