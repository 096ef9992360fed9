//! From `get` to the first row on a suspended tenant, beside the least that bare code needs, and beside a plain pool.
//!
//! All three go to the same host of the same compute, through the same proxy, with the same TLS settings, in turns in
//! one run. Each round: suspend, wait until everybody has noticed, then one of the three asks for one row.
//!
//! `cargo bench --bench cold_resume [-- SAMPLES]`. Prints a table and writes `target/figures/cold_resume.json`.

mod support;

use std::time::Duration;

use tokio::time::Instant;

use deadpool_postgres::Pool;
use tenantry::{
    BoxError, Neon, Provisioner, TenantRouter, deadpool_postgres, emulator::Emulator,
    records::Memory,
};

use support::{QUERY, Samples, Table, Target, write_figures};

/// What a cold start takes at Neon, without Postgres's own start.
const WAKE_DELAY: Duration = Duration::from_millis(350);
const SAMPLES: usize = 200;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let samples = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(SAMPLES);
    let emulator = Emulator::builder().wake_delay(WAKE_DELAY).start().await?;
    let contestants = Contestants::of(&emulator).await?;
    let mut results = Results::default();
    let bar = support::progress(samples);
    for _ in 0..samples {
        bar.inc(1);
        results.stop.add(contestants.sleep(&emulator).await);
        results.floor.add(contestants.target.bare().await?);
        results.stop.add(contestants.sleep(&emulator).await);
        results.tenantry.add(contestants.tenantry().await?);
        results.stop.add(contestants.sleep(&emulator).await);
        match first_row(&contestants.plain).await {
            Ok(took) => results.plain.add(took),
            Err(_) => results.plain_errors += 1,
        }
    }
    bar.finish_and_clear();
    emulator.witnesses()[0]
        .wakes
        .iter()
        .for_each(|wake| results.start.add(wake.start));
    println!("\n{samples} samples each, wake delay {WAKE_DELAY:?}, pooled host, direct TLS\n");
    results.print();
    results.write()
}

/// What was measured.
#[derive(Default)]
struct Results {
    floor: Samples,
    tenantry: Samples,
    plain: Samples,
    plain_errors: u32,
    /// Postgres by itself.
    start: Samples,
    stop: Samples,
}

impl Results {
    fn print(&self) {
        let mut table = Table::new(&["", "median", "p90", "p99", "over floor"]);
        let rows = [
            ("floor: connect_raw + query", &self.floor),
            ("tenantry: get + query", &self.tenantry),
            ("plain deadpool-postgres", &self.plain),
        ];
        for (name, it) in rows {
            let over = format!("{:.3}", it.at(0.5) / self.floor.at(0.5));
            table.row(&[name, &it.ms(0.5), &it.ms(0.9), &it.ms(0.99), &over]);
        }
        table.print();
        println!("\nplain pool: {} errors", self.plain_errors);
        println!(
            "Postgres itself, at the median: start {}, stop {}",
            self.start.ms(0.5),
            self.stop.ms(0.5)
        );
    }

    fn write(&self) -> Result<(), BoxError> {
        let figures = [
            (
                "resume_median_over_floor",
                self.tenantry.at(0.5) / self.floor.at(0.5),
            ),
            (
                "resume_p90_over_floor",
                self.tenantry.at(0.9) / self.floor.at(0.9),
            ),
            ("resume_median_ms", self.tenantry.at(0.5)),
            ("floor_median_ms", self.floor.at(0.5)),
            ("plain_pool_median_ms", self.plain.at(0.5)),
            ("plain_pool_errors", f64::from(self.plain_errors)),
            ("compute_start_median_ms", self.start.at(0.5)),
            ("compute_stop_median_ms", self.stop.at(0.5)),
        ];
        write_figures("cold_resume", &figures)
    }
}

/// Who is compared.
struct Contestants {
    target: Target,
    router: TenantRouter,
    plain: Pool,
}

impl Contestants {
    /// One tenant, created by the router, and how the others reach it.
    async fn of(emulator: &Emulator) -> Result<Self, BoxError> {
        let neon = Neon::builder(emulator.api_key())
            .base_url(emulator.api_url())
            .build()?;
        let provisioner = Provisioner::new(Memory::new(), neon.clone(), "bench");
        let router = TenantRouter::provisioning(provisioner)
            .resolve(emulator.resolver())
            .root_certificate(emulator.root_certificate())
            .build()?;
        drop(router.get("acme").await?);
        let target = Target::of(emulator, &neon, &emulator.witnesses()[0], true).await?;
        let plain = target.plain_pool()?;
        Ok(Self {
            target,
            router,
            plain,
        })
    }

    /// Suspends the compute, and waits until all have seen their sockets close: what is compared is the wake.
    async fn sleep(&self, emulator: &Emulator) -> Duration {
        let start = Instant::now();
        emulator.suspend_all().await;
        let took = start.elapsed();
        while self.router.status().connections > 0 {
            tokio::task::yield_now().await;
        }
        took
    }

    async fn tenantry(&self) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let client = self.router.get("acme").await?;
        client.query_typed(QUERY, &[]).await?;
        Ok(start.elapsed())
    }
}

async fn first_row(pool: &Pool) -> Result<Duration, BoxError> {
    let start = Instant::now();
    let client = pool.get().await?;
    client.query_typed(QUERY, &[]).await?;
    Ok(start.elapsed())
}
