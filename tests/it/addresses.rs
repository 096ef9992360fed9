//! Hosts with several addresses, some of which take no connection.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{BoxError, Endpoint, Resolve, RouterBuilder, TenantRouter, emulator::CatalogServer};
use tokio::{net::TcpListener, time::Instant};

use crate::support::{Gateway, LONG, SilentListener, TestEnv, query_text};

/// Longest wait for one address.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
const SLEEP: &str = "SELECT pg_sleep(60)";
const COUNT_SLEEPING: &str = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";

/// A resolver that gives every host the same addresses, and notes for which hosts it was asked.
#[derive(Clone, Default)]
struct RecordingResolver(Arc<Mutex<ResolverState>>);

#[derive(Default)]
struct ResolverState {
    addresses: Vec<SocketAddr>,
    requested: Vec<String>,
}

impl RecordingResolver {
    fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let resolver = Self::default();
        resolver.0.lock().unwrap().addresses = addresses.into_iter().collect();
        resolver
    }

    fn requested_hosts(&self) -> Vec<String> {
        self.0.lock().unwrap().requested.clone()
    }
}

impl Resolve for RecordingResolver {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut state = self.0.lock().unwrap();
        state.requested.push(host.to_owned());
        Ok(state.addresses.clone())
    }
}

/// An emulator with one project, whose hosts have three silent addresses before the one that answers.
struct Fixture {
    env: TestEnv,
    silent: Vec<SilentListener>,
    endpoint: Endpoint,
}

impl Fixture {
    async fn new() -> Self {
        let env = TestEnv::new().await;
        env.project().await;
        let endpoint = env.endpoint(&env.emulator.witnesses()[0]).await;
        let silent = futures_util::future::join_all((0..3).map(|_| SilentListener::new())).await;
        Self {
            env,
            silent,
            endpoint,
        }
    }

    fn addresses(&self) -> RecordingResolver {
        let silent = self.silent.iter().map(|it| it.address);
        RecordingResolver::new(silent.chain([self.env.emulator.proxy_address()]))
    }

    fn builder(&self, addresses: &RecordingResolver) -> RouterBuilder {
        let endpoint = self.endpoint.clone();
        TenantRouter::builder(move |_| {
            let endpoint = endpoint.clone();
            async move { Ok::<_, BoxError>(Some(endpoint)) }
        })
        .resolve(addresses.clone())
        .root_certificate(self.env.emulator.root_certificate())
    }
}

#[tokio::test]
async fn silent_addresses_are_skipped_and_the_one_that_answered_is_tried_first_afterwards() {
    let fixture = Fixture::new().await;
    let router = fixture.builder(&fixture.addresses()).build().unwrap();
    let mut took = Vec::new();
    let mut held = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        held.push(router.get("acme").await.unwrap());
        took.push(began.elapsed());
    }
    assert!(took[0] < TCP_TIMEOUT, "one after the other: {took:?}");
    assert!(
        took[1..].iter().all(|later| *later < took[0]),
        "the silent ones were tried again: {took:?}"
    );
    let it = fixture.env.emulator.witnesses().remove(0);
    assert_eq!(it.auth_attempts.len(), 3, "each logs in once");
}

#[tokio::test]
async fn an_address_that_accepts_and_then_closes_is_not_tried_by_the_next_connection() {
    let fixture = Fixture::new().await;
    let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = fixture.env.emulator.proxy_address();
    let addresses = RecordingResolver::new([broken.local_addr().unwrap(), proxy]);
    let closes = tokio::spawn(async move {
        drop(broken.accept().await.unwrap());
        broken // a later connection would wait in its queue for ever
    });
    let router = fixture.builder(&addresses).build().unwrap();
    drop(router.get("acme").await.unwrap());
    drop(router.direct("acme").await.unwrap());
    drop(closes.await.unwrap());
}

#[tokio::test]
async fn a_request_to_cancel_goes_to_the_address_of_its_connection() {
    let fixture = Fixture::new().await;
    let addresses = fixture.addresses();
    let router = fixture.builder(&addresses).build().unwrap();
    let pooled = router.get("acme").await.unwrap();
    let direct = router.direct("acme").await.unwrap();
    let requested = addresses.requested_hosts().len();
    for (token, client) in [
        (pooled.cancel_token(), &*pooled),
        (direct.cancel_token(), &*direct),
    ] {
        let query = client.batch_execute(SLEEP);
        let stop = async {
            wait_until_sleeping(&fixture).await;
            token.cancel().await
        };
        let (ended, sent) = tokio::time::timeout(LONG, async { tokio::join!(query, stop) })
            .await
            .expect("it sleeps on");
        sent.unwrap();
        let code = ended.unwrap_err().code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("57014"));
    }
    assert_eq!(
        addresses.requested_hosts().len(),
        requested,
        "it knows the address"
    );
}

#[tokio::test]
async fn an_abandoned_query_is_cancelled_though_the_first_addresses_are_silent() {
    let fixture = Fixture::new().await;
    let router = fixture.builder(&fixture.addresses()).build().unwrap();
    let client = router.get("acme").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_millis(50), client.batch_execute(SLEEP));
    assert!(cut.await.is_err());
    wait_until_sleeping(&fixture).await;
    drop(client);
    let began = Instant::now();
    while sleeping_sessions(&fixture).await > 0 {
        assert!(began.elapsed() < LONG, "it sleeps on");
    }
}

/// Waits until the database of `fixture` runs the query that sleeps.
async fn wait_until_sleeping(fixture: &Fixture) {
    let began = Instant::now();
    while sleeping_sessions(fixture).await == 0 {
        assert!(began.elapsed() < LONG, "it never slept");
    }
}

/// Counts the sleeping sessions, past the silent addresses.
async fn sleeping_sessions(fixture: &Fixture) -> u64 {
    let addresses = RecordingResolver::new([fixture.env.emulator.proxy_address()]);
    let router = fixture.builder(&addresses).build().unwrap();
    let client = router.get("acme").await.unwrap();
    query_text(&client, COUNT_SLEEPING).await.parse().unwrap()
}

#[tokio::test]
async fn a_host_may_be_an_ipv6_address_with_brackets_or_without() {
    let server = CatalogServer::start().await.unwrap();
    let gateway = Gateway::to(&server.url()).await;
    for host in ["::1", "[::1]"] {
        let addresses = RecordingResolver::new([gateway.address]);
        let endpoint = Endpoint::postgres(host, "neondb", "neondb_owner", "none").without_tls();
        let lookup = move |_| {
            let endpoint = endpoint.clone();
            async move { Ok::<_, BoxError>(Some(endpoint)) }
        };
        let router = TenantRouter::builder(lookup).resolve(addresses.clone());
        let router = router.build().unwrap();
        drop(router.get("acme").await.unwrap());
        assert_eq!(addresses.requested_hosts(), ["::1"], "{host}");
    }
}
