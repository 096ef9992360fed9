//! From a caller's wish to its first row on a suspended tenant: alone and in a herd, beside what servers use today.
//!
//! Everybody goes to the pooled host of the same compute, through the same proxy, in turns in one run. The wake takes
//! 0, 350 ms (Neon's usual) or 2 s (its rare), besides Postgres's own start; TLS begins directly or is asked for first.
//! Before each turn, four connections (in a herd, sixteen) are opened and left idle, as in a server that has just been
//! busy; then the compute is suspended, and all who can notice have noticed.
//!
//! - The *floor* is the least that any code needs: a socket, `connect_raw`, a query. It has no idle connections.
//! - *tenantry* does `get` and a query, with default settings but for the pool's size.
//! - *deadpool-postgres* and *sqlx* are plain pools with what Neon's documentation advises: no minimum of connections,
//!   15 s for a connection to come, idle ones closed before Neon's five minutes (deadpool has no such setting, and no
//!   suspend here is that late). Each tests a connection in its own default way before giving it out. An error is
//!   counted, not tried again. sqlx always asks for TLS first, and prepares its statement. With a single caller both
//!   take part in every second round only.
//!
//! A *single* caller's turn is one query after a suspend. In a *herd*, 1,000 callers start at once, on a pool of 16,
//! each with one query; right after it the same 1,000 come again to the tenant that is now awake, with all connections
//! closed as a suspend leaves them, and once more with all of them open (*warm*). The floor takes its turn in these
//! rounds too. *Bystanders* are 100 callers at once on ten other tenants, in turns while
//! the router is calm and while 1,000 callers wait for a silent wake of another tenant.
//!
//! `cargo bench --bench cold_resume [-- SAMPLES]`, of which there are 500 unless told otherwise, in some 16 minutes. So
//! many rounds are for 350 ms, direct TLS and a single caller; the others have a tenth of it or less, and with fewer
//! than ten only that one setting is left, in some 20 seconds. Prints tables, and writes `cold_resume.json` and
//! `cold_resume.svg` to `target/figures`.

#[path = "cold_resume/alone.rs"]
mod alone;
#[path = "cold_resume/bystanders.rs"]
mod bystanders;
#[path = "cold_resume/chart.rs"]
mod chart;
#[path = "cold_resume/client.rs"]
mod client;
#[path = "cold_resume/curves.rs"]
mod curves;
#[path = "cold_resume/figures.rs"]
mod figures;
#[path = "cold_resume/herd.rs"]
mod herd;
#[path = "cold_resume/report.rs"]
mod report;
#[path = "cold_resume/scene.rs"]
mod scene;
#[path = "cold_resume/setting.rs"]
mod setting;
mod support;

use tenantry::BoxError;

use report::Report;

/// Rounds of a single caller at 350 ms, direct TLS.
const SAMPLES: usize = 500;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let samples = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(SAMPLES);
    let report = Report {
        alone: alone::run(samples).await?,
        herds: herd::run(samples).await?,
        bystanders: bystanders::run(samples).await?,
    };
    report.print();
    report.write()
}
