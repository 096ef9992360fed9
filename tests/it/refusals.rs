//! The errors that clients get in place of a session, held against what Neon's own proxy was observed to say.

use std::time::Duration;

use tenantry::{
    emulator::{Fault, Reason, Stop},
    neon::CreateProject,
};

use crate::support::{Project, RawClient, TestEnv, eventually, only_error};

/// The reasons that are told at once, each with the beginning of its text.
const TEXTS: &[(Reason, &str)] = &[
    (
        Reason::ComputeTimeQuota,
        "Your account or project has exceeded the compute time quota.",
    ),
    (
        Reason::WrittenDataQuota,
        "Your project has exceeded the written data quota.",
    ),
    (
        Reason::DataTransferQuota,
        "Your project has exceeded the data transfer quota.",
    ),
    (
        Reason::LogicalSizeQuota,
        "Your project has exceeded the logical size quota.",
    ),
    (
        Reason::BranchComputeTimeQuota,
        "You've exceeded the compute time for this branch.",
    ),
    (
        Reason::ActiveEndpointsLimit,
        "You have exceeded the limit of concurrently active endpoints.",
    ),
    (
        Reason::RateLimitExceeded,
        "You've exceeded the rate limit. Please wait a moment",
    ),
    (
        Reason::EndpointDisabled,
        "The endpoint has been disabled. Enable it using the API",
    ),
    (
        Reason::EndpointNotFound,
        "The requested endpoint could not be found, or you don't",
    ),
    (
        Reason::Unavailable,
        "Control plane request failed: endpoint is temporarily unavailable.",
    ),
    (
        Reason::NotFound,
        "Control plane request failed: endpoint cannot be found",
    ),
    (Reason::Failed, UNKNOWN),
];

/// The text of a refusal for which the control plane gives none.
const UNKNOWN: &str = "Control plane request failed";

#[tokio::test]
async fn each_reason_of_the_control_plane_has_its_text() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    env.emulator.suspend_all().await;
    for &(reason, text) in TEXTS {
        let fault = Fault::wake_refused(reason, None);
        env.emulator.set_fault(&project.id, fault);
        for host in project.hosts() {
            let (said, after) = only_error(&project.log_in(&env, host).await.1);
            assert!(said.starts_with(text), "{reason:?}: {said}");
            assert!(after < Duration::from_secs(10), "{reason:?}: {after:?}");
        }
        env.emulator.restart_proxy(); // which forgets what it repeats
    }
    let own = Fault::WakeRefused {
        reason: Reason::Failed,
        text: Some("as told".into()),
        times: Some(1),
    };
    env.emulator.set_fault(&project.id, own);
    let first = project.log_in(&env, &project.at.host).await.1;
    assert_eq!(only_error(&first).0, "as told");
    project.session(&env, &project.at.pooler_host).await;
}

#[tokio::test]
async fn reasons_that_pass_are_told_after_the_proxy_has_asked_nine_times() {
    let env = TestEnv::new().await;
    let mut quiet = Vec::new();
    for reason in [
        Reason::ConcurrencyLimitReached,
        Reason::LockAlreadyTaken,
        Reason::EndpointIdle,
        Reason::ProjectUnderMaintenance,
    ] {
        let project = Project::new(&env).await;
        env.emulator.suspend(&project.id).await;
        let fault = Fault::wake_refused(reason, None);
        env.emulator.set_fault(&project.id, fault);
        quiet.push(project);
    }
    let attempts = quiet.iter().map(|it| it.log_in(&env, &it.at.host));
    for (_, seen) in futures_util::future::join_all(attempts).await {
        let (said, after) = only_error(&seen);
        assert_eq!(said, UNKNOWN);
        assert!(after > Duration::from_secs(4), "{after:?}");
    }
}

#[tokio::test]
async fn limits_on_connections_pass_after_their_times() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let limits = [
        (
            Fault::NoPermit { times: 2 },
            "Failed to acquire permit to connect to the database.",
        ),
        (
            Fault::TooManyWakes { times: 2 },
            "Too many connections attempts",
        ),
    ];
    for (fault, text) in limits {
        env.emulator.suspend(&project.id).await;
        env.emulator.set_fault(&project.id, fault);
        for host in project.hosts() {
            let seen = project.log_in(&env, host).await.1;
            assert!(only_error(&seen).0.starts_with(text), "{seen:?}");
        }
        project.session(&env, &project.at.pooler_host).await;
    }
}

#[tokio::test]
async fn a_client_that_may_not_connect_is_refused_before_it_is_asked_for_a_password() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for (fault, text) in [
        (
            Fault::TooManyConnections { times: 1 },
            "Too many connections to this endpoint. Please try again later.",
        ),
        (
            Fault::AddressNotAllowed,
            "This IP address 127.0.0.1 is not allowed to connect to this endpoint.",
        ),
    ] {
        env.emulator.set_fault(&project.id, fault);
        let mut client = RawClient::connect(&env, &project.at.host).await;
        client.startup(0, &[("user", &project.at.role)]).await;
        let seen = client.until_ready().await;
        assert!(only_error(&seen).0.starts_with(text), "{seen:?}");
    }
}

