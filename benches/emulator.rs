//! The emulator's cost: how much longer a resume takes than Postgres's own start, what thousands of them leave
//! behind, and the memory of many computes at once.
//!
//! `cargo bench --bench emulator [-- CYCLES]`. Prints tables and writes `target/figures/emulator.json`. Linux only.

mod support;

use std::{fs, path::Path, time::Duration};

use tenantry::{BoxError, Neon, emulator::Emulator, neon::CreateProject};
use tokio::time::Instant;

use support::{QUERY, Samples, Table, Target, write_figures};

/// Suspends and resumes of one compute.
const CYCLES: usize = 2000;
/// Those that pass before it is counted what is there: caches fill.
const WARM_UP: usize = 50;
/// Computes awake at once.
const COMPUTES: usize = 200;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut words = std::env::args().skip(1);
    let cycles = words.find_map(|word| word.parse().ok()).unwrap_or(CYCLES);
    let mut figures = measure_resumes(cycles).await?;
    figures.extend(measure_many_computes().await?);
    write_figures("emulator", &figures)
}

fn client(emulator: &Emulator) -> Result<Neon, BoxError> {
    let neon = Neon::builder(emulator.api_key()).base_url(emulator.api_url());
    Ok(neon.requests_per_minute(100_000).build()?)
}

type Figures = Vec<(&'static str, f64)>;

/// Suspends and resumes one compute, through each host in turn.
async fn measure_resumes(cycles: usize) -> Result<Figures, BoxError> {
    let emulator = Emulator::start().await?;
    let neon = client(&emulator)?;
    let created = neon.create_project(&CreateProject::new("bench")).await?;
    neon.wait_for_operations(&created.project.id).await?;
    let it = &emulator.witnesses()[0];
    let direct = Target::of(&emulator, &neon, it, false).await?;
    let pooled = Target::of(&emulator, &neon, it, true).await?;
    let mut resumes = Resumes::default();
    let bar = support::progress(cycles);
    for cycle in 0..cycles {
        bar.inc(1);
        emulator.suspend_all().await;
        if cycle == WARM_UP.min(cycles / 2) {
            resumes.before = Remaining::by(&emulator)?;
        }
        if cycle % 2 == 0 {
            resumes.direct.add(direct.connect_plain().await?);
        } else {
            resumes.pooled.add(pooled.connect_plain().await?);
        }
    }
    bar.finish_and_clear();
    emulator.suspend_all().await;
    resumes.after = Remaining::by(&emulator)?;
    for wake in &emulator.witnesses()[0].wakes {
        resumes.start.add(wake.start);
    }
    println!("\n{cycles} suspends and resumes, {QUERY} after each, no delay\n");
    resumes.print();
    Ok(resumes.figures())
}

/// The times of suspends and resumes, and what they left.
#[derive(Default)]
struct Resumes {
    start: Samples,
    direct: Samples,
    pooled: Samples,
    before: Remaining,
    after: Remaining,
}

impl Resumes {
    fn print(&self) {
        let mut table = Table::new(&["", "median", "p90", "p99"]);
        for (name, it) in [
            ("Postgres and PgBouncer start", &self.start),
            ("first row, direct", &self.direct),
            ("first row, pooled", &self.pooled),
        ] {
            table.row(&[name, &it.ms(0.5), &it.ms(0.9), &it.ms(0.99)]);
        }
        table.print();
        let Self { before, after, .. } = self;
        println!("\nafter {WARM_UP} cycles: {before:?}\nat the end:      {after:?}");
    }

    fn figures(&self) -> Figures {
        let gained = |of: fn(&Remaining) -> usize| count(of(&self.after)) - count(of(&self.before));
        let start = self.start.at(0.5);
        vec![
            ("start_median_ms", start),
            ("direct_over_start_ms", self.direct.at(0.5) - start),
            ("pooled_over_start_ms", self.pooled.at(0.5) - start),
            ("descriptors_gained", gained(|left| left.descriptors)),
            ("threads_gained", gained(|left| left.threads)),
            ("processes_gained", gained(|left| left.processes)),
            ("files_gained", gained(|left| left.files)),
        ]
    }
}

/// The things that are there while the compute sleeps.
#[derive(Debug, Default)]
struct Remaining {
    descriptors: usize,
    threads: usize,
    processes: usize,
    files: usize,
}

impl Remaining {
    fn by(emulator: &Emulator) -> Result<Self, BoxError> {
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
            processes: processes_in(&emulator.folder()).len(),
            files: files_in(&emulator.folder()),
        })
    }
}

/// The ids of the processes whose working directory is in `folder`.
fn processes_in(folder: &Path) -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let within = all
        .filter(|it| fs::read_link(it.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder)));
    within
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect()
}

fn files_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|it| match it.file_type() {
            Ok(kind) if kind.is_dir() => files_in(&it.path()),
            _ => 1,
        })
        .sum()
}

/// Many computes awake at once, and their end.
async fn measure_many_computes() -> Result<Figures, BoxError> {
    let emulator = Emulator::start().await?;
    let neon = client(&emulator)?;
    let bar = support::progress(COMPUTES);
    let start = Instant::now();
    for n in 0..COMPUTES {
        let created = neon
            .create_project(&CreateProject::new(format!("bench-{n}")))
            .await?;
        neon.wait_for_operations(&created.project.id).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let awake = emulator.witnesses().iter().filter(|it| it.is_awake).count();
    let created = start.elapsed();
    let pids = processes_in(&emulator.folder());
    let computes: f64 = pids.iter().map(|pid| mebibytes(pid)).sum();
    let own = mebibytes("self");
    let start = Instant::now();
    drop(emulator);
    let dropped = start.elapsed();
    println!(
        "\n{awake} computes awake after {}: {computes:.0} MiB in {} processes, {own:.0} MiB in this one; gone after {}",
        seconds(created),
        pids.len(),
        seconds(dropped),
    );
    Ok(vec![
        ("computes_awake", count(awake)),
        ("computes_mib", computes),
        ("own_mib", own),
        ("drop_seconds", dropped.as_secs_f64()),
    ])
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Memory of a process, with its share of what it shares with others.
fn mebibytes(pid: &str) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kibibytes =
        line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kibibytes.unwrap_or_default() / 1024.0
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn count(of: usize) -> f64 {
    of as f64
}
