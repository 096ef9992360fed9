//! What `get` costs when a connection is at hand, beside what app servers put together today.
//!
//! The *plain* composition is moka's cache (`sync`, least recently used leaves first, with a time to idle and a
//! listener), asked with a `&str`, with a pool of deadpool-postgres per tenant, whose `get` stands under one
//! `tokio::time::timeout`. *tenantry* does the same through `TenantRouter::get`. Each call takes a connection that is
//! idle and puts it back; nothing is sent on it. The server is a script at the other end of pipes inside the process.
//!
//! - *1k*: 1,000 tenants, each with a pool and a connection, equally often.
//! - *100k*: 100,000 tenants are known and 10,000 of them have a pool and a connection, which are asked for equally
//!   often (*uniform*), or by Zipf's law (*zipf*).
//! - Each by one thread and by two at once; the figure is the worse of both.
//! - *hot*: 8 tasks on two workers want one tenant, whose 4 connections are open.
//! - *handle*: `TenantHandle::get` beside deadpool's own `get`, with neither cache nor limit; on one tenant and on
//!   1,000, by one thread. The figure is the worse of both.
//! - *select1*: `SELECT 1` on a real Postgres, `get` and giving back included, beside a bare client on one connection, and
//!   beside one through a PgBouncer in front of the same Postgres.
//! - *observed*: `get` with a recorder of metrics and a subscriber of tracing that drop everything, beside `get` without,
//!   on 1,000 tenants by one thread, each in a process of its own: one subscriber *wants* none of it, one *takes* every
//!   span. The figure is the worse of both.
//! - *allocations*: how often memory is asked for by a call, which is counted.
//!
//! Ids have 36 letters and are drawn before. Both take turns of 20,000 calls per caller, 61 rounds each; a figure is
//! the median of the rounds' ratios.
//!
//! `cargo bench --bench hot_path`, in about a minute. Prints a table, and writes `target/figures/hot_path.json`.

#[path = "support/backend.rs"]
mod backend;
#[path = "support/chance.rs"]
mod chance;
#[path = "hot_path/ids.rs"]
mod ids;
#[path = "support/memory.rs"]
mod memory;
#[path = "hot_path/observed.rs"]
mod observed;
#[path = "hot_path/report.rs"]
mod report;
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
use ids::Draws;
use memory::Counted;
use report::Report;
use rounds::{Callers, Manners, compare};
use subjects::{Deadpool, Handles, Ours, Plain, Subject, fill, pools, router};

/// Callers by threads, each way.
const THREADS: [usize; 2] = [1, 2];
/// Tenants that have a pool, those that are known, and the figures that are measured on them.
const MANY: [(usize, usize, &[&str]); 2] = [
    (1_000, 1_000, &["get_over_plain_1k"]),
    (
        10_000,
        100_000,
        &["get_over_plain_100k_uniform", "get_over_plain_100k_zipf"],
    ),
];
/// The figure of handles, and the tenants on whom it is measured.
const HANDLE: &str = "handle_over_deadpool";
const HANDLES: [usize; 2] = [1, 1_000];
/// The figures that are measured on one tenant, and how its tasks behave.
const HOT: [(&str, Manners); 3] = [
    ("get_over_plain_hot_8_tasks", Manners::Straight),
    ("get_over_plain_hot_8_tasks", Manners::Between),
    ("get_over_plain_hot_8_tasks_waiting", Manners::Holding),
];
/// The figure of `get` with everything on that looks at it.
const OBSERVED: &str = "observed_get_over_plain_get";
/// Tasks on one tenant.
const TASKS: usize = 8;
/// Times that allocations are counted, and calls each time. What the sweep allocates meanwhile is not the calls'.
const COUNTS: usize = 32;
const CALLS: usize = 1000;

fn main() -> Result<(), BoxError> {
    if observed::serve()? {
        return Ok(());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let word = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let word = word.unwrap_or_default();
    let is_wanted = |name: &&str| name.contains(&word);
    let mut report = Report::default();
    for (tenants, known, names) in MANY {
        let names: Vec<_> = names.iter().copied().filter(is_wanted).collect();
        if !names.is_empty() {
            of_many(&runtime, &mut report, tenants, known, &names)?;
        }
    }
    for tenants in HANDLES {
        if is_wanted(&HANDLE) {
            of_handles(&runtime, &mut report, tenants)?;
        }
    }
    if HOT.iter().any(|(name, ..)| is_wanted(name)) {
        of_one(runtime.handle(), &mut report)?;
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
    report.print();
    report.write()
}

/// Measures each of `names` on so many tenants with a pool, of so many known.
fn of_many(
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
    let (plain, ours) = (Arc::new(Plain::new(&pools)), Arc::new(Ours(ours)));
    for name in names {
        let draws = Arc::new(if name.ends_with("zipf") {
            Draws::zipf(tenants)
        } else {
            Draws::uniform(tenants)
        });
        for threads in THREADS {
            let callers = Callers::Threads(threads);
            let compared = compare(runtime.handle(), callers, &draws, &plain, &ours)?;
            let how = format!("{threads} threads");
            report.add(name, &how, compared);
        }
        if name.ends_with("1k") {
            report.allocations = allocations(runtime.handle(), &draws, &*ours);
        }
    }
    Ok(())
}

/// Measures all that concerns one tenant.
fn of_one(runtime: &Handle, report: &mut Report) -> Result<(), BoxError> {
    let backend = Backend::default();
    let (plain, ours) = runtime.block_on(async {
        let ours = Ours(router(&backend, 1, 1).await?);
        let plain = Plain::new(&pools(&backend, 1).await?);
        fill(&ours).await;
        fill(&plain).await;
        Ok::<_, BoxError>((Arc::new(plain), Arc::new(ours)))
    })?;
    let draws = Arc::new(Draws::uniform(1));
    for (name, manners) in HOT {
        let callers = Callers::Tasks(TASKS, manners);
        let compared = compare(runtime, callers, &draws, &plain, &ours)?;
        report.add(name, &format!("{manners:?}"), compared);
    }
    Ok(())
}

/// Measures handles of so many tenants.
fn of_handles(
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
    let draws = Arc::new(Draws::uniform(tenants));
    let callers = Callers::Threads(1);
    let compared = compare(runtime.handle(), callers, &draws, &pools, &handles)?;
    report.add(HANDLE, &format!("{tenants} tenants"), compared);
    Ok(())
}

/// How often a call asks for memory: the least of several counts, as other threads ask for some too.
fn allocations(runtime: &Handle, draws: &Draws, ours: &impl Subject) -> f64 {
    let counts = (0..COUNTS).map(|_| {
        runtime.block_on(async {
            let counted = Counted::new();
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
