//! Databases that do not exist yet, and those that exist already.

use std::time::Duration;

use serde_json::json;
use tenantry::{
    ErrorKind, Plan, Provisioner, TenantRouter, catalog::Memory, emulator::ApiFault,
    neon::CreateProject,
};

use crate::support::{Reply, ScriptedApi, TestEnv, eventually, query_text};

#[tokio::test]
async fn a_hundred_callers_on_a_new_tenant_make_one_project() {
    let env = TestEnv::new().await;
    let router = env.router();
    let calls = (0..100).map(|_| {
        let router = router.clone();
        tokio::spawn(async move { router.get("acme").await.map(drop) })
    });
    for call in futures_util::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert_eq!(env.emulator.witnesses().len(), 1);
    assert_eq!(router.status().provisioned, 1);
    assert_eq!(router.status().lookups, 1);
}

#[tokio::test]
async fn callers_that_give_up_do_not_stop_the_creation() {
    let env = TestEnv::with(|emulator| emulator.operation_time(Duration::from_millis(200))).await;
    let router = env.router();
    for _ in 0..5 {
        let impatient = tokio::time::timeout(Duration::from_millis(10), router.get("acme"));
        assert!(impatient.await.is_err());
    }
    eventually("it is created", || router.status().provisioned == 1).await;
    drop(router.get("acme").await.unwrap());
    assert_eq!(env.emulator.witnesses().len(), 1);
}

#[tokio::test]
async fn after_a_restart_with_memory_the_old_projects_are_adopted() {
    let env = TestEnv::new().await;
    let tenants = ["acme", "globex"];
    let before = env.router();
    for tenant in tenants {
        query_text(
            &before.get(tenant).await.unwrap(),
            &format!("CREATE TABLE t AS SELECT '{tenant}' AS owner"),
        )
        .await;
    }
    before.close().await;
    drop(before);

    let after = env.router();
    for tenant in tenants {
        assert_eq!(
            query_text(&after.get(tenant).await.unwrap(), "SELECT owner FROM t").await,
            tenant
        );
    }
    assert_eq!((after.status().adopted, after.status().provisioned), (2, 0));
    assert_eq!(env.emulator.witnesses().len(), 2);
}

#[tokio::test]
async fn a_project_of_that_name_without_our_mark_is_a_conflict() {
    let env = TestEnv::new().await;
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    let ours = env.witness("acme");
    router.close().await;
    env.neon().delete_project(&ours.project_id).await.unwrap();
    env.neon()
        .create_project(&CreateProject::new(&ours.project_name))
        .await
        .unwrap();

    let err = env.router().get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Conflict);
    assert_eq!(
        env.emulator.witnesses().len(),
        1,
        "nothing was created beside it"
    );
}

#[tokio::test]
async fn the_plan_is_applied_at_creation() {
    let env = TestEnv::new().await;
    let plan = Plan::new()
        .region("aws-eu-central-1")
        .compute_units(0.5, 2.0)
        .suspend_after(Duration::from_secs(120));
    let provisioner = Provisioner::new(Memory::new(), env.neon(), "test")
        .on_first_access()
        .plan(plan);
    let router = env
        .configure(TenantRouter::provisioning(provisioner))
        .build()
        .unwrap();
    drop(router.get("acme").await.unwrap());
    let it = env.witness("acme");
    assert!(it.host.contains(".eu-central-1."), "{}", it.host);
    let endpoint = env
        .neon()
        .get_project_endpoint(&it.project_id, &it.endpoint_id)
        .await
        .unwrap();
    assert_eq!(endpoint.suspend_window(), Some(Duration::from_secs(120)));
}

