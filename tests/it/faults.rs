//! Faults on command, held against what Neon's own proxy, PgBouncer and Postgres were observed to do.

use std::time::Duration;

use tenantry::emulator::{Fault, Reason};

use crate::support::{Project, TestEnv, eventually, only_error};

#[tokio::test]
async fn a_refused_wake_is_told_at_once_and_repeated_on_that_host_only() {
    const QUOTA: &str =
        "Your project has exceeded the active time quota. Upgrade your plan to increase limits.";
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    env.emulator.suspend(&project.id).await;
    env.emulator.set_fault(
        &project.id,
        Fault::wake_refused(Reason::ActiveTimeQuota, None),
    );
    let [direct, pooled] = project.hosts();
    let (text, after) = only_error(&project.log_in(&env, pooled).await.1);
    assert_eq!(text, QUOTA);
    assert!(after < Duration::from_secs(10), "{after:?}");

    env.emulator.set_fault(&project.id, None);
    assert_eq!(
        only_error(&project.log_in(&env, pooled).await.1).0,
        QUOTA,
        "from the proxy's memory"
    );
    project.session(&env, direct).await; // the other host asks for itself
    let awake = project.log_in(&env, pooled).await.1;
    assert_eq!(
        only_error(&awake).0,
        QUOTA,
        "whether or not the compute is awake"
    );
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 2);
}

#[tokio::test]
async fn a_control_plane_that_is_down_says_so_as_long_as_it_is() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    env.emulator.set_fault(&project.id, Fault::ControlPlaneDown);
    project.session(&env, &project.at.host).await; // awake: nobody asks the control plane
    env.emulator.suspend(&project.id).await;
    assert_eq!(
        only_error(&project.log_in(&env, &project.at.host).await.1).0,
        "Control plane request failed"
    );
    env.emulator.set_fault(&project.id, None);
    project.session(&env, &project.at.host).await; // what could not be asked is not remembered
}

#[tokio::test]
async fn a_busy_control_plane_is_asked_again_within_the_proxy() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    env.emulator.suspend(&project.id).await;
    let text = "Your project already has running operations. Please wait until they complete, and then try again.";
    let busy = |times: u32| Fault::wake_refused(Reason::RunningOperations, times);
    env.emulator.set_fault(&project.id, busy(4));
    let (_, seen) = project.log_in(&env, &project.at.host).await;
    let after = seen.last().unwrap().after;
    assert!(after > Duration::from_millis(570), "four waits: {after:?}");

    env.emulator.suspend(&project.id).await;
    env.emulator.set_fault(&project.id, busy(100));
    let (said, after) = only_error(&project.log_in(&env, &project.at.host).await.1);
    assert_eq!(said, text);
    assert!((4.3..6.0).contains(&after.as_secs_f64()), "{after:?}");
}

#[tokio::test]
async fn a_compute_that_cannot_be_reached_is_told_in_neons_words_and_time() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let reset = "error communicating with the server: Connection reset by peer (os error 104)";
    for (fault, text, at_least) in [
        (
            Fault::ComputeRefuses,
            "Couldn't connect to compute node",
            3.0,
        ),
        (Fault::ComputeCloses, reset, 0.0),
        (
            Fault::ComputeUnreachable,
            "Couldn't connect to compute node",
            15.0,
        ),
    ] {
        env.emulator.set_fault(&project.id, fault);
        let both = project.hosts().map(|host| project.log_in(&env, host));
        for (_, seen) in futures_util::future::join_all(both).await {
            let (said, after) = only_error(&seen);
            assert_eq!(said, text);
            assert!(
                (at_least..at_least + 2.0).contains(&after.as_secs_f64()),
                "{after:?}"
            );
        }
    }
    env.emulator.set_fault(&project.id, None);
    for host in project.hosts() {
        project.session(&env, host).await;
    }
}

#[tokio::test]
async fn a_silent_and_a_frozen_compute_say_nothing() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let patience = Duration::from_millis(700);
    env.emulator.set_fault(&project.id, Fault::ComputeSilent);
    assert!(
        tokio::time::timeout(patience, project.log_in(&env, &project.at.host))
            .await
            .is_err()
    );
    env.emulator.set_fault(&project.id, None);

    for host in project.hosts() {
        let mut client = project.session(&env, host).await;
        env.emulator.freeze(&project.id);
        assert!(
            tokio::time::timeout(patience, client.query("SELECT 1"))
                .await
                .is_err()
        );
        assert!(
            tokio::time::timeout(patience, project.log_in(&env, host))
                .await
                .is_err()
        );
        env.emulator.thaw(&project.id);
        let rest = client.until('Z').await;
        assert!(
            rest.iter().any(|message| message.tag == 'D'),
            "the answer comes after all: {rest:?}"
        );
    }
}

