//! The differences that the pooler makes, held against what Neon's PgBouncer was observed to do.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::{Message, Project, RawClient, TestEnv};

/// Messages of the extended protocol: what prepares and executes a named statement.
fn parse_message(name: &str, sql: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat()
}

async fn execute(client: &mut RawClient, name: &str) -> Vec<Message> {
    let bind = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat();
    let all: [(u8, &[u8]); 3] = [(b'B', &bind), (b'E', b"\0\0\0\0\0"), (b'S', b"")];
    client.send_all(&all).await;
    client.until_ready().await
}

fn tags(seen: &[Message]) -> String {
    seen.iter().map(|message| message.tag).collect()
}

#[tokio::test]
async fn deallocating_all_statements_breaks_those_that_the_pooler_remembers() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let [_, pooled] = project.hosts();
    let mut client = project.session(&env, pooled).await;
    client.send(b'P', &parse_message("s1", "SELECT 1")).await;
    let seen = execute(&mut client, "s1").await;
    assert_eq!(tags(&seen), "12DCZ");
    client.query("DEALLOCATE ALL").await;
    let seen = execute(&mut client, "s1").await;
    let error = seen.last().unwrap();
    assert_eq!(error.field('C').as_deref(), Some("08P01"), "{seen:?}");
    let text = error.field('M').unwrap();
    assert!(
        text.starts_with("prepared statement did not exist"),
        "{text}"
    );
    assert!(client.next().await.is_none(), "and it is closed");
}

#[tokio::test]
async fn discarding_and_listening_are_taken_and_no_notification_comes() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let [direct, pooled] = project.hosts();
    let mut listener = project.session(&env, pooled).await;
    assert_eq!(tags(&listener.query("DISCARD ALL").await), "CZ");
    assert_eq!(tags(&listener.query("LISTEN news").await), "CZ");
    let mut direct = project.session(&env, direct).await;
    direct.query("LISTEN news").await;
    let mut speaker = project.session(&env, &project.at.host).await;
    speaker.query("NOTIFY news").await;
    let heard = direct.next().await.expect("a notification");
    assert_eq!(heard.tag, 'A', "it was sent by now");
    let unasked = timeout(Duration::from_millis(300), listener.next()).await;
    assert!(
        unasked.is_err(),
        "nobody is told who does not ask: {unasked:?}"
    );
    let seen = listener.query("SELECT 1").await;
    assert_eq!(tags(&seen), "TDCZ", "nothing in between");
}

#[tokio::test]
async fn parameters_that_an_option_lets_through_are_refused_by_the_pooler() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let [direct, pooled] = project.hosts();
    let more = [
        ("options", "neon_proxy_params_compat:true"),
        ("statement_timeout", "1234"),
    ];
    let password = project.at.password.expose();
    let mut client = RawClient::connect(&env, direct).await;
    let seen = client.log_in(password, &more).await;
    assert!(tags(&seen).ends_with('Z'), "{seen:?}");
    let mut client = RawClient::connect(&env, pooled).await;
    let seen = client.log_in(password, &more).await;
    let text = seen.last().unwrap().field('M').unwrap();
    let unsupported = "unsupported startup parameter: statement_timeout. Please use unpooled";
    assert!(text.starts_with(unsupported), "{text}");
}

#[tokio::test]
async fn both_hosts_report_the_same_parameters() {
    let env = TestEnv::new().await;
    let project = Project::new(&env).await;
    let mut reported = Vec::new();
    for host in project.hosts() {
        let (_, seen) = project.log_in(&env, host).await;
        let statuses = seen.iter().filter(|message| message.tag == 'S');
        let names = statuses.map(|it| it.body.split(|byte| *byte == 0).next().unwrap().to_vec());
        let mut names: Vec<_> = names.collect();
        names.sort();
        reported.push(names);
    }
    assert!(reported[0].len() > 8, "{reported:?}");
    assert_eq!(reported[0], reported[1]);
}
