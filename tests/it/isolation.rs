//! Never the wrong tenant.

mod caller;
mod cloud;
mod operator;
mod real;
mod shrink;
mod simulation;
mod step;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    time::Duration,
};

use tenantry::TenantRouter;
use tokio::runtime::Builder;

use shrink::shrink;
use simulation::Outcome;
use step::{Step, steps};

use crate::support::{Heartbeat, TestEnv, query_text, run_watched};

/// Ids that a careless mapping would take for one another.
fn confusable_ids() -> Vec<String> {
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
async fn write_mark(router: &TenantRouter, tenant: &str, mark: &str) -> String {
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
    query_text(&client, "SELECT string_agg(mark, '|') FROM marks").await
}

#[tokio::test]
async fn similar_ids_and_equal_ids_in_two_namespaces_never_share_a_database() {
    let env = TestEnv::new().await;
    let (staging, production) = (
        env.builder("staging").build().unwrap(),
        env.builder("production").build().unwrap(),
    );
    let ids = confusable_ids();
    for id in &ids {
        assert_eq!(write_mark(&staging, id, id).await, *id);
        env.emulator.suspend_all().await; // a few at a time are enough
    }
    for id in ["acme", "ACME", "e\u{301}"] {
        assert_eq!(
            write_mark(&production, id, "production").await,
            "production"
        );
    }
    let witnesses = env.emulator.witnesses();
    let names: BTreeSet<_> = witnesses.iter().map(|it| &it.project_name).collect();
    assert_eq!(names.len(), ids.len() + 3);
    assert!(names.iter().all(|name| name.len() <= 256));
}

#[tokio::test]
async fn every_connection_answers_with_its_own_tenant_through_evictions_and_suspends() {
    let env = TestEnv::new().await;
    let router = env
        .builder("test")
        .max_pools(2)
        .pool_size(2)
        .build()
        .unwrap();
    let tenants = ["acme", "globex", "initech", "umbrella"];
    for tenant in tenants {
        assert_eq!(write_mark(&router, tenant, tenant).await, tenant);
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
        let id = env.witness(tenant).endpoint_id;
        env.emulator.suspend(&id).await;
    }
    for visit in visits.await.unwrap() {
        visit.unwrap();
    }
}

/// The seed of an earlier run, how many steps to take, and with how many seeds one after the other.
const SEED: &str = "ISOLATION_SEED";
const STEPS: &str = "ISOLATION_STEPS";
const SEEDS: &str = "ISOLATION_SEEDS";
/// The longest time that one step may take by a real clock.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// The same when fewer steps are looked for that still fail.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(5);
/// By so much of a processor's time one run may always be longer than another.
const CPU_TOLERANCE: Duration = Duration::from_secs(1);

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

/// Says something past the capture of output.
fn print_uncaptured(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Takes steps under paused time; returns how long a processor worked on them. An error says what is wrong, and to
/// which steps it comes down if it `shrinks`.
fn run_simulation(seed: u64, count: u64, shrinks: bool) -> Result<Duration, String> {
    let mut ids = confusable_ids();
    ids.truncate(12);
    let (all, label) = (
        steps(seed, usize::try_from(count).unwrap(), ids.len()),
        format!("{SEED}={seed} {STEPS}={count}"),
    );
    let (outcome, took) = simulation::run(&all, &ids, &label, STEP_TIMEOUT);
    let Outcome {
        violations,
        answers,
        applied,
        stuck,
    } = outcome;
    if violations.is_empty() {
        let enough = answers > count / 4;
        return (enough.then_some(took)).ok_or(format!("{label}: {answers} answers mean little"));
    }
    if !shrinks {
        return Err(format!("{label}: {violations:#?}"));
    }
    let again = |steps: &[Step]| simulation::run(steps, &ids, &label, SHRINK_TIMEOUT).0;
    let fails = |steps: &[Step]| {
        let now = again(steps);
        !now.violations.is_empty() && now.stuck == stuck
    };
    // The step at which it panics or spins was not taken to its end.
    let minimal = shrink(&all[..all.len().min(applied + 1)], fails);
    Err(format!(
        "{label}: {violations:#?}\n{} of these steps are left, with which it is {:#?}\n{minimal:#?}",
        minimal.len(),
        again(&minimal).violations,
    ))
}

#[test]
fn thousands_of_random_steps_never_lead_to_the_database_of_another_tenant() {
    let (first, count) = (seed(), setting(STEPS).unwrap_or(10_000));
    let seeds = setting(SEEDS).unwrap_or(1);
    let (mut times, mut violations) = (Vec::new(), Vec::new());
    for seed in (first..).take(usize::try_from(seeds).unwrap()) {
        match run_simulation(seed, count, seeds == 1) {
            Ok(took) => times.push((took, seed)),
            Err(wrong) => violations.push(wrong),
        }
        if seeds > 1 {
            let (took, wrong) = (times.last().map(|it| it.0), violations.len());
            print_uncaptured(&format!("{SEED}={seed}: {took:.2?}, {wrong} wrong so far"));
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    times.sort_unstable();
    let (median, (longest, seed)) = (times[times.len() / 2].0, *times.last().unwrap());
    let limit = (3 * median).max(median + CPU_TOLERANCE);
    assert!(
        longest <= limit,
        "{SEED}={seed} {STEPS}={count}: it took {longest:?}, and half of {seeds} took no longer than {median:?}"
    );
}

#[test]
fn random_steps_on_real_databases_never_lead_to_the_database_of_another_tenant() {
    let (seed, count) = (seed(), setting(STEPS).unwrap_or(250));
    let ids: Vec<_> = confusable_ids().into_iter().take(3).collect();
    let all = steps(seed, usize::try_from(count).unwrap(), ids.len());
    let (label, steps) = (format!("{SEED}={seed} {STEPS}={count}"), all.clone());
    let run = move |heartbeat: Heartbeat| {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = heartbeat.stopped() => None,
                outcome = real::run(&steps, &ids, &heartbeat) => Some(outcome),
            }
        })
    };
    let describe = |step| format!("{label}: {}", simulation::describe(&all, step));
    let outcome = run_watched(2 * STEP_TIMEOUT, describe, run);
    let Ok(Some(outcome)) = outcome else {
        panic!("{label}: a step does not end");
    };
    let Outcome {
        violations,
        answers,
        applied,
        ..
    } = outcome;
    let applied = &all[..applied];
    assert!(
        violations.is_empty(),
        "{label}: {violations:#?}\n{applied:#?}"
    );
    assert!(answers > count / 4, "{answers} answers mean little");
}

#[tokio::test]
async fn text_that_is_no_id_is_refused_before_anything_is_asked() {
    let env = TestEnv::new().await;
    let router = env.router();
    for bad in [String::new(), "a\0b".into(), "x".repeat(257)] {
        let err = router.get(&bad).await.unwrap_err();
        assert_eq!(err.kind(), tenantry::ErrorKind::InvalidTenant);
    }
    assert_eq!(router.status().lookups, 0);
}