#[tokio::test]
async fn a_killed_compute_says_no_goodbye_and_comes_back() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for host in project.hosts() {
        let mut idle = project.session(&env, host).await;
        let mut busy = project.session(&env, host).await;
        busy.query("CREATE TABLE IF NOT EXISTS t (n int)").await;
        busy.send(b'Q', b"SELECT pg_sleep(60)\0").await;
        env.emulator.crash(&project.id);
        for client in [&mut idle, &mut busy] {
            assert!(client.next().await.is_none(), "closed without a word");
        }
        eventually("it is asleep", || !env.emulator.witnesses()[0].is_awake).await;
        let mut again = project.session(&env, &project.at.host).await;
        assert_eq!(
            again.query("SELECT * FROM t").await.last().unwrap().tag,
            'Z'
        );
    }
}

#[tokio::test]
async fn a_suspend_ends_sessions_as_it_does_at_neon() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for sql in [None, Some("BEGIN"), Some("SELECT pg_sleep(60)")] {
        let [direct, pooled] = project.hosts();
        let (mut direct, mut pooled) = (
            project.session(&env, direct).await,
            project.session(&env, pooled).await,
        );
        for client in [&mut direct, &mut pooled] {
            match sql {
                Some("BEGIN") => drop(client.query("BEGIN").await),
                Some(sql) => client.send(b'Q', format!("{sql}\0").as_bytes()).await,
                None => {}
            }
        }
        env.emulator.suspend(&project.id).await;
        let last = direct.until_ready().await;
        let error = last.last().expect("told");
        assert_eq!(error.field('C').as_deref(), Some("57P01"), "{sql:?}");
        assert_eq!(error.field('S').as_deref(), Some("FATAL"), "{sql:?}");
        assert!(direct.next().await.is_none());
        assert!(
            pooled.next().await.is_none(),
            "closed without a word: {sql:?}"
        );
    }
}

#[tokio::test]
async fn a_killed_pooler_is_back_for_the_next_client() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let mut client = project.session(&env, &project.at.pooler_host).await;
    let url = env.emulator.api_url().replace(
        "/api/v2",
        &format!("/_emulator/endpoints/{}/kill_pooler", project.id),
    );
    let request = reqwest::Client::builder()
        .tls_backend_preconfigured((*env.tls_config()).clone())
        .build()
        .unwrap();
    let request = request
        .post(url)
        .bearer_auth(env.emulator.api_key().expose());
    assert!(request.send().await.unwrap().status().is_success());
    assert!(client.next().await.is_none(), "closed without a word");
    project.session(&env, &project.at.pooler_host).await;
    assert_eq!(
        env.emulator.witnesses()[0].wakes.len(),
        1,
        "Postgres ran on"
    );
}

#[tokio::test]
async fn faults_are_given_over_http_too_with_the_key_only() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let base = env
        .emulator
        .api_url()
        .replace("/api/v2", "/_emulator/endpoints");
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured((*env.tls_config()).clone())
        .build()
        .unwrap();
    let key = env.emulator.api_key();
    let fault = format!("{base}/{}/fault", project.id);
    let body = serde_json::json!("compute_closes");
    assert_eq!(
        http.post(&fault).json(&body).send().await.unwrap().status(),
        401
    );
    assert!(
        http.post(&fault)
            .bearer_auth(key.expose())
            .json(&body)
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    only_error(&project.log_in(&env, &project.at.host).await.1);
    assert!(
        http.delete(&fault)
            .bearer_auth(key.expose())
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    project.session(&env, &project.at.host).await;
    let seen: serde_json::Value = http
        .get(&base)
        .bearer_auth(key.expose())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(seen[0]["endpoint_id"], project.id);
    let nowhere = format!("{base}/ep-nowhere/fault");
    assert_eq!(
        http.delete(&nowhere)
            .bearer_auth(key.expose())
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
}
