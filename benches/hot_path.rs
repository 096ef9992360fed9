//! The cost of `get` when a connection is at hand, beside what app servers put together today.
//!
//! The *plain* composition is moka's cache (`sync`, least recently used leaves first, with a time to idle and a
//! listener), asked with a `&str`, with a pool of deadpool-postgres per tenant, whose `get` stands under one
//! `tokio::time::timeout`. *tenantry* does the same through `TenantRouter::get`. Each call takes a connection that is
//! idle and puts it back; nothing is sent on it. The server is a script at the other end of pipes inside the process.
//!
//! The *floor* is the least that finds a connection by an id and lends it: a concurrent map, one lock and one pop, one
//! `Arc`, one clock; and one lock and one push. It has no limits, no deadline, no order of leaving, and never waits.
//!
//! - *1k*: 1,000 tenants, each with a pool and a connection, equally often.
//! - *100k*: 100,000 tenants are known and 10,000 of them have a pool and a connection, which are asked for equally
//!   often (*uniform*), or by Zipf's law (*zipf*).
//! - Each by one thread and by two at once; the figure is the worse of both.
//! - *hot*: 8 tasks on two workers want one tenant, whose 4 connections are open. They call one after the other, or
//!   yield after each call (the figure is the worse of both), or yield while they hold a connection, so that each call
//!   waits.
//! - *handle*: `TenantHandle::get` beside deadpool's own `get`, with neither cache nor limit; on one tenant and on
//!   1,000, by one thread. The figure is the worse of both.
//! - *select1*: `SELECT 1` on a real Postgres, `get` and giving back included, beside a bare client on one connection,
//!   and beside one through a PgBouncer in front of the same Postgres.
//! - *rtt*: `SELECT 1`, a `read` and a `transaction` of one statement over a network of 1, 10 and 50 ms, beside a bare
//!   client; the round trips of each are counted (`round_trips_…`).
//! - *observed*: `get` with a recorder of metrics and a subscriber of tracing that drop everything, beside `get`
//!   without, on 1,000 tenants by one thread, each in a process of its own: one subscriber *wants* none of it, one
//!   *takes* every span. The figure is the worse of both.
//! - *allocations*: how often memory is asked for by a call, which is counted.
//! - *instructions*: of one call of each kind, as callgrind counts them, if there is one. `-- instructions --check`
//!   fails if they are more than 5 % above those in `hot_path/instructions.json`; `-- instructions --keep` writes that
//!   file.
//!
//! Ids have 36 letters and are drawn before. Both take turns of 20,000 calls per caller, 61 rounds each; a figure is
//! the median of the rounds' ratios.
//!
//! `cargo bench --bench hot_path [-- WORD]`, in about three minutes; with a word only the figures that have it in their
//! names. Prints a table, and writes `target/figures/hot_path.json`.

#[path = "support/backend.rs"]
mod backend;
#[path = "hot_path/ids.rs"]
mod ids;
#[path = "hot_path/instructions.rs"]
mod instructions;
#[path = "support/memory.rs"]
mod memory;
#[path = "hot_path/network.rs"]
mod network;
#[path = "hot_path/observed.rs"]
mod observed;
#[path = "hot_path/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;
#[path = "hot_path/rounds.rs"]
mod rounds;
#[path = "hot_path/select1.rs"]
mod select1;
#[path = "hot_path/subjects.rs"]
mod subjects;
#[allow(dead_code, unused_imports, reason = "times are taken in its own way")]
mod support;

use std::{hint::black_box, sync::Arc};

use tenantry::BoxError;
use tokio::runtime::{Builder, Handle};

use backend::Backend;
use ids::DrawnIds;
use memory::AllocationCounter;
use report::Report;
use rounds::{Callers, Yielding, compare};
use subjects::{
    ConnectionSource, Deadpool, Floor, Handles, PoolCache, TenantryRouter, fill, pools, router,
};

