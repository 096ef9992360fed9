//! Each method of the client about computes and what they use: exactly what it sends, and what it makes of the answer.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tenantry::{
    ErrorKind, Suspend,
    neon::{ConsumptionQuery, Granularity, UpdateEndpoint},
};

use crate::{
    methods::{api_with_answer, api_with_script, assert_sent},
    support::Reply,
};

fn endpoint() -> Value {
    json!({ "endpoint": { "id": "ep-1", "host": "ep-1.neon.tech", "current_state": "idle" }, "operations": [] })
}

#[tokio::test]
async fn endpoints_are_listed_shown_and_updated() {
    let listed = json!({ "endpoints": [{
        "id": "ep-1", "host": "h", "disabled": true, "pending_state": "active",
        "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 2,
    }] });
    let (api, neon) = api_with_answer(200, listed).await;
    let endpoint_1 = &neon.list_project_endpoints("p-1").await.unwrap()[0];
    assert!(endpoint_1.disabled && endpoint_1.pending_state.as_deref() == Some("active"));
    let limits = [
        endpoint_1.autoscaling_limit_min_cu,
        endpoint_1.autoscaling_limit_max_cu,
    ];
    assert!(limits.iter().eq(&[0.25, 2.0]), "{limits:?}");
    assert_sent(&api, "GET /api/v2/projects/p-1/endpoints", Value::Null);

    let (api, neon) = api_with_answer(200, endpoint()).await;
    let shown = neon.get_project_endpoint("p-1", "ep-1").await.unwrap();
    assert_eq!(shown.current_state, "idle");
    assert_sent(&api, "GET /api/v2/projects/p-1/endpoints/ep-1", Value::Null);

    let (api, neon) = api_with_answer(200, endpoint()).await;
    let update = UpdateEndpoint::new()
        .compute_units(0.5, 4.0)
        .suspend(Suspend::Default)
        .disabled(true);
    neon.update_project_endpoint("p-1", "ep-1", &update)
        .await
        .unwrap();
    let body = json!({ "endpoint": {
        "autoscaling_limit_min_cu": 0.5, "autoscaling_limit_max_cu": 4.0, "suspend_timeout_seconds": 0, "disabled": true,
    } });
    assert_sent(&api, "PATCH /api/v2/projects/p-1/endpoints/ep-1", body);
}

#[tokio::test]
async fn a_compute_is_started_suspended_and_restarted() {
    let path = "POST /api/v2/projects/p-1/endpoints/ep-1";
    let (api, neon) = api_with_answer(200, endpoint()).await;
    neon.start_project_endpoint("p-1", "ep-1").await.unwrap();
    assert_sent(&api, &format!("{path}/start"), Value::Null);
    let (api, neon) = api_with_answer(200, endpoint()).await;
    neon.suspend_project_endpoint("p-1", "ep-1").await.unwrap();
    assert_sent(&api, &format!("{path}/suspend"), Value::Null);
    let (api, neon) = api_with_answer(200, endpoint()).await;
    neon.restart_project_endpoint("p-1", "ep-1").await.unwrap();
    assert_sent(&api, &format!("{path}/restart"), Value::Null);
}

#[tokio::test]
async fn a_password_is_revealed_and_reset_for_a_role_of_any_name() {
    let path = "/api/v2/projects/p-1/branches/br-1/roles/app%2Fweb%20%C3%A9";
    let (api, neon) = api_with_answer(200, json!({ "password": "hunter2" })).await;
    let password = neon
        .get_project_branch_role_password("p-1", "br-1", "app/web é")
        .await
        .unwrap();
    assert_eq!(password.expose(), "hunter2");
    assert_sent(&api, &format!("GET {path}/reveal_password"), Value::Null);

    let role = json!({ "branch_id": "br-1", "name": "app/web é", "password": "hunter3" });
    let (api, neon) = api_with_answer(200, json!({ "role": role, "operations": [] })).await;
    let password = neon
        .reset_project_branch_role_password("p-1", "br-1", "app/web é")
        .await
        .unwrap();
    assert_eq!(password.expose(), "hunter3");
    assert_sent(&api, &format!("POST {path}/reset_password"), Value::Null);

    let not_stored = json!({ "code": "", "message": "passwords are not stored" });
    let (_api, neon) = api_with_answer(412, not_stored).await;
    let err = neon
        .get_project_branch_role_password("p-1", "br-1", "app")
        .await
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Refused);
    assert!(
        err.to_string().contains("does not store passwords"),
        "{err}"
    );
}

