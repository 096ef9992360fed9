//! What it costs to know many tenants: of 1,000 to 300,000 that are known, 500 have a pool at a time.
//!
//! The catalog is the embedded one, filled beforehand; the server is a script behind pipes in this process, so that no
//! socket is in any figure. Everything runs on one thread. Every allocation is counted, which costs a miss a little and a
//! hit nothing.
//!
//! - *Traffic*: `get`, and the connection given back at once, for tenants by Zipf (exponent 1) over all that are known.
//!   A *hit* opens nothing. A *miss* finds the tenant in what was preloaded, opens a connection to it, and mostly evicts
//!   the least recently used pool. Each call is timed by itself, its reading of the clock included, and between them a
//!   bare `HashMap` of all that are known is asked for the same tenants, timed in the same way: both find the processor's
//!   caches as the traffic leaves them, which spoils them more with more misses. The four numbers of tenants take turns.
//! - *Growth* is how much more a call takes with 300,000 tenants than with 1,000, so that the clock's part drops out. Of
//!   each round the mean is taken, because half of all calls are for a few tenants and the median says little of the
//!   others, and without the longest twentieth: one hit in some dozens also does the cache's work, which is the closing of
//!   what was evicted, and has its place in p99. Figures are medians of 21 rounds.
//! - *Bytes* are live allocations as they were asked for, before and after, divided by how many there are: of tenants
//!   that were preloaded, with ids of 36 characters and hosts as long as Neon's; of 10,000 pools whose connections were
//!   closed for lying idle; and of the same pools with one idle connection each, without the server's part. Most of that
//!   is the buffers of tokio-postgres, so a client of its own is measured beside it.
//! - *The bound*: 500 tenants hold all connections that there may be, and 10,000 others wait for one. The process's CPU
//!   time in a second in which nothing else happens.
//!
//! `cargo bench --bench scale`, in one to two minutes. Prints tables, and writes `target/figures/scale.json`.

#[path = "support/backend.rs"]
mod backend;
#[path = "scale/bound.rs"]
mod bound;
#[path = "scale/catalog.rs"]
mod catalog;
#[path = "support/chance.rs"]
mod chance;
#[path = "scale/kept.rs"]
mod kept;
#[path = "support/memory.rs"]
mod memory;
#[path = "scale/report.rs"]
mod report;
#[path = "scale/scene.rs"]
mod scene;
#[path = "scale/spread.rs"]
mod spread;
mod support;
#[path = "scale/tenants.rs"]
mod tenants;
#[path = "scale/traffic.rs"]
mod traffic;

use tenantry::BoxError;

use report::Report;
use scene::Scene;

/// Tenants that are known.
const KNOWN: [usize; 4] = [1_000, 10_000, 100_000, 300_000];
const POOLS: u64 = 500;
/// Above the pools, because those of an evicted one take a moment to close.
const CONNECTIONS: usize = 600;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    if std::env::var_os("BOUND").is_some() {
        println!("{:?}", bound::run().await?);
        return Ok(());
    }
    let kept = kept::run().await?;
    let bound = bound::run().await?;
    let mut scenes = Vec::new();
    for known in KNOWN {
        let bounds = |it: tenantry::RouterBuilder| it.max_pools(POOLS).max_connections(CONNECTIONS);
        scenes.push(Scene::new(known, bounds).await?);
    }
    let rounds = traffic::run(&scenes).await?;
    let report = Report {
        scenes,
        rounds,
        kept,
        bound,
        clock: traffic::clock(),
    };
    report.print();
    report.write()
}
