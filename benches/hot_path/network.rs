//! Queries over a network: what each verb takes beside the least that bare code needs for the same, and how many round
//! trips it takes.
//!
//! A relay before a real Postgres delays what passes. The bare client has its connection; so has the router.

use std::{io, net::SocketAddr, time::Duration};

use tenantry::{
    BoxError, Endpoint, Error, Resolve, TenantRouter,
    emulator::CatalogServer,
    tokio_postgres::{Client, Config, NoTls, config::Host},
};
use tokio::{net::TcpStream, runtime::Builder, time::Instant};

use crate::{
    rounds::Comparison,
    support::relay::{Relay, Server},
};

/// Round trips, and the rounds that are measured with each.
const NETWORKS: [(u64, usize); 3] = [(1, 61), (10, 31), (50, 7)];
/// The round trip at which all are counted: long beside all that happens at either end.
const COUNTED: u64 = 50;
const QUERY: &str = "SELECT 1";
const TENANT: &str = "acme";

/// The work that is done, as in the names of figures.
const VERBS: [&str; 3] = ["select1", "read", "transaction"];

/// The measurements.
#[derive(Default)]
pub(crate) struct Measured {
    /// By figure.
    pub(crate) compared: Vec<(String, Comparison)>,
    /// Round trips, by figure.
    pub(crate) counted: Vec<(String, f64)>,
}

pub(crate) fn run() -> Result<Measured, BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = CatalogServer::start().await?;
        let config: Config = server.url().parse()?;
        let mut measured = Measured::default();
        for (milliseconds, rounds) in NETWORKS {
            let network = Network::new(&config, Duration::from_millis(milliseconds))?;
            network.measure(&mut measured, milliseconds, rounds).await?;
        }
        Ok(measured)
    })
}

/// A server far away, and a router of one tenant that lives there.
struct Network {
    relay: Relay,
    config: Config,
    router: TenantRouter,
}

impl Network {
    fn new(config: &Config, round_trip: Duration) -> Result<Self, BoxError> {
        let [Host::Unix(folder)] = config.get_hosts() else {
            return Err("the server has no socket".into());
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let socket = folder.join(format!(".s.PGSQL.{port}"));
        let relay = Relay::to(Server::Unix(socket), round_trip)?;
        let database = config.get_dbname().unwrap_or_default();
        let role = config.get_user().unwrap_or_default();
        let endpoint = Endpoint::postgres("far.test", database, role, "").without_tls();
        let builder = TenantRouter::builder(move |_| {
            let endpoint = endpoint.clone();
            async move { Ok(Some(endpoint)) }
        });
        Ok(Self {
            router: builder.resolve(FixedResolver(relay.address())).build()?,
            relay,
            config: config.clone(),
        })
    }

    async fn measure(
        &self,
        measured: &mut Measured,
        milliseconds: u64,
        rounds: usize,
    ) -> Result<(), BoxError> {
        let is_counted = milliseconds == COUNTED;
        let mut bare = self.connect().await?;
        let before = self.relay.turns();
        drop(self.router.get(TENANT).await?);
        if is_counted {
            measured.count("get_opens", self.relay.turns() - before);
        }
        for verb in VERBS {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for round in 0..=rounds {
                let before = self.relay.turns();
                let by_bare = by_client(&mut bare, verb).await?;
                let between = self.relay.turns();
                let by_router = by_router(&self.router, verb).await?;
                if round > 0 {
                    theirs.push(by_bare);
                    ours.push(by_router); // the first also prepares the connection
                }
                if round == rounds && is_counted {
                    measured.count(&format!("{verb}_bare"), between - before);
                    measured.count(verb, self.relay.turns() - between);
                }
            }
            let name = format!("{verb}_over_bare_rtt_{milliseconds}ms");
            measured
                .compared
                .push((name, Comparison::new(theirs, ours)));
        }
        self.router.close().await;
        Ok(())
    }

    async fn connect(&self) -> Result<Client, BoxError> {
        let stream = TcpStream::connect(self.relay.address()).await?;
        stream.set_nodelay(true)?;
        let (client, connection) = self.config.connect_raw(stream, NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await; // a query on it fails when it has ended
        });
        Ok(client)
    }
}

impl Measured {
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    fn count(&mut self, what: &str, turns: u64) {
        self.counted
            .push((format!("round_trips_{what}"), turns as f64));
    }
}

/// Nanoseconds of a bare client. A single statement that reads needs no transaction but its own.
async fn by_client(client: &mut Client, verb: &str) -> Result<f64, BoxError> {
    let start = Instant::now();
    if verb == "transaction" {
        let transaction = client.transaction().await?;
        transaction.query_typed(QUERY, &[]).await?;
        transaction.commit().await?;
    } else {
        client.query_typed(QUERY, &[]).await?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9)
}

async fn by_router(router: &TenantRouter, verb: &str) -> Result<f64, BoxError> {
    let start = Instant::now();
    match verb {
        "select1" => drop(router.get(TENANT).await?.query_typed(QUERY, &[]).await?),
        "read" => {
            let work = |tx: tenantry::Tx| async move {
                tx.query_typed(QUERY, &[]).await?;
                Ok::<_, Error>(())
            };
            router.read(TENANT, work).await?;
        }
        _ => {
            let work = |tx: tenantry::Tx| async move {
                tx.query_typed(QUERY, &[]).await?;
                Ok::<_, Error>(())
            };
            router.transaction(TENANT, work).await?;
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e9)
}

/// All hosts at one address.
struct FixedResolver(SocketAddr);

impl Resolve for FixedResolver {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }
}