/// Callers by threads, each way.
const THREADS: [usize; 2] = [1, 2];
/// Tenants that have a pool, those that are known, and the figures that are measured on them.
const MANY: [(usize, usize, &[&str]); 2] = [
    (1_000, 1_000, &["get_over_plain_1k", "get_over_floor_1k"]),
    (
        10_000,
        100_000,
        &[
            "get_over_plain_100k_uniform",
            "get_over_plain_100k_zipf",
            "get_over_floor_100k",
        ],
    ),
];
/// The figure of handles, and the number of tenants that it is measured on.
const HANDLE: &str = "handle_over_deadpool";
const HANDLES: [usize; 2] = [1, 1_000];
/// The figures that are measured on one tenant, and how its tasks behave.
const HOT: [(&str, Yielding); 3] = [
    ("hot_one_tenant_8_tasks_over_plain", Yielding::Straight),
    ("hot_one_tenant_8_tasks_over_plain", Yielding::Between),
    ("get_over_plain_hot_8_tasks_waiting", Yielding::Holding),
];
/// The figure of those that never wait, beside the floor.
const HOT_FLOOR: &str = "hot_one_tenant_8_tasks_over_floor";
/// The figure of `get` with everything on that looks at it.
const OBSERVED: &str = "observed_get_over_plain_get";
/// Tasks on one tenant.
const TASKS: usize = 8;
/// Times that allocations are counted, and calls each time. What the sweep allocates at the same time is not the
/// calls'.
const COUNTS: usize = 32;
const CALLS: usize = 1000;

