//! What clients see when a compute stops under them, in each way that was observed at Neon's own proxy.

use rustix::process::{Pid, Signal, kill_process};
use tenantry::emulator::{Fault, Stop};

use crate::support::{End, Project, RawClient, Seen, Stage, eventually};

/// What a client was doing.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Nothing,
    Transaction,
    Query,
}

/// What it hears of it: tag, severity, SQLSTATE, text.
type Last = Option<(char, &'static str, &'static str, &'static str)>;

const BARE: Last = None;
const FAST: Last = Some((
    'E',
    "FATAL",
    "57P01",
    "terminating connection due to administrator command",
));
/// A warning and no error.
const IMMEDIATE: Last = Some((
    'N',
    "WARNING",
    "57P01",
    "terminating connection due to immediate shutdown command",
));
/// `server conn crashed?`, or `server connection closed` if PgBouncer hears of it in another way.
const CRASHED: Last = Some(('E', "FATAL", "08P01", "server conn"));
const OTHER_CRASHED: Last = Some((
    'N',
    "WARNING",
    "57P02",
    "terminating connection because of crash of another server process",
));

/// What is heard directly and through the pooler.
const TABLE: &[(Stop, Doing, Last, Last)] = &[
    (Stop::Neon, Doing::Nothing, FAST, BARE),
    (Stop::Neon, Doing::Transaction, FAST, BARE),
    (Stop::Neon, Doing::Query, FAST, BARE),
    (Stop::Fast, Doing::Nothing, FAST, BARE),
    (Stop::Fast, Doing::Transaction, FAST, FAST),
    (Stop::Immediate, Doing::Nothing, IMMEDIATE, BARE),
    (Stop::Immediate, Doing::Transaction, IMMEDIATE, CRASHED),
    (Stop::Immediate, Doing::Query, IMMEDIATE, CRASHED),
    (Stop::Kill, Doing::Nothing, BARE, BARE),
    (Stop::Kill, Doing::Transaction, BARE, BARE),
    (Stop::Kill, Doing::Query, BARE, BARE),
];

/// A session that does something.
async fn doing(stage: &Stage, project: &Project, host: &str, what: Doing) -> RawClient {
    let mut client = project.session(stage, host).await;
    match what {
        Doing::Nothing => {}
        Doing::Transaction => drop(client.query("BEGIN; SELECT 1").await),
        Doing::Query => {
            client.query("BEGIN; SELECT 1").await; // so that the pooler has a server connection for it
            client.send(b'Q', b"SELECT pg_sleep(60)\0").await;
        }
    }
    client
}

async fn assert_heard(client: &mut RawClient, last: Last, case: &str) {
    let (seen, end) = client.until_closed().await;
    assert_eq!(end, End::Closed, "{case}: with TLS's goodbye");
    // The first error, or else the first notice: PgBouncer adds an error of its own to what it passes on.
    let first = |tag| seen.iter().find(|it| it.tag == tag);
    let told = first('E').or(first('N'));
    let heard = told.map(|it: &Seen| {
        let field = |field| it.field(field).unwrap_or_default();
        (it.tag, field('S'), field('C'), field('M'))
    });
    let as_expected = match (&heard, last) {
        (Some(heard), Some((tag, severity, code, text))) => {
            let same = (heard.0, &*heard.1, &*heard.2) == (tag, severity, code);
            same && heard.3.starts_with(text)
        }
        (heard, last) => heard.is_none() && last.is_none(),
    };
    assert!(as_expected, "{case}: {heard:?}, not {last:?}");
}

#[tokio::test]
async fn each_stop_is_heard_as_it_was_observed() {
    let stage = Stage::new().await;
    let project = Project::new(&stage).await;
    for &(stop, what, at_direct, at_pooled) in TABLE {
        let [direct, pooled] = project.hosts();
        let mut direct = doing(&stage, &project, direct, what).await;
        let mut pooled = doing(&stage, &project, pooled, what).await;
        assert!(stage.emulator.stop(&project.id, stop).await);
        let case = format!("{stop:?}, {what:?}");
        assert_heard(&mut direct, at_direct, &format!("{case}, direct")).await;
        assert_heard(&mut pooled, at_pooled, &format!("{case}, pooled")).await;
    }
    assert_eq!(
        stage.emulator.witnesses()[0].suspends.len(),
        TABLE.len(),
        "and it comes back each time"
    );
}

#[tokio::test]
async fn a_killed_process_of_postgres_is_heard_by_every_session() {
    let stage = Stage::new().await;
    let project = Project::new(&stage).await;
    let [direct, pooled] = project.hosts();
    for host in [direct, pooled] {
        let mut killed = project.session(&stage, host).await;
        let mut other = project.session(&stage, direct).await;
        let mut pooled_other = doing(&stage, &project, pooled, Doing::Transaction).await;
        killed.query("BEGIN").await;
        let row = killed.query("SELECT pg_backend_pid()").await;
        let row = row.iter().find(|it| it.tag == 'D').unwrap();
        let pid = String::from_utf8_lossy(&row.body[6..]).parse().unwrap();
        killed.send(b'Q', b"SELECT pg_sleep(60)\0").await;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let own = if host == direct { BARE } else { CRASHED };
        assert_heard(&mut killed, own, "its own").await;
        assert_heard(&mut other, OTHER_CRASHED, "another").await;
        assert_heard(&mut pooled_other, CRASHED, "another, pooled").await;
        eventually_in(&stage, &project).await;
    }
    assert_eq!(stage.emulator.witnesses()[0].wakes.len(), 1);
}

/// Waits until clients are let in directly; some are told meanwhile that it recovers.
async fn eventually_in(stage: &Stage, project: &Project) {
    loop {
        let (_, seen) = project.log_in(stage, &project.at.host).await;
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
async fn a_restarted_proxy_cuts_everybody_off_without_tls_goodbye() {
    let stage = Stage::new().await;
    let project = Project::new(&stage).await;
    for what in [Doing::Nothing, Doing::Query] {
        for host in project.hosts() {
            let mut client = doing(&stage, &project, host, what).await;
            stage.emulator.restart_proxy();
            let (seen, end) = client.until_closed().await;
            assert_eq!((seen.len(), end), (0, End::Cut), "{what:?}");
            project.session(&stage, host).await;
        }
    }
    assert_eq!(stage.emulator.witnesses()[0].wakes.len(), 1);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_done_all_the_same() {
    let stage = Stage::new().await;
    let project = Project::new(&stage).await;
    for host in project.hosts() {
        let mut client = project.session(&stage, host).await;
        client
            .query("CREATE TABLE IF NOT EXISTS notes (n int)")
            .await;
        let fault = Fault::CommitAnswerLost;
        stage.emulator.set_fault(&project.id, fault);
        client.query("BEGIN; INSERT INTO notes VALUES (1)").await;
        client.send(b'Q', b"COMMIT\0").await;
        assert_heard(&mut client, BARE, host).await;
        eventually("it is down", || !stage.emulator.witnesses()[0].is_awake).await;
        let mut again = project.session(&stage, &project.at.host).await;
        let seen = again.query("DELETE FROM notes").await;
        assert_eq!(&seen[0].body[..], b"DELETE 1\0", "{host}");
        again.query("COMMIT").await;
    }
}

#[tokio::test]
async fn an_idle_session_does_not_keep_a_compute_awake_and_hears_of_its_sleep() {
    let window = std::time::Duration::from_millis(500);
    let stage = Stage::with(|emulator| emulator.suspend_after(window)).await;
    let project = Project::new(&stage).await;
    let [direct, pooled] = project.hosts();
    let mut direct = project.session(&stage, direct).await;
    let mut pooled = project.session(&stage, pooled).await;
    assert_heard(&mut direct, FAST, "direct").await;
    assert_heard(&mut pooled, BARE, "pooled").await;
}

#[tokio::test]
async fn a_recovery_that_was_held_up_leaves_nothing_that_stops_a_later_start() {
    let stage = Stage::new().await;
    let project = Project::new(&stage).await;
    for (before, after) in [
        (Stop::Neon, Stop::Kill),
        (Stop::Kill, Stop::Immediate),
        (Stop::Immediate, Stop::Neon),
    ] {
        assert!(stage.emulator.stop(&project.id, before).await);
        let recovers = Fault::ComputeRecovers { milliseconds: 50 };
        stage.emulator.set_fault(&project.id, recovers);
        eventually_in(&stage, &project).await;
        assert!(stage.emulator.stop(&project.id, after).await);
        eventually_in(&stage, &project).await;
    }
    // Stopped in the middle of it.
    for stop in [Stop::Kill, Stop::Neon] {
        assert!(stage.emulator.stop(&project.id, Stop::Kill).await);
        let recovers = Fault::ComputeRecovers {
            milliseconds: 60_000,
        };
        stage.emulator.set_fault(&project.id, recovers);
        drop(project.log_in(&stage, &project.at.host).await);
        assert!(stage.emulator.stop(&project.id, stop).await);
        eventually_in(&stage, &project).await;
    }
}
