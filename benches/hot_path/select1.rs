//! A query from end to end: through the router, by a bare client on one connection, and by a bare client through a
//! PgBouncer in front of the same Postgres, which is what stands between many tenants and their databases today.
//!
//! All three reach the server's socket by a pipe inside the process and a task that moves its bytes, because a router
//! opens no sockets in folders. One thread does everything, and the servers run on the same processor, so that no
//! figure is about where the kernel puts them: that makes more than a factor of two.

use std::{io, time::Duration};

use rustix::thread::{CpuSet, sched_setaffinity};
use tenantry::{
    BoxError, Endpoint, TenantRouter,
    emulator::CatalogServer,
    tokio_postgres::{Client, Config, NoTls, config::Host},
};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    net::UnixStream,
    runtime::Builder,
    time::Instant,
};

use crate::rounds::Comparison;

/// The query, and how often it is asked in a turn.
const QUERY: &str = "SELECT 1";
const QUERIES: u32 = 300;
/// Rounds in which each of the three takes a turn, and those before that are not counted.
const ROUNDS: usize = 61;
const WARM_UP: usize = 5;
const PIPE: usize = 16 * 1024;
const TENANT: &str = "acme";

/// The router beside a bare client, and beside a bare client through PgBouncer.
pub(crate) fn run() -> Result<(Comparison, Comparison), BoxError> {
    let mut here = CpuSet::new();
    here.set(0);
    sched_setaffinity(None, &here)?; // inherited by all that is started from here
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = CatalogServer::start().await?;
        let straight: Config = server.url().parse()?;
        let pooled: Config = server.pooled_url().await?.parse()?;
        let (bare, behind) = (client(&straight).await?, client(&pooled).await?);
        let router = router(straight)?;
        let mut turns: [Vec<f64>; 3] = Default::default();
        for round in 0..WARM_UP + ROUNDS {
            // Each comes first as often as the others.
            for who in (0..3).map(|place| (round + place) % 3) {
                let took = match who {
                    0 => by_client(&bare).await?,
                    1 => by_router(&router).await?,
                    _ => by_client(&behind).await?,
                };
                if round >= WARM_UP {
                    turns[who].push(took.as_secs_f64() * 1e9 / f64::from(QUERIES));
                }
            }
        }
        let [bare, ours, behind] = turns;
        router.close().await;
        Ok((
            Comparison::new(bare, ours.clone()),
            Comparison::new(behind, ours),
        ))
    })
}

async fn by_client(client: &Client) -> Result<Duration, BoxError> {
    let began = Instant::now();
    for _ in 0..QUERIES {
        client.query_typed(QUERY, &[]).await?;
    }
    Ok(began.elapsed())
}

async fn by_router(router: &TenantRouter) -> Result<Duration, BoxError> {
    let began = Instant::now();
    for _ in 0..QUERIES {
        router.get(TENANT).await?.query_typed(QUERY, &[]).await?;
    }
    Ok(began.elapsed())
}

/// A client at the socket that `config` names.
async fn client(config: &Config) -> Result<Client, BoxError> {
    let (client, connection) = config.connect_raw(stream(config).await?, NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await; // a query on it fails when it has ended
    });
    Ok(client)
}

/// A router whose one tenant lives there.
fn router(config: Config) -> Result<TenantRouter, BoxError> {
    let database = config.get_dbname().unwrap_or_default();
    let role = config.get_user().unwrap_or_default();
    let endpoint = Endpoint::postgres("localhost", database, role, "").without_tls();
    let builder = TenantRouter::builder(move |_| {
        let endpoint = endpoint.clone();
        async move { Ok(Some(endpoint)) }
    });
    let builder = builder.open_streams(move |_, _| {
        let config = config.clone();
        async move { stream(&config).await }
    });
    Ok(builder.build()?)
}

/// A pipe to the socket that `config` names.
async fn stream(config: &Config) -> io::Result<DuplexStream> {
    let [Host::Unix(folder)] = config.get_hosts() else {
        return Err(io::Error::other("the server has no socket"));
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let mut socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?;
    let (near, mut far) = duplex(PIPE);
    tokio::spawn(async move {
        let _ = copy_bidirectional(&mut far, &mut socket).await; // either end may have gone
    });
    Ok(near)
}
