//! The time and the calls that a database takes: the first access to a tenant that has none, and a thousand tenants
//! made ready.
//!
//! The catalog is a Postgres of its own, through a socket. The emulator answers each call of the API after 100 ms. Neon
//! starts the compute of a new project at once. Here the first connection does: the emulator takes longer for it,
//! mostly to copy files, than a call takes, so that one question for the operations would not find them finished; and a
//! thousand computes awake are more memory than this machine has.
//!
//! - A *first access* is `get` and a query on a tenant that nobody has seen, with the default settings. The *floor* is
//!   the least that any code needs for it, without a catalog: a creation, one question for the operations, which finds
//!   them finished, a socket, `connect_raw`, a query. They take turns, and are compared with the start of Postgres and
//!   without it.
//! - The *fleet* is 1,000 tenants that an operator provisions, 32 at a time, with no prepare hook and the default limit
//!   of 700 calls per minute. Each takes two calls, which is counted where they arrive, with Neon's limits held against
//!   them.
//! - *Lookups* are what each router asks the catalog for when it does not know a tenant: one statement.
//!
//! `cargo bench --bench provisioning [-- TENANTS]`, of which there are 1,000 unless told otherwise, and a tenth as many
//! first accesses, in some five minutes. With few of them the limit's allowance for what comes at once is much of the
//! whole, and the throughput more than the limit. Prints tables, and writes `target/figures/provisioning.json`.

#[path = "provisioning/baseline.rs"]
mod baseline;
#[path = "provisioning/counting_catalog.rs"]
mod counting_catalog;
#[path = "provisioning/first_access.rs"]
mod first_access;
#[path = "provisioning/fleet.rs"]
mod fleet;
#[path = "provisioning/lookups.rs"]
mod lookups;
#[path = "provisioning/report.rs"]
mod report;
#[path = "provisioning/setup.rs"]
mod setup;
mod support;

use tenantry::BoxError;

use report::Report;

/// Tenants that are provisioned.
const TENANTS: usize = 1000;
/// First accesses that are measured, as a part of the tenants.
const FIRST_ACCESSES: usize = 10;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut words = std::env::args().skip(1);
    let tenants = words.find_map(|word| word.parse().ok()).unwrap_or(TENANTS);
    let first_access = first_access::run(tenants / FIRST_ACCESSES).await?;
    let (fleet, lookups) = fleet::run(tenants).await?;
    let report = Report {
        first_access,
        fleet,
        lookups,
    };
    report.print();
    report.write()
}
