//! A project whose clients show what is on the wire.

use std::time::Duration;

use tenantry::neon::ConnectionParameters;

use super::{Message, RawClient, TestEnv};

/// A project with its compute, for clients at the wire.
pub(crate) struct Project {
    /// Id of its endpoint.
    pub(crate) id: String,
    pub(crate) at: ConnectionParameters,
}

impl Project {
    /// A project whose compute is awake.
    pub(crate) async fn new(env: &TestEnv) -> Self {
        let created = env.project().await;
        let at = created.connection_uris[0].connection_parameters.clone();
        Self {
            id: created.endpoints[0].id.clone(),
            at,
        }
    }

    /// The direct host and the one with the pooler.
    pub(crate) fn hosts(&self) -> [&str; 2] {
        [&self.at.host, &self.at.pooler_host]
    }

    /// Logs in through `host`; the messages since the proof.
    pub(crate) async fn log_in(&self, env: &TestEnv, host: &str) -> (RawClient, Vec<Message>) {
        let mut client = RawClient::connect(env, host).await;
        let seen = client.log_in(self.at.password.expose(), &[]).await;
        (client, seen)
    }

    /// A session through `host`.
    pub(crate) async fn session(&self, env: &TestEnv, host: &str) -> RawClient {
        let (client, seen) = self.log_in(env, host).await;
        assert!(seen.last().is_some_and(|last| last.tag == 'Z'), "{seen:?}");
        client
    }
}

/// The text of the one error that was sent, and when it came.
pub(crate) fn only_error(seen: &[Message]) -> (String, Duration) {
    assert_eq!(seen.len(), 1, "{seen:?}");
    let field = |field| seen[0].field(field).unwrap_or_default();
    assert_eq!(
        (field('S').as_str(), field('C').as_str()),
        ("ERROR", "XX000")
    );
    (field('M'), seen[0].after)
}
