//! The cost of knowing many tenants: 500 of up to a million have a pool at a time, and replicas share one catalog.
//!
//! `cargo bench --bench scale` takes some two minutes and a gigabyte of memory. It needs no server, and does all of the
//! following but the replicas. Prints tables, and writes `target/figures/scale.json`.
//!
//! `cargo bench --bench scale -- million [TENANTS]` measures only the million, in half a minute (`scale_million.json`).
//! `cargo bench --bench scale -- replicas [TENANTS [SECONDS]]` measures eight replicas on one catalog, in two to
//! three minutes, and needs a Postgres server and a PgBouncer on the machine, as the emulator does
//! (`scale_replicas.json`); `scale/replicas.rs` says more.
//!
//! The catalog is the embedded one, filled beforehand; the server is a script behind pipes in this process, so that no
//! socket is in any figure. Everything runs on one thread. Every allocation is counted, which costs a miss a little and
//! a hit nothing.
//!
//! - *Traffic*: `get`, and the connection given back at once, for tenants by Zipf (exponent 1) over all that are known.
//!   A *hit* opens nothing. A *miss* finds the tenant in what was preloaded, opens a connection to it, and mostly
//!   evicts the least recently used pool. Each call is timed by itself, its reading of the clock included, and between
//!   them a bare `HashMap` of all that are known is asked for the same tenants, timed in the same way: both find the
//!   processor's caches as the traffic leaves them, which spoils them more with more misses. The four numbers of
//!   tenants take turns.
//! - *Growth* is how much more a call takes with 300,000 tenants than with 1,000, so that the clock's part drops out.
//!   Of each round the mean is taken, because half of all calls are for a few tenants and the median says little of the
//!   others, and without the longest twentieth: one hit in some dozens also does the cache's work, which is the closing
//!   of what was evicted, and has its place in p99. Figures are medians of 21 rounds.
//! - *Bytes* are live allocations as they were asked for, before and after, divided by how many there are: of tenants
//!   that were preloaded, with ids of 36 characters and hosts as long as Neon's; of 10,000 pools whose connections were
//!   closed for lying idle; and of the same pools with one idle connection each, without the server's part. Most of
//!   that is the buffers of tokio-postgres, so a client of its own is measured beside it.
//! - *The bound*: 500 tenants hold all connections that there may be, and 10,000 others wait for one. The process's CPU
//!   time in a second in which nothing else happens.
//! - *A million* tenants are known: resident memory before and after preloading them from a catalog that makes each
//!   record when it is asked for, the time of that, and a hit and a miss beside those of a router that knows a
//!   thousand.

#[path = "support/backend.rs"]
mod backend;
#[path = "scale/bound.rs"]
mod bound;
#[path = "scale/catalog.rs"]
mod catalog;
#[path = "scale/kept.rs"]
mod kept;
#[path = "support/memory.rs"]
mod memory;
#[path = "scale/million.rs"]
mod million;
#[path = "scale/replicas.rs"]
mod replicas;
#[path = "scale/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;
#[path = "scale/setup.rs"]
mod setup;
#[path = "scale/spread.rs"]
mod spread;
mod support;
#[path = "scale/tenants.rs"]
mod tenants;
#[path = "scale/traffic.rs"]
mod traffic;

use std::{env, time::Duration};

use tenantry::BoxError;
use tokio::runtime::Builder;

use report::Report;
use setup::Setup;

/// Tenants that are known.
const KNOWN: [usize; 4] = [1_000, 10_000, 100_000, 300_000];
const POOLS: u64 = 500;
/// Above the pools, because those of an evicted one take a moment to close.
const CONNECTIONS: usize = 600;

fn main() -> Result<(), BoxError> {
    let words: Vec<_> = env::args().skip(1).collect();
    let has = |name: &str| words.iter().any(|word| word == name);
    let mut numbers = words.iter().filter_map(|word| word.parse().ok());
    if has("replicas") {
        let tenants = numbers.next().unwrap_or(replicas::TENANTS);
        let time = numbers.next().map(|it| Duration::from_secs(it as u64));
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(replicas::run(tenants, time.unwrap_or(replicas::TIME)));
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    if has("million") {
        let tenants = numbers.next().unwrap_or(million::MANY);
        return runtime.block_on(million::run(tenants))?.report();
    }
    runtime.block_on(all())
}

/// Measures everything but replicas.
async fn all() -> Result<(), BoxError> {
    if env::var_os("BOUND").is_some() {
        println!("{:?}", bound::run().await?);
        return Ok(());
    }
    let kept = kept::run().await?;
    let bound = bound::run().await?;
    let mut setups = Vec::new();
    for known in KNOWN {
        let bounds = |it: tenantry::RouterBuilder| it.max_pools(POOLS).max_connections(CONNECTIONS);
        setups.push(Setup::new(known, bounds).await?);
    }
    let rounds = traffic::run(&setups).await?;
    let million = million::run_apart()?;
    let report = Report {
        million,
        setups,
        rounds,
        kept,
        bound,
        clock: traffic::clock_overhead(),
    };
    report.print();
    report.write()
}
