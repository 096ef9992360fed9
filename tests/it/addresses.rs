//! Hosts with several addresses, some of which take no connection.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{BoxError, Endpoint, Resolve, RouterBuilder, TenantRouter, emulator::CatalogServer};
use tokio::{net::TcpListener, time::Instant};

use crate::support::{Gateway, LONG, Silent, Stage, run_on};

/// Longest wait for one address.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
const SLEEP: &str = "SELECT pg_sleep(60)";
const SLEEPERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'";

/// A resolver that gives every host the same addresses, and notes for which hosts it was asked.
#[derive(Clone, Default)]
struct Listed(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    addresses: Vec<SocketAddr>,
    asked: Vec<String>,
}

impl Listed {
    fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let listed = Self::default();
        listed.0.lock().unwrap().addresses = addresses.into_iter().collect();
        listed
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().asked.clone()
    }
}

impl Resolve for Listed {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut answers = self.0.lock().unwrap();
        answers.asked.push(host.to_owned());
        Ok(answers.addresses.clone())
    }
}

/// An emulator with one project, whose hosts have three silent addresses before the one that answers.
struct Town {
    stage: Stage,
    silent: Vec<Silent>,
    endpoint: Endpoint,
}

impl Town {
    async fn new() -> Self {
        let stage = Stage::new().await;
        stage.project().await;
        let endpoint = stage.endpoint(&stage.emulator.witnesses()[0]).await;
        let silent = futures_util::future::join_all((0..3).map(|_| Silent::new())).await;
        Self {
            stage,
            silent,
            endpoint,
        }
    }

    fn addresses(&self) -> Listed {
        let silent = self.silent.iter().map(|it| it.address);
        Listed::new(silent.chain([self.stage.emulator.proxy_address()]))
    }

    fn builder(&self, addresses: &Listed) -> RouterBuilder {
        let endpoint = self.endpoint.clone();
        TenantRouter::builder(move |_| {
            let endpoint = endpoint.clone();
            async move { Ok::<_, BoxError>(Some(endpoint)) }
        })
        .resolve(addresses.clone())
        .root_certificate(self.stage.emulator.root_certificate())
    }
}

#[tokio::test]
async fn silent_addresses_are_overtaken_and_the_one_that_answered_comes_first_from_then_on() {
    let town = Town::new().await;
    let router = town.builder(&town.addresses()).build().unwrap();
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
    let it = town.stage.emulator.witnesses().remove(0);
    assert_eq!(it.auth_attempts.len(), 3, "each logs in once");
}

#[tokio::test]
async fn an_address_that_takes_sockets_and_serves_nobody_is_not_tried_again_and_again() {
    let town = Town::new().await;
    let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = town.stage.emulator.proxy_address();
    let addresses = Listed::new([broken.local_addr().unwrap(), proxy]);
    let closes = tokio::spawn(async move {
        drop(broken.accept().await.unwrap());
        broken // a later connection would wait in its queue for ever
    });
    let router = town.builder(&addresses).build().unwrap();
    drop(router.get("acme").await.unwrap());
    drop(router.direct("acme").await.unwrap());
    drop(closes.await.unwrap());
}

#[tokio::test]
async fn a_request_to_cancel_goes_to_the_address_of_its_connection() {
    let town = Town::new().await;
    let addresses = town.addresses();
    let router = town.builder(&addresses).build().unwrap();
    let pooled = router.get("acme").await.unwrap();
    let direct = router.direct("acme").await.unwrap();
    let asked = addresses.asked().len();
    for (token, client) in [
        (pooled.cancel_token(), &*pooled),
        (direct.cancel_token(), &*direct),
    ] {
        let query = client.batch_execute(SLEEP);
        let stop = async {
            eventually_sleeps(&town).await;
            token.cancel().await
        };
        let (ended, sent) = tokio::time::timeout(LONG, async { tokio::join!(query, stop) })
            .await
            .expect("it sleeps on");
        sent.unwrap();
        let code = ended.unwrap_err().code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("57014"));
    }
    assert_eq!(addresses.asked().len(), asked, "it knows the address");
}

#[tokio::test]
async fn an_abandoned_query_is_cancelled_though_the_first_addresses_are_silent() {
    let town = Town::new().await;
    let router = town.builder(&town.addresses()).build().unwrap();
    let client = router.get("acme").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_millis(50), client.batch_execute(SLEEP));
    assert!(cut.await.is_err());
    eventually_sleeps(&town).await;
    drop(client);
    let began = Instant::now();
    while sleepers(&town).await > 0 {
        assert!(began.elapsed() < LONG, "it sleeps on");
    }
}

/// Waits until the database of `town` runs the query that sleeps.
async fn eventually_sleeps(town: &Town) {
    let began = Instant::now();
    while sleepers(town).await == 0 {
        assert!(began.elapsed() < LONG, "it never slept");
    }
}

/// How many sessions sleep, asked past the silent addresses.
async fn sleepers(town: &Town) -> u64 {
    let addresses = Listed::new([town.stage.emulator.proxy_address()]);
    let router = town.builder(&addresses).build().unwrap();
    let client = router.get("acme").await.unwrap();
    run_on(&client, SLEEPERS).await.parse().unwrap()
}

#[tokio::test]
async fn a_host_may_be_an_ipv6_address_with_brackets_or_without() {
    let server = CatalogServer::start().await.unwrap();
    let gateway = Gateway::to(&server.url()).await;
    for host in ["::1", "[::1]"] {
        let addresses = Listed::new([gateway.address]);
        let endpoint = Endpoint::postgres(host, "neondb", "neondb_owner", "none").without_tls();
        let lookup = move |_| {
            let endpoint = endpoint.clone();
            async move { Ok::<_, BoxError>(Some(endpoint)) }
        };
        let router = TenantRouter::builder(lookup).resolve(addresses.clone());
        let router = router.build().unwrap();
        drop(router.get("acme").await.unwrap());
        assert_eq!(addresses.asked(), ["::1"], "{host}");
    }
}
