//! The effects of PATCH, and refusals of the API.

use serde_json::json;
use tenantry::BoxError;

use crate::{findings::Findings, subject::Subject};

/// An endpoint's size changes by an operation; the size that it has already, by none.
pub(crate) async fn endpoint(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    subject.settle().await?;
    let path = subject.endpoint_path("");
    let size = json!({ "endpoint": { "autoscaling_limit_max_cu": 0.5 } });
    let changed = subject.api.patch(&path, size.clone()).await?;
    findings.same("an update", 200, changed.said());
    findings.same("its operations", "[apply_config]", changed.actions());
    let most = "/endpoint/autoscaling_limit_max_cu";
    findings.same("its answer", "0.5", changed.at(most));
    subject.settle().await?;
    findings.same(
        "a look at it",
        "0.5",
        subject.api.get(&path).await?.at(most),
    );
    let again = subject.api.patch(&path, size).await?;
    findings.same("the same update again", 200, again.said());
    findings.same("its operations", "[]", again.actions());
    subject.settle().await
}

/// A project's settings are for new endpoints, and a quota takes the place of the one before.
pub(crate) async fn project(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let (api, path) = (&subject.api, subject.path(""));
    let update = json!({ "project": {
        "name": subject.name, "default_endpoint_settings": {
            "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 1.0,
        },
    } });
    let changed = api.patch(&path, update).await?;
    findings.same("an update", 200, changed.said());
    findings.same("its operations", "[]", changed.actions());
    let most =
        changed.body["project"]["default_endpoint_settings"]["autoscaling_limit_max_cu"].as_f64();
    findings.same("its answer", "Some(1.0)", format!("{most:?}"));
    let endpoint = api.get(&subject.endpoint_path("")).await?;
    let most = endpoint.at("/endpoint/autoscaling_limit_max_cu");
    findings.same("the endpoint's size after it", "0.5", most);

    let quota = |quota| json!({ "project": { "settings": { "quota": quota } } });
    let whole =
        json!({ "active_time_seconds": 360_000, "written_data_bytes": 1_000_000_000_000_u64 });
    let set = api.patch(&path, quota(whole)).await?;
    findings.same("a quota", 200, set.said());
    let written = "/project/settings/quota/written_data_bytes";
    findings.same("its answer", "1000000000000", set.at(written));
    let part = json!({ "active_time_seconds": 360_000 });
    findings.same(
        "a part of a quota",
        200,
        api.patch(&path, quota(part)).await?.said(),
    );
    let project = api.get(&path).await?;
    let active = project.at("/project/settings/quota/active_time_seconds");
    findings.same("what is in it", "360000", active);
    let gone = matches!(&*project.at(written), "nothing" | "0" | "null");
    findings.holds("what is not in it is lifted", gone, project.at(written));
    Ok(())
}

/// A wrong key, a project that there is not, a body that says nothing.
pub(crate) async fn refusals(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let api = &subject.api;
    let stranger = api
        .with_key("napi_wrong0123456789")
        .get(&subject.path(""))
        .await?;
    let wrong = r#"401 code "" "supplied credentials do not pass authentication""#;
    findings.same("a wrong key", wrong, stranger.said());
    let missing = api.get("/projects/no-such-00000000").await?;
    findings.same(
        "an unknown project",
        r#"404 code "" "project not found""#,
        missing.said(),
    );
    let empty = api.post("/projects", Some(json!({}))).await?;
    if let Some(id) = empty.body["project"]["id"].as_str() {
        subject.account.adopt(id);
    }
    let begins = r#"400 code "" "invalid request: decode application/json: "#;
    findings.holds(
        "a creation of nothing",
        empty.said().starts_with(begins),
        empty.said(),
    );
    Ok(())
}