fn main() -> Result<(), BoxError> {
    if observed::serve()? || instructions::serve()? {
        return Ok(());
    }
    let flag = |name: &str| std::env::args().any(|word| word == name);
    if flag("--check") || flag("--keep") {
        return count_instructions(flag("--keep"));
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let word = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let word = word.unwrap_or_default();
    let is_wanted = |name: &&str| name.contains(&word);
    let mut report = Report::default();
    // First, as `select1` stays on one processor, and so does all that comes after it.
    if ["rtt", "round_trips"].iter().any(is_wanted) {
        let measured = network::run()?;
        for (name, compared) in measured.compared {
            report.add(&name, "one connection", compared);
        }
        report.count(measured.counted);
    }
    for (tenants, known, names) in MANY {
        let names: Vec<_> = names.iter().copied().filter(is_wanted).collect();
        if !names.is_empty() {
            measure_many_tenants(&runtime, &mut report, tenants, known, &names)?;
        }
    }
    for tenants in HANDLES {
        if is_wanted(&HANDLE) {
            measure_handles(&runtime, &mut report, tenants)?;
        }
    }
    if HOT.iter().any(|(name, ..)| is_wanted(name)) || is_wanted(&HOT_FLOOR) {
        measure_one_tenant(runtime.handle(), &mut report)?;
    }
    if is_wanted(&"select1") {
        let (bare, pgbouncer) = select1::run()?;
        report.add("select1_over_bare", "one connection", bare);
        report.add("select1_over_pgbouncer", "one connection", pgbouncer);
    }
    if is_wanted(&OBSERVED) {
        for way in ["wants", "takes"] {
            report.add(OBSERVED, way, observed::compare(way)?);
        }
    }
    if is_wanted(&"instructions") {
        report.count(instructions::count()?.into_iter().flatten());
    }
    report.print();
    report.write()
}

/// Counts the instructions, and keeps them or compares them with those that are kept.
fn count_instructions(keep: bool) -> Result<(), BoxError> {
    match instructions::count()? {
        Some(counts) if keep => instructions::keep(&counts),
        Some(counts) => instructions::check(&counts),
        None => Ok(()),
    }
}

/// Measures each of `names` on so many tenants with a pool, of so many known.
fn measure_many_tenants(
    runtime: &tokio::runtime::Runtime,
    report: &mut Report,
    tenants: usize,
    known: usize,
    names: &[&str],
) -> Result<(), BoxError> {
    let backend = Backend::default();
    let (ours, pools) = runtime.block_on(async {
        let router = router(&backend, tenants, known).await?;
        Ok::<_, BoxError>((router, pools(&backend, tenants).await?))
    })?;
    let (plain, ours) = (
        Arc::new(PoolCache::new(&pools)),
        Arc::new(TenantryRouter(ours)),
    );
    let floor = Arc::new(Floor::new(tenants));
    let uniform = ("uniform", Arc::new(DrawnIds::uniform(tenants)));
    let zipf = ("zipf", Arc::new(DrawnIds::zipf(tenants)));
    for &name in names {
        let all = match name {
            "get_over_floor_100k" => vec![&uniform, &zipf],
            _ if name.ends_with("zipf") => vec![&zipf],
            _ => vec![&uniform],
        };
        let ways = THREADS
            .iter()
            .flat_map(|it| all.iter().map(move |all| (*it, *all)));
        for (threads, (law, draws)) in ways {
            let (callers, runtime) = (Callers::Threads(threads), runtime.handle());
            let compared = if name.contains("floor") {
                compare(runtime, callers, draws, &floor, &ours)?
            } else {
                compare(runtime, callers, draws, &plain, &ours)?
            };
            report.add(name, &format!("{threads} threads, {law}"), compared);
        }
        if name == "get_over_plain_1k" {
            let counted = allocations(runtime.handle(), &uniform.1, &*ours);
            report.count([("get_allocations".to_owned(), counted)]);
        }
    }
    Ok(())
}

/// Measures all that concerns one tenant.
fn measure_one_tenant(runtime: &Handle, report: &mut Report) -> Result<(), BoxError> {
    let backend = Backend::default();
    let (plain, ours) = runtime.block_on(async {
        let ours = TenantryRouter(router(&backend, 1, 1).await?);
        let plain = PoolCache::new(&pools(&backend, 1).await?);
        fill(&ours).await;
        fill(&plain).await;
        Ok::<_, BoxError>((Arc::new(plain), Arc::new(ours)))
    })?;
    let floor = Arc::new(Floor::of_one());
    let draws = Arc::new(DrawnIds::uniform(1));
    for (name, manners) in HOT {
        let callers = Callers::Tasks(TASKS, manners);
        let compared = compare(runtime, callers, &draws, &plain, &ours)?;
        report.add(name, &format!("{manners:?}"), compared);
        if !matches!(manners, Yielding::Holding) {
            let compared = compare(runtime, callers, &draws, &floor, &ours)?;
            report.add(HOT_FLOOR, &format!("{manners:?}"), compared);
        }
    }
    Ok(())
}

/// Measures handles of so many tenants.
fn measure_handles(
    runtime: &tokio::runtime::Runtime,
    report: &mut Report,
    tenants: usize,
) -> Result<(), BoxError> {
    let backend = Backend::default();
    let (ours, pools) = runtime.block_on(async {
        let router = router(&backend, tenants, tenants).await?;
        Ok::<_, BoxError>((router, pools(&backend, tenants).await?))
    })?;
    let handles = Handles::new(&ours, tenants)?;
    let (pools, handles) = (Arc::new(Deadpool(pools)), Arc::new(handles));
    let draws = Arc::new(DrawnIds::uniform(tenants));
    let callers = Callers::Threads(1);
    let compared = compare(runtime.handle(), callers, &draws, &pools, &handles)?;
    report.add(HANDLE, &format!("{tenants} tenants"), compared);
    Ok(())
}

/// The number of times that a call asks for memory: the least of several counts, as other threads ask for some too.
fn allocations(runtime: &Handle, draws: &DrawnIds, ours: &impl ConnectionSource) -> f64 {
    let counts = (0..COUNTS).map(|_| {
        runtime.block_on(async {
            let counted = AllocationCounter::new();
            for (tenant, id) in draws.calls(0, CALLS) {
                drop(black_box(ours.get(tenant, id).await));
            }
            counted.allocations()
        })
    });
    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    let per_call = counts.min().unwrap_or(usize::MAX) as f64 / CALLS as f64;
    per_call
}
