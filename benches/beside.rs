//! The same traffic through what servers put together today, and through a router: one table and one chart.
//!
//! `cargo bench --bench beside [-- QUERIES [TENANTS [POOLS]]]`: 12,000, 10,000 and 500 unless told otherwise, in some
//! two minutes. Needs a Postgres server and a PgBouncer on the machine, as the emulator does. Linux only. Prints a
//! table, and writes `beside.json` and `beside.svg` to `target/figures`.
//!
//! Tenants are asked for by Zipf's law (exponent 1), each time with one query, by 64 callers at once. Each way has a
//! process of its own, which begins without a connection:
//!
//! - *sqlx* and *deadpool*: a `HashMap` with a plain pool of up to 4 connections for each tenant, made when the tenant
//!   is asked for first. The map drops the pool that was not used for longest when there are 500. Nothing bounds the
//!   connections of all pools together.
//! - *tenantry*: a router with `max_pools` of 500 and pools of up to 4, but `max_connections` of 564 in all: one for
//!   each pool and each caller.
//! - *PgBouncer*: each query has a connection of its own to PgBouncer, by a socket in a folder. It keeps up to 564 to
//!   Postgres, in transaction mode, and serves all tenants by one wildcard. It is the last, as it keeps them.
//!
//! The server is one real Postgres for all, because the machine could not hold 10,000. Each tenant has a role of its
//! own there, so that no connection serves two tenants, but they share a database: PgBouncer bounds connections only
//! within one. There is no TLS and no password. A *front* before Postgres plays Neon: a tenant sleeps while no session
//! is open to it, and the first login wakes it, which takes 100 ms, about a third of Neon's usual. (A suspend comes
//! later at Neon.) A wake thus costs the same by all ways.
//! The rest of a login is mostly Postgres's start of a process, which takes this machine some milliseconds of its
//! processors' time, so that *queries/s* say mostly how often each way logs in.
//!
//! *Wakes* and *logins* are counted by the front, and *sessions* are the most that were open at once. *Memory* is what
//! the way's process has in memory at the end, and had not before it had a connection; PgBouncer's own included.
//! *Errors* are queries that failed; none is tried again here.
//!
//! PgDog and Supavisor are not measured: they were not on the machine for which this was written.

#[path = "support/chart.rs"]
mod chart;
#[path = "beside/front.rs"]
mod front;
#[path = "beside/place.rs"]
mod place;
#[path = "beside/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;
#[allow(dead_code, unused_imports, reason = "no compute is asked here")]
mod support;
#[path = "beside/traffic.rs"]
mod traffic;
#[path = "beside/ways.rs"]
mod ways;

use std::env;

use tenantry::BoxError;
use tokio::task::spawn_blocking;

use place::Place;
use report::{Outcome, Report};
use support::{Samples, run_apart};
use traffic::{Measured, Task};
use ways::WAYS;

/// Queries, tenants, and pools, unless the arguments say otherwise.
const QUERIES: usize = 12_000;
const TENANTS: usize = 10_000;
const POOLS: usize = 500;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let words: Vec<_> = env::args().skip(1).collect();
    if let Some(task) = words.iter().find(|word| word.starts_with('{')) {
        let measured = traffic::run(serde_json::from_str(task)?).await?;
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let mut numbers = words.iter().filter_map(|word| word.parse().ok());
    let queries = numbers.next().unwrap_or(QUERIES);
    let tenants = numbers.next().unwrap_or(TENANTS);
    let pools = numbers.next().unwrap_or(POOLS);
    let place = Place::new(tenants, pools).await?;
    let bar = support::progress(WAYS.len());
    let mut outcomes = Vec::new();
    for way in WAYS {
        let task = place.task(way, queries);
        outcomes.push(measure(way, &place, &task).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report(outcomes);
    report.print();
    report.write()
}

/// Measures one way in a process of its own, while this one plays Neon.
async fn measure(way: &'static str, place: &Place, task: &Task) -> Result<Outcome, BoxError> {
    let before = place.front.counts();
    let task = serde_json::to_string(task)?;
    let measured = spawn_blocking(move || run_apart(&[&task]).map_err(|err| err.to_string()));
    let measured: Measured = serde_json::from_value(measured.await??)?;
    let counts = place.front.counts();
    let mut answered = Samples::default();
    answered.extend(measured.answered);
    Ok(Outcome {
        way,
        took: measured.took,
        answered,
        errors: measured.errors,
        memory: measured.memory,
        wakes: counts.wakes - before.wakes,
        logins: counts.logins - before.logins,
        sessions: place.front.take_most_sessions(),
    })
}
