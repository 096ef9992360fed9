//! A schema change: on the access of a sleeping tenant, and over a fleet that sleeps.
//!
//! The catalog is a Postgres of its own. Each database is a Postgres behind the emulator's proxy; a wake takes 350 ms
//! besides its start.
//!
//! - *On access*: the tenant sleeps and lacks one step. tenantry does `get` and a query with default settings: it takes
//!   the tenant's lease, wakes the database past the pooler, reads the history, locks, applies and records the step,
//!   and logs in through the pooler. *Bare* code does the same by hand without a catalog or a lease: `connect_raw` to
//!   the direct host, a lock, the versions, one transaction of the step and its row, `connect_raw` to the pooled host,
//!   a query. They take turns; `on_access_over_bare` is the ratio of the medians.
//! - *The fleet*: 300 tenants, of which a tenth is awake. A *plain loop* calls `migrate` for each of them, 8 at a time.
//!   A *campaign* without a limit of its pace does the same and lets each database sleep again. A *default campaign*
//!   migrates those that are awake, and leaves the rest to their next access. A database of the emulator's sleeps after
//!   5 s without use here, in place of Neon's 300 s: so multiply what the plain loop costs by 60. CU-seconds are the
//!   times awake that began with a wake in that phase, by the smallest compute (0.25 units).
//! - *Bystanders* call eight other tenants all the time, in turns while the campaign is paused and while it wakes two
//!   tenants a second. `bystanders_p99_over_calm` is the median of the turns' ratios. Both the callers and the Postgres
//!   processes that start share two cores.
//!
//! `cargo bench --bench schema [-- ROUNDS]`, of which there are 100 unless told otherwise, and three times as many
//! tenants, in some eight minutes. Prints tables, and writes `target/figures/schema.json`.

#[path = "schema/bare.rs"]
mod bare;
#[path = "schema/bystanders.rs"]
mod bystanders;
#[path = "schema/fleet.rs"]
mod fleet;
#[path = "schema/on_access.rs"]
mod on_access;
#[path = "schema/setup.rs"]
mod setup;
mod support;

use tenantry::BoxError;

/// Rounds of accesses.
const ROUNDS: usize = 100;
/// Tenants of the fleet, for each round of accesses.
const TENANTS_PER_ROUND: usize = 3;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut words = std::env::args().skip(1);
    let rounds = words.find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    let on_access = on_access::run(rounds).await?;
    on_access.print();
    let fleet = fleet::run(rounds * TENANTS_PER_ROUND).await?;
    fleet.print();
    let bystanders = bystanders::run().await?;
    bystanders.print();
    let figures = [on_access.figures(), fleet.figures(), bystanders.figures()].concat();
    support::write_figures("schema", &figures)
}
