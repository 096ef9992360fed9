//! The messages that clients get when a compute stops under them, in each way that was observed at Neon's own proxy.

use rustix::process::{Pid, Signal, kill_process};
use tenantry::emulator::{Fault, Stop};

use crate::support::{CloseKind, Message, Project, RawClient, TestEnv, eventually};

/// The activity of a client when the compute stops.
#[derive(Clone, Copy, Debug)]
enum Activity {
    Nothing,
    Transaction,
    Query,
}

/// The last message that it gets: tag, severity, SQLSTATE, text.
type LastMessage = Option<(char, &'static str, &'static str, &'static str)>;

const NO_MESSAGE: LastMessage = None;
const FAST: LastMessage = Some((
    'E',
    "FATAL",
    "57P01",
    "terminating connection due to administrator command",
));
/// A warning and no error.
const IMMEDIATE: LastMessage = Some((
    'N',
    "WARNING",
    "57P01",
    "terminating connection due to immediate shutdown command",
));
/// `server conn crashed?`, or `server connection closed` if PgBouncer learns of it in another way.
const CRASHED: LastMessage = Some(('E', "FATAL", "08P01", "server conn"));
const OTHER_CRASHED: LastMessage = Some((
    'N',
    "WARNING",
    "57P02",
    "terminating connection because of crash of another server process",
));

/// The last messages that a client gets directly and through the pooler.
const TABLE: &[(Stop, Activity, LastMessage, LastMessage)] = &[
    (Stop::Neon, Activity::Nothing, FAST, NO_MESSAGE),
    (Stop::Neon, Activity::Transaction, FAST, NO_MESSAGE),
    (Stop::Neon, Activity::Query, FAST, NO_MESSAGE),
    (Stop::Fast, Activity::Nothing, FAST, NO_MESSAGE),
    (Stop::Fast, Activity::Transaction, FAST, FAST),
    (Stop::Immediate, Activity::Nothing, IMMEDIATE, NO_MESSAGE),
    (Stop::Immediate, Activity::Transaction, IMMEDIATE, CRASHED),
    (Stop::Immediate, Activity::Query, IMMEDIATE, CRASHED),
    (Stop::Kill, Activity::Nothing, NO_MESSAGE, NO_MESSAGE),
    (Stop::Kill, Activity::Transaction, NO_MESSAGE, NO_MESSAGE),
    (Stop::Kill, Activity::Query, NO_MESSAGE, NO_MESSAGE),
];

/// A session that does something.
async fn session_doing(env: &TestEnv, project: &Project, host: &str, what: Activity) -> RawClient {
    let mut client = project.session(env, host).await;
    match what {
        Activity::Nothing => {}
        Activity::Transaction => drop(client.query("BEGIN; SELECT 1").await),
        Activity::Query => {
            client.query("BEGIN; SELECT 1").await; // so that the pooler has a server connection for it
            client.send(b'Q', b"SELECT pg_sleep(60)\0").await;
        }
    }
    client
}

async fn assert_last_message(client: &mut RawClient, last: LastMessage, case: &str) {
    let (seen, end) = client.until_closed().await;
    assert_eq!(end, CloseKind::Closed, "{case}: with TLS's goodbye");
    // The first error, or else the first notice: PgBouncer adds an error of its own to what it passes on.
    let first = |tag| seen.iter().find(|it| it.tag == tag);
    let last_message = first('E').or(first('N'));
    let received = last_message.map(|it: &Message| {
        let field = |field| it.field(field).unwrap_or_default();
        (it.tag, field('S'), field('C'), field('M'))
    });
    let as_expected = match (&received, last) {
        (Some(received), Some((tag, severity, code, text))) => {
            let same = (received.0, &*received.1, &*received.2) == (tag, severity, code);
            same && received.3.starts_with(text)
        }
        (received, last) => received.is_none() && last.is_none(),
    };
    assert!(as_expected, "{case}: {received:?}, not {last:?}");
}

#[tokio::test]
async fn each_stop_ends_sessions_as_it_was_observed() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for &(stop, what, at_direct, at_pooled) in TABLE {
        let [direct, pooled] = project.hosts();
        let mut direct = session_doing(&env, &project, direct, what).await;
        let mut pooled = session_doing(&env, &project, pooled, what).await;
        assert!(env.emulator.stop(&project.id, stop).await);
        let case = format!("{stop:?}, {what:?}");
        assert_last_message(&mut direct, at_direct, &format!("{case}, direct")).await;
        assert_last_message(&mut pooled, at_pooled, &format!("{case}, pooled")).await;
    }
    assert_eq!(
        env.emulator.witnesses()[0].suspends.len(),
        TABLE.len(),
        "and it comes back each time"
    );
}