#[tokio::test]
async fn a_full_compute_is_told_directly_without_its_code() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let mut clients = Vec::new();
    let refused = loop {
        let (client, seen) = project.log_in(&env, &project.at.host).await;
        if seen.last().is_some_and(|last| last.tag == 'E') {
            break seen;
        }
        clients.push(client);
        assert!(clients.len() <= 112, "Neon's limit at a quarter of a unit");
    };
    let text = only_error(&refused).0;
    let slots = "remaining connection slots are reserved for";
    assert!(text.starts_with(slots), "{text}");
    assert!(clients.len() >= 100, "{}", clients.len());
}

#[tokio::test]
async fn a_recovering_compute_is_told_directly_and_waited_for_by_the_pooler() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    project.session(&env, &project.at.host).await;
    assert!(env.emulator.stop(&project.id, Stop::Kill).await);
    let recovers = Fault::ComputeRecovers { milliseconds: 1000 };
    env.emulator.set_fault(&project.id, recovers);
    let [direct, pooled] = project.hosts();
    let through_pooler = async {
        let (_, seen) = project.log_in(&env, pooled).await;
        let last = seen.last().expect("an answer");
        assert_eq!(last.tag, 'Z', "{seen:?}");
        last.after
    };
    let directly = async {
        let mut refused = 0;
        loop {
            let (_, seen) = project.log_in(&env, direct).await;
            if seen.last().is_some_and(|last| last.tag == 'Z') {
                return refused;
            }
            let text = only_error(&seen).0;
            if text == "the database system is starting up" {
                refused += 1;
            } else {
                // The text while it ends its recovery, which takes long on a busy machine.
                assert_eq!(text, "the database system is not yet accepting connections");
            }
            tokio::time::sleep(Duration::from_millis(50)).await; // a client's own wait
        }
    };
    let (after, refused) = tokio::join!(through_pooler, directly);
    assert!(refused > 0, "it was told directly");
    let retry = Duration::from_secs(15); // PgBouncer's server_login_retry
    assert!(
        (retry..retry + Duration::from_secs(3)).contains(&after),
        "{after:?}"
    );
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 2);
}

#[tokio::test]
async fn a_client_that_gives_up_does_not_stop_the_wake() {
    let delay = Duration::from_millis(400);
    let env = TestEnv::with(|emulator| emulator.wake_delay(delay)).await;
    let project = Project::new(&env).await;
    env.emulator.suspend(&project.id).await;
    let mut client = RawClient::connect(&env, &project.at.host).await;
    let at = &project.at;
    client
        .startup(0, &[("user", &at.role), ("database", &at.database)])
        .await;
    client.answer_scram(at.password.expose()).await;
    drop(client);
    eventually("it is up", || env.emulator.witnesses()[0].is_awake).await;
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 2);
}

#[tokio::test]
async fn a_moved_endpoint_and_a_rotated_password_look_like_a_wrong_password() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let mut open = project.session(&env, &project.at.host).await;
    let password = env.emulator.rotate_password(&project.id).await.unwrap();
    let (seen, _) = open.until_closed().await;
    assert_eq!(seen[0].field('C').as_deref(), Some("57P01"));
    let wrong = "password authentication failed for user 'neondb_owner'";
    assert_eq!(
        only_error(&project.log_in(&env, &project.at.host).await.1).0,
        wrong
    );

    let moved = env.emulator.move_endpoint(&project.id).await.unwrap();
    let mut client = RawClient::connect(&env, &project.at.host).await;
    let seen = client.log_in(password.expose(), &[]).await;
    assert_eq!(only_error(&seen).0, wrong, "the old host is nobody's");
    let host = project.at.host.replacen(&project.id, &moved, 1);
    let mut client = RawClient::connect(&env, &host).await;
    let seen = client.log_in(password.expose(), &[]).await;
    assert_eq!(seen.last().unwrap().tag, 'Z');
    assert_eq!(env.emulator.move_endpoint(&project.id).await, None);
    let neon = env.neon();
    let other = neon.create_project(&CreateProject::new("other")).await;
    assert!(other.is_ok(), "others are not concerned");
}

#[tokio::test]
async fn a_wake_outlives_a_restart_of_the_proxy() {
    let delay = Duration::from_millis(200);
    let env = TestEnv::with(|emulator| emulator.wake_delay(delay)).await;
    let project = Project::new(&env).await;
    for _ in 0..3 {
        env.emulator.suspend(&project.id).await;
        let (at, wakes) = (&project.at, env.emulator.witnesses()[0].wakes.len());
        let mut client = RawClient::connect(&env, &at.host).await;
        client
            .startup(0, &[("user", &at.role), ("database", &at.database)])
            .await;
        client.answer_scram(at.password.expose()).await;
        tokio::time::sleep(delay + Duration::from_millis(10)).await; // somewhere in the start itself
        env.emulator.restart_proxy();
        eventually("it is up", || env.emulator.witnesses()[0].is_awake).await;
        project.session(&env, &at.pooler_host).await;
        assert_eq!(env.emulator.witnesses()[0].wakes.len(), wakes + 1);
    }
}
