//! The cost of a pool without a connection, and of an open connection.

use std::time::Duration;

use tenantry::BoxError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::sleep,
};

use crate::{backend::Backend, memory::AllocationCounter, setup::Setup};

/// Pools, and connections, by which their cost is divided.
const POOLS: usize = 10_000;
/// Idle time after which connections are closed: longer than it takes to open all.
const IDLE: Duration = Duration::from_secs(8);
/// Time between two looks at whether all has ended.
const SETTLE: Duration = Duration::from_millis(100);
/// The first message of a client: the version of the protocol, and who it is.
const LOGIN: &[u8] =
    b"\0\x03\0\0client_encoding\0UTF8\0user\0neondb_owner\0database\0neondb\0application_name\0tenantry\0\0";
/// The server's last message at a login.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// Bytes of live allocations.
pub(crate) struct MemoryCost {
    pub(crate) pool: f64,
    pub(crate) connection: f64,
    /// Of which a client of tokio-postgres by itself has so much.
    pub(crate) bare: f64,
    /// The scripted server's own, and the pipe. In none of the others.
    pub(crate) session: f64,
}

pub(crate) async fn run() -> Result<MemoryCost, BoxError> {
    let session = sessions().await?;
    let bare = clients().await? - session;
    let setup = Setup::new(POOLS, |builder| {
        let builder = builder.max_pools(2 * POOLS as u64).idle_after(IDLE);
        builder.max_connections(2 * POOLS)
    })
    .await?;
    let live = AllocationCounter::new();
    for tenant in &setup.tenants.ids {
        drop(setup.router.get(tenant).await?);
    }
    let connected = live.bytes_live();
    if setup.router.status().connections != POOLS as u64 {
        return Err("a connection was closed too early".into());
    }
    while setup.router.status().connections > 0 || setup.backend.open_now() > 0 {
        sleep(SETTLE).await;
    }
    let pooled = live.bytes_live();
    if setup.router.status().pools != POOLS as u64 {
        return Err("a pool was dropped".into());
    }
    Ok(MemoryCost {
        pool: per_item(pooled),
        connection: per_item(connected - pooled) - session,
        bare,
        session,
    })
}

/// The memory of the scripted server for one session, with the pipe to it.
async fn sessions() -> Result<f64, BoxError> {
    let backend = Backend::default();
    let mut streams = Vec::with_capacity(POOLS);
    let live = AllocationCounter::new();
    for _ in 0..POOLS {
        let mut stream = backend.open();
        log_in(&mut stream).await?;
        streams.push(stream);
    }
    let live = per_item(live.bytes_live());
    drop(streams);
    while backend.open_now() > 0 {
        sleep(SETTLE).await;
    }
    Ok(live)
}

/// The memory of a bare client, its server's part included.
async fn clients() -> Result<f64, BoxError> {
    let backend = Backend::default();
    let mut clients = Vec::with_capacity(POOLS);
    let live = AllocationCounter::new();
    for _ in 0..POOLS {
        clients.push(backend.connect().await?);
    }
    let live = per_item(live.bytes_live());
    drop(clients);
    while backend.open_now() > 0 {
        sleep(SETTLE).await;
    }
    Ok(live)
}

async fn log_in(stream: &mut DuplexStream) -> Result<(), BoxError> {
    stream.write_u32(u32::try_from(LOGIN.len() + 4)?).await?;
    stream.write_all(LOGIN).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(READY) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the server has left".into());
        }
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "bytes of this machine's memory")]
fn per_item(bytes: i64) -> f64 {
    bytes as f64 / POOLS as f64
}
