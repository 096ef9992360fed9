//! A million tenants that are known: their memory, the time of their preload, and that of a call among them.
//!
//! The catalog makes each record from its number, because a million of them would be more than what is measured. The
//! backend is a script behind pipes. Everything runs on one thread, and counting its allocations slows it a little.
//!
//! - *Memory* is what the process has in memory after the first preload, and had not before it.
//! - *Hits*: both routers, of a million and of a thousand, get connections of the same 400 tenants, which are open.
//! - *Misses*: both get connections of 1,000 tenants of which none has a pool, drawn from all that the router knows.
//!   Each opens a connection and evicts a pool.

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, Provisioner, TenantId, TenantRouter,
    catalog::{AfterWrite, Changes, Lease, Leased, Placement, Record, State},
};
use tokio::time::{Instant, sleep};

use crate::{
    backend::Backend,
    bound::process_cpu_time,
    catalog::{UnusedControlPlane, endpoint},
    rng::Rng,
    support::{self, median, resident, write_figures},
};

/// Tenants that are known, and those of the router beside it.
pub(crate) const MANY: usize = 1_000_000;
const FEW: usize = 1_000;
/// Preloads that are measured.
const PRELOADS: usize = 3;
/// Records of a page when nothing is done with them.
const PAGE: usize = 1000;
/// Pools of each router, and its connections: those of an evicted pool take a moment to close.
const POOLS: u64 = 500;
const CONNECTIONS: usize = 600;
/// Tenants that keep their pools while hits are measured, and how often all of them are asked for in a turn.
const HOT: usize = 400;
const REPEATS: usize = 25;
/// Rounds in which both routers take a turn, and those before that are not counted.
const ROUNDS: usize = 31;
const WARM_UP: usize = 2;
/// Enough for the tasks of a router that was closed to end.
const SETTLE: Duration = Duration::from_millis(100);
/// Longer than a run takes.
const LONG: Duration = Duration::from_secs(3600);

/// The measurements.
pub(crate) struct Million {
    known: usize,
    resident_mb: f64,
    preload: f64,
    /// The processor's time for that, which says more on a machine that is busy with something else.
    preload_cpu: f64,
    /// Of which the catalog takes so much by itself, to make the records.
    generation: f64,
    /// A hit, and a miss, over the same with a thousand tenants.
    get_over_few: f64,
    miss_over_few: f64,
}

pub(crate) async fn run(known: usize) -> Result<Million, BoxError> {
    let before = resident("self")?;
    let many = router(known)?;
    let mut preloads = vec![preload(&many, known).await?];
    let resident = resident("self")? - before;
    while preloads.len() < PRELOADS {
        let another = router(known)?;
        preloads.push(preload(&another, known).await?);
        another.close().await;
        drop(another);
        sleep(SETTLE).await;
    }
    let few = router(FEW)?;
    preload(&few, FEW).await?;
    let hot = |_: u64| -> Vec<String> { (0..HOT * REPEATS).map(|call| id(call % HOT)).collect() };
    let hits = compare((&few, &hot), (&many, &hot)).await?;
    // One after the other, each tenant has lost its pool when it comes again.
    let all_of_few = |_: u64| -> Vec<String> { (0..FEW).map(id).collect() };
    let some_of_many = move |round: u64| -> Vec<String> {
        let mut rng = Rng(round);
        (0..FEW).map(|_| id(rng.below(known))).collect()
    };
    let misses = compare((&few, &all_of_few), (&many, &some_of_many)).await?;
    #[allow(clippy::cast_precision_loss, reason = "bytes of this machine's memory")]
    let resident_mb = resident as f64 / 1e6;
    Ok(Million {
        known,
        resident_mb,
        preload: median(preloads.iter().map(|it| it.0)),
        preload_cpu: median(preloads.iter().map(|it| it.1)),
        generation: generation(known).await?,
        get_over_few: hits,
        miss_over_few: misses,
    })
}

/// The figures, from a process of its own.
pub(crate) fn run_apart() -> Result<Vec<(String, f64)>, BoxError> {
    let figures = support::run_apart(&["million"])?;
    Ok(serde_json::from_value::<BTreeMap<_, _>>(figures)?
        .into_iter()
        .collect())
}

impl Million {
    /// Prints the measurements, the figures as JSON last, and writes these.
    pub(crate) fn report(&self) -> Result<(), BoxError> {
        let Self {
            known,
            resident_mb,
            preload,
            preload_cpu,
            generation,
            ..
        } = self;
        println!(
            "\n{known} tenants are known: {resident_mb:.0} MB in memory. Preloading them takes"
        );
        println!(
            "{preload:.2} s ({preload_cpu:.2} s of the processor's time), and making their records alone {generation:.2} s."
        );
        println!(
            "Beside {FEW} tenants, a hit takes {:.2} times as long, and a miss {:.2} times.",
            self.get_over_few, self.miss_over_few
        );
        let figures: BTreeMap<_, _> = self.figures().into();
        println!("\n{}", serde_json::json!(figures));
        write_figures("scale_million", &self.figures())
    }