#[tokio::test]
async fn a_connection_uri_names_the_endpoint_the_role_and_the_pooler() {
    let uri = "postgresql://app:hunter2@ep-1-pooler.neon.tech/db?sslmode=require";
    let (api, neon) = api_with_answer(200, json!({ "uri": uri })).await;
    let answer = neon
        .get_connection_uri("p-1", "ep-1", "d b", "r&r", true)
        .await
        .unwrap();
    assert_eq!(answer.expose(), uri);
    let query = "endpoint_id=ep-1&database_name=d+b&role_name=r%26r&pooled=true";
    assert_sent(
        &api,
        &format!("GET /api/v2/projects/p-1/connection_uri?{query}"),
        Value::Null,
    );
}

#[tokio::test]
async fn operations_are_listed_shown_and_waited_for() {
    let operation =
        |status: &str| json!({ "id": "op-1", "action": "start_compute", "status": status });
    let (api, neon) = api_with_answer(200, json!({ "operation": operation("cancelled") })).await;
    let shown = neon.get_project_operation("p-1", "op-1").await.unwrap();
    assert!(!shown.is_pending() && !shown.has_failed());
    assert_sent(
        &api,
        "GET /api/v2/projects/p-1/operations/op-1",
        Value::Null,
    );

    let states = ["scheduling", "running", "a state of tomorrow"];
    let (api, neon) = api_with_script(
        states.map(|status| Reply::Json(200, json!({ "operations": [operation(status)] }))),
    )
    .await;
    let ended = neon.wait_for_operations("p-1").await.unwrap();
    assert_eq!(ended[0].status, "a state of tomorrow");
    let path = "GET /api/v2/projects/p-1/operations?limit=10";
    assert_eq!(api.requests(), [path; 3]);
}

#[tokio::test]
async fn consumption_is_asked_for_by_project_and_metric() {
    let answer = json!({
        "projects": [{ "project_id": "p-1", "periods": [{
            "period_id": "b0", "period_plan": "scale", "period_start": "2025-01-01T00:00:00Z", "consumption": [{
                "timeframe_start": "2025-01-01T00:00:00Z", "timeframe_end": "2025-01-01T01:00:00Z",
                "metrics": [{ "metric_name": "compute_unit_seconds", "value": 7 }, { "metric_name": "new", "value": 1.5 }],
            }],
        }] }],
        "pagination": { "cursor": "p-1" },
    });
    let (api, neon) = api_with_answer(200, answer).await;
    let from = UNIX_EPOCH + Duration::from_secs(1_735_689_600);
    let metrics = ["compute_unit_seconds", "extra_branches_month"];
    let query = ConsumptionQuery::new("org-a", from, from + Duration::from_secs(3600), metrics)
        .granularity(Granularity::Hourly)
        .projects(["p-1", "p-2"])
        .cursor("p-0")
        .limit(100);
    let page = neon
        .get_consumption_history_per_project_v2(&query)
        .await
        .unwrap();
    assert_eq!(page.cursor.as_deref(), Some("p-1"));
    let period = &page.projects[0].periods[0];
    assert_eq!(period.period_end, None);
    let values: Vec<_> = period.consumption[0]
        .metrics
        .iter()
        .map(|metric| metric.value)
        .collect();
    assert_eq!(values, [7, 1]);
    let query = "org_id=org-a&from=2025-01-01T00%3A00%3A00Z&to=2025-01-01T01%3A00%3A00Z&granularity=hourly\
                 &metrics=compute_unit_seconds%2Cextra_branches_month&project_ids=p-1%2Cp-2&cursor=p-0&limit=100";
    assert_sent(
        &api,
        &format!("GET /api/v2/consumption_history/v2/projects?{query}"),
        Value::Null,
    );
}
