//! Everything that the emulator does on command, given over HTTP as a program in another language would.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Project, RawClient, TestEnv, eventually, only_error};

/// A client of the emulator's own paths.
struct ControlClient {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl ControlClient {
    fn new(env: &TestEnv) -> Self {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*env.tls_config()).clone())
            .build()
            .unwrap();
        Self {
            http,
            base: env.emulator.api_url().replace("/api/v2", "/_emulator"),
            key: env.emulator.api_key().expose().to_owned(),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, String) {
        let url = format!("{}/{path}", self.base);
        let mut request = self.http.request(method, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// A command that is obeyed; its answer, if it has one.
    async fn post(&self, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(Method::POST, path, body).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    }
}

#[tokio::test]
async fn every_fault_can_be_given_as_json() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let control = ControlClient::new(&env);
    let path = format!("endpoints/{}/fault", project.id);
    for fault in [
        json!({ "wake_refused": { "reason": "running_operations" } }),
        json!({ "wake_refused": { "reason": "failed", "text": "as told", "times": 2 } }),
        json!("control_plane_down"),
        json!("address_not_allowed"),
        json!({ "too_many_connections": { "times": 1 } }),
        json!({ "too_many_wakes": { "times": 1 } }),
        json!({ "no_permit": { "times": 1 } }),
        json!("compute_refuses"),
        json!("compute_unreachable"),
        json!("compute_closes"),
        json!("compute_silent"),
        json!({ "compute_recovers": { "milliseconds": 1000 } }),
        json!("commit_answer_lost"),
    ] {
        control.post(&path, Some(fault)).await;
    }
    let (status, text) = control.call(Method::POST, &path, Some(json!("typo"))).await;
    assert!(status.is_client_error(), "{status}");
    assert!(
        text.contains("wake_refused"),
        "it says what there is: {text}"
    );
    let nowhere = "endpoints/ep-nowhere/fault";
    let (status, _) = control.call(Method::DELETE, nowhere, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(
        control
            .call(Method::DELETE, &path, None)
            .await
            .0
            .is_success()
    );
    project.session(&env, &project.at.host).await;
}

#[tokio::test]
async fn computes_stop_in_each_way_and_go_on() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let control = ControlClient::new(&env);
    let endpoint = format!("endpoints/{}", project.id);
    for how in ["neon", "fast", "immediate", "kill"] {
        control
            .post(&format!("{endpoint}/suspend/{how}"), None)
            .await;
        assert!(!env.emulator.witnesses()[0].is_awake, "{how}");
        project.session(&env, &project.at.host).await;
    }
    for action in ["freeze", "thaw", "kill_pooler", "suspend", "crash"] {
        control.post(&format!("{endpoint}/{action}"), None).await;
    }
    control
        .post(&format!("{endpoint}/wake_delay_ms/5"), None)
        .await;
    project.session(&env, &project.at.pooler_host).await;
    let odd = format!("{endpoint}/explode");
    let (status, text) = control.call(Method::POST, &odd, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("suspend"), "it says what there is: {text}");
}

#[tokio::test]
async fn passwords_endpoints_usage_and_the_proxy_change_on_command() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let control = ControlClient::new(&env);
    let endpoint = format!("endpoints/{}", project.id);
    let rotated = control
        .post(&format!("{endpoint}/rotate_password"), None)
        .await;
    let password = rotated["password"].as_str().unwrap();
    let refused = project.log_in(&env, &project.at.host).await.1;
    assert!(
        only_error(&refused)
            .0
            .starts_with("password authentication")
    );
    let moved = control.post(&format!("{endpoint}/move"), None).await;
    let moved = moved["endpoint_id"].as_str().unwrap();
    let host = project.at.host.replacen(&project.id, moved, 1);
    let mut client = RawClient::connect(&env, &host).await;
    assert_eq!(client.log_in(password, &[]).await.last().unwrap().tag, 'Z');
    control.post("restart_proxy", None).await;
    assert!(client.next().await.is_none());

    let id = env.emulator.witnesses()[0].project_id.clone();
    let usage = json!({ "written_data_bytes": 1_u64 << 40 });
    control
        .post(&format!("projects/{id}/usage"), Some(usage))
        .await;
    let used = env.neon().get_project(&id).await.unwrap();
    assert!(used.written_data_bytes >= 1_u64 << 40);

    control.post("search_lag_ms/60000", None).await;
    let other = env.project().await;
    let found = env.neon().projects_named("p").await.unwrap();
    assert!(
        found.iter().all(|it| it.id != other.project.id),
        "not seen yet"
    );
    let lost = json!({ "route": "GET /projects", "fault": { "status": 418 }, "times": 9 });
    control.post("api_faults", Some(lost)).await;
    assert!(env.neon().get_project(&id).await.is_err());
    let cleared = control.call(Method::DELETE, "api_faults", None).await;
    assert!(cleared.0.is_success());
    eventually("it is there", || !env.emulator.witnesses().is_empty()).await;
    env.neon().get_project(&id).await.unwrap();
}
