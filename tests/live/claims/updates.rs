//! The effects of PATCH, and refusals of the API.

use serde_json::json;
use tenantry::BoxError;

use crate::{findings::Findings, test_project::TestProject};

/// An endpoint's size changes by an operation; the size that it has already, by none.
pub(crate) async fn endpoint(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    test_project.wait_until_idle().await?;
    let path = test_project.endpoint_path("");
    let size = json!({ "endpoint": { "autoscaling_limit_max_cu": 0.5 } });
    let changed = test_project.api.patch(&path, size.clone()).await?;
    findings.expect_eq("an update", 200, changed.summary());
    findings.expect_eq("its operations", "[apply_config]", changed.actions());
    let most = "/endpoint/autoscaling_limit_max_cu";
    findings.expect_eq("its answer", "0.5", changed.value_at(most));
    test_project.wait_until_idle().await?;
    findings.expect_eq(
        "a look at it",
        "0.5",
        test_project.api.get(&path).await?.value_at(most),
    );
    let again = test_project.api.patch(&path, size).await?;
    findings.expect_eq("the same update again", 200, again.summary());
    findings.expect_eq("its operations", "[]", again.actions());
    test_project.wait_until_idle().await
}

/// A project's settings are for new endpoints, and a quota takes the place of the one before.
pub(crate) async fn project(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (api, path) = (&test_project.api, test_project.path(""));
    let update = json!({ "project": {
        "name": test_project.name, "default_endpoint_settings": {
            "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 1.0,
        },
    } });
    let changed = api.patch(&path, update).await?;
    findings.expect_eq("an update", 200, changed.summary());
    findings.expect_eq("its operations", "[]", changed.actions());
    let most =
        changed.body["project"]["default_endpoint_settings"]["autoscaling_limit_max_cu"].as_f64();
    findings.expect_eq("its answer", "Some(1.0)", format!("{most:?}"));
    let endpoint = api.get(&test_project.endpoint_path("")).await?;
    let most = endpoint.value_at("/endpoint/autoscaling_limit_max_cu");
    findings.expect_eq("the endpoint's size after it", "0.5", most);

    let quota = |quota| json!({ "project": { "settings": { "quota": quota } } });
    let whole =
        json!({ "active_time_seconds": 360_000, "written_data_bytes": 1_000_000_000_000_u64 });
    let set = api.patch(&path, quota(whole)).await?;
    findings.expect_eq("a quota", 200, set.summary());
    let written = "/project/settings/quota/written_data_bytes";
    findings.expect_eq("its answer", "1000000000000", set.value_at(written));
    let part = json!({ "active_time_seconds": 360_000 });
    findings.expect_eq(
        "a part of a quota",
        200,
        api.patch(&path, quota(part)).await?.summary(),
    );
    let project = api.get(&path).await?;
    let active = project.value_at("/project/settings/quota/active_time_seconds");
    findings.expect_eq("what is in it", "360000", active);
    let gone = matches!(&*project.value_at(written), "nothing" | "0" | "null");
    findings.expect(
        "what is not in it is lifted",
        gone,
        project.value_at(written),
    );
    Ok(())
}

/// A wrong key, a project that there is not, a body that says nothing.
pub(crate) async fn refusals(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let api = &test_project.api;
    let stranger = api
        .with_key("napi_wrong0123456789")
        .get(&test_project.path(""))
        .await?;
    let wrong = r#"401 code "" "supplied credentials do not pass authentication""#;
    findings.expect_eq("a wrong key", wrong, stranger.summary());
    let missing = api.get("/projects/no-such-00000000").await?;
    findings.expect_eq(
        "an unknown project",
        r#"404 code "" "project not found""#,
        missing.summary(),
    );
    let empty = api.post("/projects", Some(json!({}))).await?;
    if let Some(id) = empty.body["project"]["id"].as_str() {
        test_project.account.adopt(id);
    }
    let begins = r#"400 code "" "invalid request: decode application/json: "#;
    findings.expect(
        "a creation of nothing",
        empty.summary().starts_with(begins),
        empty.summary(),
    );
    Ok(())
}
