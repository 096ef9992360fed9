//! Computes that sleep, wake, and may not wake.

use std::time::Duration;

use serde_json::json;
use tenantry::BoxError;
use tokio::time::{Instant, timeout};

use crate::{
    findings::Findings,
    subject::{Login, Subject, words},
};

/// Longest wait for a connection to hear that its compute is gone.
const CLOSING: Duration = Duration::from_secs(30);
const WRONG: &str = "npg_wrong0123456";

/// A suspend ends the sessions, with a word to direct ones; what is as it is asked to be has no operations.
pub(crate) async fn suspend(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    let (api, login) = (&subject.api, &subject.login);
    let (_pooled, pooled) = subject.session(&login.pooled, login).await?;
    let (_direct, direct) = subject.session(&login.direct, login).await?;
    let started = api.post(&subject.endpoint_path("/start"), None).await?;
    findings.same("a start of one that is awake", 200, started.said());
    findings.same("its operations", "[]", started.actions());
    subject.settle().await?;

    let suspended = api.post(&subject.endpoint_path("/suspend"), None).await?;
    findings.same("a suspend", 200, suspended.said());
    findings.same("its operations", "[suspend_compute]", suspended.actions());
    findings.same(
        "its next state",
        "idle",
        suspended.at("/endpoint/pending_state"),
    );
    for (host, connection, expected) in [
        ("pooled", pooled, "closed without a message"),
        (
            "direct",
            direct,
            "FATAL 57P01 terminating connection due to administrator command",
        ),
    ] {
        let seen = match timeout(CLOSING, connection).await {
            Err(_) => format!("open after {CLOSING:?}"),
            Ok(ended) => match ended? {
                Err(err) if err.as_db_error().is_some() => words(&err),
                _ => "closed without a message".to_owned(),
            },
        };
        findings.same(&format!("an idle {host} session"), expected, seen);
    }
    subject.settle().await?;
    let endpoint = api.get(&subject.endpoint_path("")).await?;
    findings.same("its state", "idle", endpoint.at("/endpoint/current_state"));
    let again = api.post(&subject.endpoint_path("/suspend"), None).await?;
    findings.same("a suspend of one that sleeps", 200, again.said());
    findings.same("its operations", "[]", again.actions());
    Ok(())
}

/// A wrong password wakes nothing; a login does.
pub(crate) async fn wake(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    subject.settle().await?;
    let login = &subject.login;
    let wrong = Login {
        password: WRONG.to_owned(),
        ..login.clone()
    };
    for host in [&login.pooled, &login.direct] {
        subject.told(host, &wrong).await?;
    }
    let endpoint = subject.api.get(&subject.endpoint_path("")).await?;
    let state = endpoint.at("/endpoint/current_state");
    findings.same("state after a wrong password", "idle", state);

    let start = Instant::now();
    let (client, _connection) = subject.session(&login.pooled, login).await?;
    let row = client.query_one("SELECT 1", &[]).await?;
    findings.note(&format!("the first row came after {:?}", start.elapsed()));
    findings.same("the first row", 1, row.get::<_, i32>(0));
    subject.settle().await?;
    let endpoint = subject.api.get(&subject.endpoint_path("")).await?;
    findings.same(
        "its state",
        "active",
        endpoint.at("/endpoint/current_state"),
    );
    Ok(())
}

/// A disabled endpoint sleeps, and no login wakes it.
pub(crate) async fn disabled(subject: &Subject, findings: &mut Findings) -> Result<(), BoxError> {
    subject.settle().await?;
    let update = json!({ "endpoint": { "disabled": true } });
    let path = subject.endpoint_path("");
    let answer = subject.api.patch(&path, update).await?;
    findings.same("an update", 200, answer.said());
    findings.same("its operations", "[suspend_compute]", answer.actions());
    findings.same("its answer", "true", answer.at("/endpoint/disabled"));
    subject.settle().await?;
    let told = "ERROR XX000 The endpoint has been disabled. Enable it using the API and retry.";
    let login = &subject.login;
    for host in [&login.pooled, &login.direct] {
        findings.same("a login", told, subject.told(host, login).await?);
    }
    let endpoint = subject.api.get(&path).await?;
    findings.same("its state", "idle", endpoint.at("/endpoint/current_state"));
    Ok(())
}