#[tokio::test]
async fn a_plan_that_neon_refuses_is_an_error_that_says_why() {
    let env = TestEnv::new().await;
    let provisioner = Provisioner::new(Memory::new(), env.neon(), "test")
        .on_first_access()
        .plan(Plan::new().region("mars-north-1"));
    let router = env
        .configure(TenantRouter::provisioning(provisioner))
        .build()
        .unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(err.to_string().contains("there is no region"), "{err}");
    assert!(err.to_string().contains("aws-us-east-2"), "{err}");
    assert!(env.emulator.witnesses().is_empty(), "nothing was ordered");
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_is_looked_up_and_not_repeated() {
    let empty = || Reply::Json(200, json!({ "projects": [] }));
    // Search; create, whose answer is lost; search, which misses it for a while.
    let script = [
        empty(),
        Reply::Html(524),
        empty(),
        empty(),
        Reply::Hangup,
        empty(),
    ];
    let api = ScriptedApi::new(script).await;
    let neon = api.client().build().unwrap();
    let router =
        TenantRouter::provisioning(Provisioner::new(Memory::new(), neon, "test").on_first_access())
            .provision_timeout(Duration::from_secs(4))
            .build()
            .unwrap();
    let warm = router.warm("acme");
    eventually("the script is used up", || api.requests().len() == 6).await;
    let posts = api
        .requests()
        .iter()
        .filter(|request| request.starts_with("POST"))
        .count();
    assert_eq!(posts, 1, "{:?}", api.requests());
    api.assert_done();
    drop((warm, router));
}

#[tokio::test]
async fn a_bad_namespace_is_refused_when_the_router_is_built() {
    let neon = || tenantry::Neon::builder("key").build().unwrap();
    for bad in [
        "",
        "Production",
        "a/b",
        "way-too-long-for-a-namespace-of-ours",
    ] {
        let built =
            TenantRouter::provisioning(Provisioner::new(Memory::new(), neon(), bad)).build();
        assert!(
            built.unwrap_err().to_string().contains("namespace"),
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn a_lost_answer_ends_with_one_project_though_the_search_misses_it_for_a_while() {
    let env = TestEnv::new().await;
    env.emulator.set_search_lag(Duration::from_secs(2));
    env.emulator
        .fail_api("POST /projects", ApiFault::AnswerLost, 1);
    let router = env.router();
    let answer = query_text(&router.get("acme").await.unwrap(), "SELECT 'served'").await;
    assert_eq!(answer, "served");
    assert_eq!(
        env.emulator.witnesses().len(),
        1,
        "looked up, not created again"
    );
}

#[tokio::test]
async fn while_a_creation_is_in_doubt_later_calls_look_for_it_too() {
    let env = TestEnv::new().await;
    env.emulator.set_search_lag(Duration::from_secs(3));
    env.emulator
        .fail_api("POST /projects", ApiFault::AnswerLost, 1);
    let router = env
        .builder("test")
        .provision_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    for _ in 0..2 {
        let err = router.get("acme").await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Timeout(tenantry::Stage::Provision));
    }
    eventually("it turns up", || router.status().flights == 0).await;
    let served = loop {
        if let Ok(client) = router.get("acme").await {
            break client;
        }
    };
    drop(served);
    assert_eq!(
        env.emulator.witnesses().len(),
        1,
        "three flights, one project"
    );
}

#[tokio::test]
async fn refusals_that_pass_end_with_one_project() {
    let env = TestEnv::new().await;
    env.emulator.fail_api("POST /projects", ApiFault::Locked, 1);
    env.emulator.fail_api(
        "POST /projects",
        ApiFault::RateLimited {
            retry_after: Some(1),
        },
        1,
    );
    env.emulator
        .fail_api("POST /projects", ApiFault::Status(503), 1);
    env.emulator
        .fail_api("GET /projects", ApiFault::Html(524), 2);
    env.emulator
        .fail_api("GET /projects", ApiFault::Slow { milliseconds: 300 }, 1);
    let router = env.router();
    drop(router.get("acme").await.unwrap());
    assert_eq!(env.emulator.witnesses().len(), 1);
}