    /// The names say a million, also when fewer were asked for to try the benchmark.
    fn figures(&self) -> [(&'static str, f64); 6] {
        [
            ("million_tenants_mb", self.resident_mb),
            ("million_preload_s", self.preload),
            ("million_preload_cpu_s", self.preload_cpu),
            ("million_generation_cpu_s", self.generation),
            ("million_get_over_1k", self.get_over_few),
            ("million_miss_over_1k", self.miss_over_few),
        ]
    }
}

fn router(known: usize) -> Result<TenantRouter, BoxError> {
    let provisioner = Provisioner::new(GeneratedCatalog(known), UnusedControlPlane, "bench");
    let builder = Backend::default().configure(TenantRouter::provisioning(provisioner));
    let builder = builder.known_tenants(known as u64).max_pools(POOLS);
    let builder = builder.max_connections(CONNECTIONS);
    Ok(builder.idle_after(LONG).verify_after(LONG).build()?)
}

/// Seconds in which a router gets to know all tenants, and those of the processor.
async fn preload(router: &TenantRouter, known: usize) -> Result<(f64, f64), BoxError> {
    let (start, cpu) = (Instant::now(), process_cpu_time());
    let remembered = router.preload().await?;
    let (took, cpu) = (start.elapsed(), process_cpu_time().saturating_sub(cpu));
    if remembered != known as u64 {
        return Err(format!("{remembered} of {known} tenants are remembered").into());
    }
    Ok((took.as_secs_f64(), cpu.as_secs_f64()))
}

/// The processor's seconds that the catalog takes for all pages.
async fn generation(known: usize) -> Result<f64, BoxError> {
    let catalog = GeneratedCatalog(known);
    let cpu = process_cpu_time();
    let mut after = None;
    loop {
        let page = black_box(catalog.list(after.as_ref(), PAGE).await?);
        let Some(last) = page.last() else { break };
        after = Some(last.tenant.clone());
    }
    let cpu = process_cpu_time().saturating_sub(cpu);
    Ok(cpu.as_secs_f64())
}

/// A router, and the ids of each round.
type Side<'a> = (&'a TenantRouter, &'a dyn Fn(u64) -> Vec<String>);

/// The time of the second over that of the first, at the median of all rounds.
async fn compare(few: Side<'_>, many: Side<'_>) -> Result<f64, BoxError> {
    let mut ratios = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let number = round as u64;
        let (a, b) = if round % 2 == 0 {
            let a = turn(few, number).await?;
            (a, turn(many, number).await?)
        } else {
            let b = turn(many, number).await?;
            (turn(few, number).await?, b)
        };
        if round >= WARM_UP {
            ratios.push(b / a);
        }
    }
    Ok(median(ratios.into_iter()))
}

async fn turn((router, ids): Side<'_>, round: u64) -> Result<f64, BoxError> {
    let ids = ids(round);
    let start = Instant::now();
    for id in &ids {
        drop(router.get(id).await?);
    }
    Ok(start.elapsed().as_secs_f64())
}

/// The id of a tenant, 36 characters in the order of the numbers.
fn id(number: usize) -> String {
    format!("{number:08x}-0000-4000-8000-{number:012x}")
}

/// So many tenants, each made when it is asked for.
struct GeneratedCatalog(usize);

impl GeneratedCatalog {
    /// The number of a tenant, if there is such a one.
    fn number(&self, tenant: &TenantId) -> Option<usize> {
        let number = tenant.as_str().get(..8)?;
        let number = usize::from_str_radix(number, 16).ok()?;
        (number < self.0 && id(number) == tenant.as_str()).then_some(number)
    }
}

fn record(number: usize) -> Result<Record, BoxError> {
    let mut record = Record::new(TenantId::parse(&id(number))?, State::Ready);
    record.placement = Some(Placement::new(record.tenant.as_str()));
    record.endpoint = Some(endpoint(record.tenant.as_str()));
    Ok(record)
}

fn read_only<T>() -> Result<T, BoxError> {
    Err("nothing is written here".into())
}

impl Lookup for GeneratedCatalog {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        Ok(self.find(tenant).await?.and_then(Record::into_served))
    }
}

impl Catalog for GeneratedCatalog {
    fn bind(&self, _: &Namespace, _: bool) -> Result<(), BoxError> {
        Ok(())
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.number(tenant).map(record).transpose()
    }

    async fn lease(&self, _: &TenantId, _: &str, _: Duration) -> Result<Leased, BoxError> {
        read_only()
    }

    async fn write(&self, _: &Lease, _: &Record, _: AfterWrite) -> Result<bool, BoxError> {
        read_only()
    }

    async fn release(&self, _: &Lease) -> Result<(), BoxError> {
        read_only()
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        let first = after.map_or(Some(0), |it| self.number(it).map(|it| it + 1));
        let first = first.ok_or("there is no such tenant")?;
        (first..self.0.min(first + limit)).map(record).collect()
    }

    async fn changes(&self, _: Option<u64>, _: usize) -> Result<Changes, BoxError> {
        let mut none = Changes::default();
        none.version = 1;
        Ok(none)
    }
}
