//! Many new tenants at two replicas while the API fails, loses answers, limits, locks and forgets.

use std::time::Duration;

use futures_util::future::join_all;
use tenantry::{
    Reconcile,
    catalog::State,
    emulator::{ApiFault, Emulator},
    fleet::Finding,
};

use crate::support::{Deployment, LONG, WINDOW};

const CREATIONS: &str = "POST /projects";
const READS: &str = "GET ";
const ALL: &str = "";

const TENANTS: usize = 40;

/// Provisions all tenants at both routers at once, through whatever `inject_faults` makes, and checks that each has
/// exactly one published project. Says how many projects there are.
async fn provision_all_during(
    deployment: &Deployment,
    inject_faults: impl FnOnce(&Emulator),
) -> usize {
    // Nobody dies here, and so many creations at once take their time.
    let router = || deployment.router(|it| it.lease_time(LONG));
    let routers = [router(), router()];
    inject_faults(&deployment.env.emulator);
    let calls = (0..TENANTS).flat_map(|n| {
        routers.iter().map(move |router| async move {
            let fleet = router.fleet().unwrap();
            fleet.provision(&format!("tenant-{n}")).await
        })
    });
    let done = tokio::time::timeout(2 * LONG, join_all(calls)).await;
    for result in done.expect("it takes too long") {
        result.unwrap();
    }
    let records = deployment.all_records().await;
    assert_eq!(records.len(), TENANTS);
    let ready = records.iter().all(|it| it.state == State::Ready);
    assert!(ready, "{records:?}");
    deployment.env.emulator.witnesses().len()
}

/// After one reconcile each tenant has its published project and no other.
async fn assert_reconciled(deployment: &Deployment) {
    let router = deployment.router(|it| it);
    let how = Reconcile::repair().grace(Duration::ZERO);
    let report = router.fleet().unwrap().reconcile(&how).await.unwrap();
    let troubled = report.findings.iter().any(Finding::needs_attention);
    assert!(!troubled, "{report:?}");
    let mut published: Vec<_> = deployment.all_records().await;
    published.sort_by(|a, b| a.project().cmp(&b.project()));
    let mut found = deployment.env.emulator.witnesses();
    found.sort_by(|a, b| a.project_id.cmp(&b.project_id));
    let published = published
        .iter()
        .map(|it| (it.project().unwrap(), it.tenant.as_str()));
    let found = found.iter().map(|it| {
        (
            it.project_id.as_str(),
            it.annotations["tenantry-tenant"].as_str(),
        )
    });
    assert_eq!(found.collect::<Vec<_>>(), published.collect::<Vec<_>>());
}

/// All of that, where nothing is done twice: one project for each tenant, before and after the reconcile.
async fn assert_one_project_each(inject_faults: impl FnOnce(&Emulator)) {
    let deployment = Deployment::new().await;
    assert_eq!(
        provision_all_during(&deployment, inject_faults).await,
        TENANTS
    );
    assert_reconciled(&deployment).await;
}

#[tokio::test]
async fn creations_whose_answers_are_lost_are_found_and_not_repeated() {
    assert_one_project_each(|emulator| {
        emulator.fail_api(CREATIONS, ApiFault::AnswerLost, 60);
        emulator.fail_api(READS, ApiFault::AnswerLost, 100);
    })
    .await;
}

#[tokio::test]
async fn creations_that_fail_in_ways_that_say_nothing_are_repeated_in_time() {
    assert_one_project_each(|emulator| {
        for fault in [
            ApiFault::Status(500),
            ApiFault::Html(502),
            ApiFault::Html(200),
        ] {
            emulator.fail_api(CREATIONS, fault.clone(), 40);
            emulator.fail_api(READS, fault, 40);
        }
    })
    .await;
}

#[tokio::test]
async fn a_storm_of_429_answers_is_waited_out() {
    assert_one_project_each(|emulator| {
        let storm = |retry_after| ApiFault::RateLimited { retry_after };
        emulator.fail_api(ALL, storm(None), 100);
        emulator.fail_api(ALL, storm(Some(1)), 20);
        emulator.fail_api(CREATIONS, storm(Some(2)), 20);
    })
    .await;
}

#[tokio::test]
async fn provisioning_succeeds_under_a_real_rate_limit() {
    let deployment = Deployment::with(|emulator| emulator.api_limits(1000, 20)).await;
    assert_eq!(provision_all_during(&deployment, |_| {}).await, TENANTS);
    assert!(deployment.env.emulator.refused_requests() > 0);
    assert_reconciled(&deployment).await;
}

#[tokio::test]
async fn locks_that_last_for_seconds_are_waited_out() {
    assert_one_project_each(|emulator| emulator.fail_api(ALL, ApiFault::Locked, 250)).await;
}

#[tokio::test]
async fn a_search_that_is_late_by_less_than_the_window_makes_no_second_project() {
    assert_one_project_each(|emulator| {
        emulator.set_search_lag(WINDOW * 3 / 4);
        emulator.fail_api(CREATIONS, ApiFault::AnswerLost, 60);
    })
    .await;
}

#[tokio::test]
async fn a_search_that_is_late_by_more_than_the_window_leaves_duplicates_that_are_never_published()
{
    let deployment = Deployment::new().await;
    let projects = provision_all_during(&deployment, |emulator| {
        emulator.set_search_lag(3 * WINDOW);
        emulator.fail_api(CREATIONS, ApiFault::AnswerLost, 40);
    });
    assert!(projects.await > TENANTS, "or the search was not late");
    deployment.env.emulator.set_search_lag(Duration::ZERO);
    assert_reconciled(&deployment).await;
}
