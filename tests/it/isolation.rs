//! Never the wrong tenant.

mod caller;
mod cloud;
mod real;
mod shrink;
mod step;
mod town;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
};

use tenantry::TenantRouter;

use shrink::shrink;
use step::{Step, steps};
use town::Outcome;

use crate::support::{Stage, run_on};

/// Ids that a careless mapping would take for one another.
fn confusable() -> Vec<String> {
    let long = "x".repeat(255);
    let mut ids: Vec<String> = [
        "acme",
        "ACME",
        "Acme",
        "ac-me",
        "ac_me",
        "ac.me",
        "ac me",
        "acme ",
        "acme-",
        "\u{e9}",
        "e\u{301}",
        "E\u{301}",
        "../acme",
        "acme/..",
        "acme%00",
        "acme'; --",
        "\u{202e}acme",
        "acme\n",
        "0",
        "00",
    ]
    .map(String::from)
    .into();
    ids.extend([format!("{long}1"), format!("{long}2"), long]);
    ids
}

/// Writes `mark` into the tenant's database and returns everything that is written there.
async fn mark(router: &TenantRouter, tenant: &str, mark: &str) -> String {
    let client = router.get(tenant).await.unwrap();
    assert_eq!(client.tenant().as_str(), tenant);
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS marks (mark text)")
        .await
        .unwrap();
    client
        .execute("INSERT INTO marks VALUES ($1)", &[&mark])
        .await
        .unwrap();
    run_on(&client, "SELECT string_agg(mark, '|') FROM marks").await
}

#[tokio::test]
async fn ids_that_look_alike_never_share_a_database_nor_does_one_id_in_two_namespaces() {
    let stage = Stage::new().await;
    let (staging, production) = (
        stage.builder("staging").build().unwrap(),
        stage.builder("production").build().unwrap(),
    );
    let ids = confusable();
    for id in &ids {
        assert_eq!(mark(&staging, id, id).await, *id);
        stage.emulator.suspend_all().await; // a few at a time are enough
    }
    for id in ["acme", "ACME", "e\u{301}"] {
        assert_eq!(mark(&production, id, "production").await, "production");
    }
    let witnesses = stage.emulator.witnesses();
    let names: BTreeSet<_> = witnesses.iter().map(|it| &it.project_name).collect();
    assert_eq!(names.len(), ids.len() + 3);
    assert!(names.iter().all(|name| name.len() <= 256));
}

#[tokio::test]
async fn every_connection_answers_with_its_own_tenant_through_evictions_and_suspends() {
    let stage = Stage::new().await;
    let router = stage
        .builder("test")
        .max_pools(2)
        .pool_size(2)
        .build()
        .unwrap();
    let tenants = ["acme", "globex", "initech", "umbrella"];
    for tenant in tenants {
        assert_eq!(mark(&router, tenant, tenant).await, tenant);
    }
    let visitors = (0..40).map(|n| {
        let router = router.clone();
        tokio::spawn(async move {
            let tenant = tenants[n % tenants.len()];
            for _ in 0..5 {
                let client = router.get(tenant).await.unwrap();
                // A suspend may cut the query off; a wrong answer may not be.
                if let Ok(row) = client.query_typed("SELECT mark FROM marks", &[]).await {
                    assert_eq!(row[0].get::<_, &str>(0), tenant);
                }
            }
        })
    });
    let visits = tokio::spawn(futures_util::future::join_all(visitors));
    for tenant in tenants.iter().cycle().take(12) {
        router.evict(tenant);
        let id = stage.witness(tenant).endpoint_id;
        stage.emulator.suspend(&id).await;
    }
    for visit in visits.await.unwrap() {
        visit.unwrap();
    }
}

/// The seed of an earlier run, and how many steps to take.
const SEED: &str = "ISOLATION_SEED";
const STEPS: &str = "ISOLATION_STEPS";

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

/// The seed of this run.
fn seed() -> u64 {
    setting(SEED).unwrap_or_else(|| RandomState::new().hash_one(SEED) >> 32)
}

#[test]
fn thousands_of_steps_by_chance_never_lead_to_the_database_of_another() {
    let (seed, count) = (seed(), setting(STEPS).unwrap_or(10_000));
    let mut ids = confusable();
    ids.truncate(12);
    let all = steps(seed, usize::try_from(count).unwrap(), ids.len());
    let outcome = town::play(&all, &ids);
    if outcome.wrongs.is_empty() {
        let Outcome { answers, .. } = outcome;
        assert!(answers > count / 3, "{answers} answers mean little");
        return;
    }
    let fails = |steps: &[Step]| !town::play(steps, &ids).wrongs.is_empty();
    let least = shrink(&all[..outcome.taken], fails);
    let told = town::play(&least, &ids).wrongs;
    panic!(
        "{SEED}={seed} {STEPS}={count}: {:#?}\n{} of these steps are left, with which it is {told:#?}\n{least:#?}",
        outcome.wrongs,
        least.len(),
    );
}

#[tokio::test]
async fn nor_do_steps_by_chance_on_real_databases() {
    let (seed, count) = (seed(), setting(STEPS).unwrap_or(250));
    let ids: Vec<_> = confusable().into_iter().take(3).collect();
    let all = steps(seed, usize::try_from(count).unwrap(), ids.len());
    let Outcome {
        wrongs,
        answers,
        taken,
    } = real::play(&all, &ids).await;
    let taken = &all[..taken];
    assert!(
        wrongs.is_empty(),
        "{SEED}={seed} {STEPS}={count}: {wrongs:#?}\n{taken:#?}"
    );
    assert!(answers > count / 4, "{answers} answers mean little");
}

#[tokio::test]
async fn text_that_is_no_id_is_refused_before_anything_is_asked() {
    let stage = Stage::new().await;
    let router = stage.router();
    for bad in [String::new(), "a\0b".into(), "x".repeat(257)] {
        let err = router.get(&bad).await.unwrap_err();
        assert_eq!(err.kind(), tenantry::ErrorKind::InvalidTenant);
    }
    assert_eq!(router.status().lookups, 0);
}
