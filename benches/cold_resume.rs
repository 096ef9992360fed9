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
//!
//! `cargo bench --bench cold_resume -- --neon [SAMPLES]` measures the same on Neon itself, in an account of yours, by
//! the variable `NEON_API_KEY` (and `NEON_ORG_ID`, `NEON_REGION`). It says what that costs, creates one project,
//! suspends its compute by the API before each turn, and deletes the project, whatever happens: after an error, a panic,
//! Ctrl-C and SIGTERM too. Wakes take what they take; the direct host is measured beside the pooled one; there are no
//! bystanders; each client resolves the host's name itself, and all clients are in every round. Writes `cold_resume_neon.json`
//! and `.svg`. `--figures FOLDER` writes elsewhere.

#[path = "support/account.rs"]
pub(crate) mod account;
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
#[path = "support/site.rs"]
pub(crate) mod site;
mod support;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use tenantry::BoxError;

use account::{Account, Budget, chain, cost, minutes, say};
use report::Report;
use scene::Scene;
use setting::Setting;
use site::Site;

/// Rounds of a single caller at 350 ms, direct TLS.
const SAMPLES: usize = 500;
/// Rounds of a single caller on each host of Neon's.
const NEON_SAMPLES: usize = 20;
/// The time of one suspend and the wake after it at Neon, and the time the compute is awake for them.
const CYCLE: Duration = Duration::from_secs(6);
const AWAKE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match Options::of(std::env::args().skip(1)).run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            say(&format!("cold_resume: {}", chain(&*err)));
            ExitCode::FAILURE
        }
    }
}

/// The arguments.
#[derive(Default)]
pub(crate) struct Options {
    neon: bool,
    samples: Option<usize>,
    figures: Option<PathBuf>,
}

impl Options {
    /// Cargo's own arguments are passed over.
    pub(crate) fn of(mut words: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--neon" => options.neon = true,
                "--figures" => options.figures = words.next().map(PathBuf::from),
                word => options.samples = options.samples.or(word.parse().ok()),
            }
        }
        options
    }

    pub(crate) async fn run(self) -> Result<(), BoxError> {
        let (report, name) = if self.neon {
            let samples = self.samples.unwrap_or(NEON_SAMPLES).max(1);
            (at_neon(samples).await?, "cold_resume_neon")
        } else {
            let samples = self.samples.unwrap_or(SAMPLES);
            (emulated(samples).await?, "cold_resume")
        };
        report.print();
        let folder = self.figures.map_or_else(support::figures_folder, Ok)?;
        report.write(&folder, name)
    }
}

async fn emulated(samples: usize) -> Result<Report, BoxError> {
    Ok(Report {
        alone: alone::run(&Scene::emulated(1).await?, samples).await?,
        herds: herd::run(&Scene::emulated(1).await?, samples).await?,
        bystanders: Some(bystanders::run(samples).await?),
    })
}

async fn at_neon(samples: usize) -> Result<Report, BoxError> {
    let site = Site::from_env()?;
    let budget = announced(&site, samples);
    let account = Account::new(site, "tenantry-bench", budget);
    let measured = Arc::clone(&account);
    let work = async move {
        let scene = Scene::at_neon(&measured).await?;
        Ok(Report {
            alone: alone::run(&scene, samples).await?,
            herds: herd::run(&scene, samples).await?,
            bystanders: None,
        })
    };
    account.run(work).await
}

/// Says what will be created and what it costs.
fn announced(site: &Site, samples: usize) -> Budget {
    let rounds = |it: &Setting| it.rounds(samples) + it.herds(samples);
    // In each round the floor and three clients.
    let wakes: usize = Setting::at_neon().iter().map(|it| 4 * rounds(it)).sum();
    let wakes = u32::try_from(wakes).unwrap_or(u32::MAX);
    let time = CYCLE * wakes;
    let limit = 2 * time + Duration::from_secs(300);
    say(&format!("At {}, by the key in NEON_API_KEY:", site.api_url));
    say(&format!(
        "- creates 1 project with the smallest compute, wakes it {wakes} times, and deletes it, also after Ctrl-C"
    ));
    say(&format!(
        "- takes about {}, and {} at most",
        minutes(time),
        minutes(limit)
    ));
    say(&format!("- costs about {}", cost(AWAKE * wakes)));
    say(&format!("- at most {}", cost(limit)));
    Budget {
        projects: 1,
        time: limit,
    }
}