#[tokio::test]
async fn a_killed_process_of_postgres_ends_every_session() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let [direct, pooled] = project.hosts();
    for host in [direct, pooled] {
        let mut killed = project.session(&env, host).await;
        let mut other = project.session(&env, direct).await;
        let mut pooled_other = session_doing(&env, &project, pooled, Activity::Transaction).await;
        killed.query("BEGIN").await;
        let row = killed.query("SELECT pg_backend_pid()").await;
        let row = row.iter().find(|it| it.tag == 'D').unwrap();
        let pid = String::from_utf8_lossy(&row.body[6..]).parse().unwrap();
        killed.send(b'Q', b"SELECT pg_sleep(60)\0").await;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let own = if host == direct { NO_MESSAGE } else { CRASHED };
        assert_last_message(&mut killed, own, "its own").await;
        assert_last_message(&mut other, OTHER_CRASHED, "another").await;
        assert_last_message(&mut pooled_other, CRASHED, "another, pooled").await;
        wait_until_accepting(&env, &project).await;
    }
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 1);
}

/// Waits until direct logins succeed; until then some are refused because Postgres recovers.
async fn wait_until_accepting(env: &TestEnv, project: &Project) {
    loop {
        let (_, seen) = project.log_in(env, &project.at.host).await;
        let last = seen.last().expect("an answer");
        if last.tag == 'Z' {
            return;
        }
        let text = last.field('M').unwrap_or_default();
        let recovers = text.starts_with("the database system is") || text.contains("reset by peer");
        assert!(recovers || text.contains("Couldn't connect"), "{text}");
    }
}

#[tokio::test]
async fn a_restarted_proxy_cuts_all_clients_off_without_tls_goodbye() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for what in [Activity::Nothing, Activity::Query] {
        for host in project.hosts() {
            let mut client = session_doing(&env, &project, host, what).await;
            env.emulator.restart_proxy();
            let (seen, end) = client.until_closed().await;
            assert_eq!((seen.len(), end), (0, CloseKind::Cut), "{what:?}");
            project.session(&env, host).await;
        }
    }
    assert_eq!(env.emulator.witnesses()[0].wakes.len(), 1);
}

#[tokio::test]
async fn a_commit_with_a_lost_answer_is_done() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for host in project.hosts() {
        let mut client = project.session(&env, host).await;
        client
            .query("CREATE TABLE IF NOT EXISTS notes (n int)")
            .await;
        let fault = Fault::CommitAnswerLost;
        env.emulator.set_fault(&project.id, fault);
        client.query("BEGIN; INSERT INTO notes VALUES (1)").await;
        client.send(b'Q', b"COMMIT\0").await;
        assert_last_message(&mut client, NO_MESSAGE, host).await;
        eventually("it is down", || !env.emulator.witnesses()[0].is_awake).await;
        let mut again = project.session(&env, &project.at.host).await;
        let seen = again.query("DELETE FROM notes").await;
        assert_eq!(&seen[0].body[..], b"DELETE 1\0", "{host}");
        again.query("COMMIT").await;
    }
}

#[tokio::test]
async fn an_idle_session_does_not_keep_a_compute_awake_and_ends_when_it_sleeps() {
    let window = std::time::Duration::from_millis(500);
    let env = TestEnv::with(|emulator| emulator.suspend_after(window)).await;
    let project = Project::new(&env).await;
    let [direct, pooled] = project.hosts();
    let mut direct = project.session(&env, direct).await;
    let mut pooled = project.session(&env, pooled).await;
    assert_last_message(&mut direct, FAST, "direct").await;
    assert_last_message(&mut pooled, NO_MESSAGE, "pooled").await;
}

#[tokio::test]
async fn a_delayed_recovery_leaves_nothing_that_stops_a_later_start() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    for (before, after) in [
        (Stop::Neon, Stop::Kill),
        (Stop::Kill, Stop::Immediate),
        (Stop::Immediate, Stop::Neon),
    ] {
        assert!(env.emulator.stop(&project.id, before).await);
        let recovers = Fault::ComputeRecovers { milliseconds: 50 };
        env.emulator.set_fault(&project.id, recovers);
        wait_until_accepting(&env, &project).await;
        assert!(env.emulator.stop(&project.id, after).await);
        wait_until_accepting(&env, &project).await;
    }
    // Stopped in the middle of it.
    for stop in [Stop::Kill, Stop::Neon] {
        assert!(env.emulator.stop(&project.id, Stop::Kill).await);
        let recovers = Fault::ComputeRecovers {
            milliseconds: 60_000,
        };
        env.emulator.set_fault(&project.id, recovers);
        drop(project.log_in(&env, &project.at.host).await);
        assert!(env.emulator.stop(&project.id, stop).await);
        wait_until_accepting(&env, &project).await;
    }
}
