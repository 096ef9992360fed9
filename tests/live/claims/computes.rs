//! Computes that sleep, wake, and may not wake.

use std::time::Duration;

use serde_json::json;
use tenantry::BoxError;
use tokio::time::{Instant, timeout};

use crate::{
    findings::Findings,
    test_project::{Login, TestProject, error_text},
};

/// Longest wait for a connection to hear that its compute is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
const WRONG_PASSWORD: &str = "npg_wrong0123456";

/// A suspend ends the sessions, with a word to direct ones; what is as it is asked to be has no operations.
pub(crate) async fn suspend(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    let (api, login) = (&test_project.api, &test_project.login);
    let (_pooled, pooled) = test_project.session(&login.pooled, login).await?;
    let (_direct, direct) = test_project.session(&login.direct, login).await?;
    let started = api
        .post(&test_project.endpoint_path("/start"), None)
        .await?;
    findings.expect_eq("a start of one that is awake", 200, started.summary());
    findings.expect_eq("its operations", "[]", started.actions());
    test_project.wait_until_idle().await?;

    let suspended = api
        .post(&test_project.endpoint_path("/suspend"), None)
        .await?;
    findings.expect_eq("a suspend", 200, suspended.summary());
    findings.expect_eq("its operations", "[suspend_compute]", suspended.actions());
    findings.expect_eq(
        "its next state",
        "idle",
        suspended.value_at("/endpoint/pending_state"),
    );
    for (host, connection, expected) in [
        ("pooled", pooled, "closed without a message"),
        (
            "direct",
            direct,
            "FATAL 57P01 terminating connection due to administrator command",
        ),
    ] {
        let seen = match timeout(CLOSE_TIMEOUT, connection).await {
            Err(_) => format!("open after {CLOSE_TIMEOUT:?}"),
            Ok(ended) => match ended? {
                Err(err) if err.as_db_error().is_some() => error_text(&err),
                _ => "closed without a message".to_owned(),
            },
        };
        findings.expect_eq(&format!("an idle {host} session"), expected, seen);
    }
    test_project.wait_until_idle().await?;
    let endpoint = api.get(&test_project.endpoint_path("")).await?;
    findings.expect_eq(
        "its state",
        "idle",
        endpoint.value_at("/endpoint/current_state"),
    );
    let again = api
        .post(&test_project.endpoint_path("/suspend"), None)
        .await?;
    findings.expect_eq("a suspend of one that sleeps", 200, again.summary());
    findings.expect_eq("its operations", "[]", again.actions());
    Ok(())
}

/// A wrong password wakes nothing; a login does.
pub(crate) async fn wake(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    test_project.wait_until_idle().await?;
    let login = &test_project.login;
    let wrong = Login {
        password: WRONG_PASSWORD.to_owned(),
        ..login.clone()
    };
    for host in [&login.pooled, &login.direct] {
        test_project.login_answer(host, &wrong).await?;
    }
    let endpoint = test_project
        .api
        .get(&test_project.endpoint_path(""))
        .await?;
    let state = endpoint.value_at("/endpoint/current_state");
    findings.expect_eq("state after a wrong password", "idle", state);

    let start = Instant::now();
    let (client, _connection) = test_project.session(&login.pooled, login).await?;
    let row = client.query_one("SELECT 1", &[]).await?;
    findings.remark(&format!("the first row came after {:?}", start.elapsed()));
    findings.expect_eq("the first row", 1, row.get::<_, i32>(0));
    test_project.wait_until_idle().await?;
    let endpoint = test_project
        .api
        .get(&test_project.endpoint_path(""))
        .await?;
    findings.expect_eq(
        "its state",
        "active",
        endpoint.value_at("/endpoint/current_state"),
    );
    Ok(())
}

/// A disabled endpoint sleeps, and no login wakes it.
pub(crate) async fn disabled(
    test_project: &TestProject,
    findings: &mut Findings,
) -> Result<(), BoxError> {
    test_project.wait_until_idle().await?;
    let update = json!({ "endpoint": { "disabled": true } });
    let path = test_project.endpoint_path("");
    let answer = test_project.api.patch(&path, update).await?;
    findings.expect_eq("an update", 200, answer.summary());
    findings.expect_eq("its operations", "[suspend_compute]", answer.actions());
    findings.expect_eq("its answer", "true", answer.value_at("/endpoint/disabled"));
    test_project.wait_until_idle().await?;
    let told = "ERROR XX000 The endpoint has been disabled. Enable it using the API and retry.";
    let login = &test_project.login;
    for host in [&login.pooled, &login.direct] {
        findings.expect_eq(
            "a login",
            told,
            test_project.login_answer(host, login).await?,
        );
    }
    let endpoint = test_project.api.get(&path).await?;
    findings.expect_eq(
        "its state",
        "idle",
        endpoint.value_at("/endpoint/current_state"),
    );
    Ok(())
}
