//! From a caller's wish to its first row on a suspended tenant: alone and in a herd, beside what servers use today.
//!
//! All clients use the pooled host of the same compute, through the same proxy, in turns in one run. The wake takes
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
//! closed as a suspend leaves them, and a pooler that has just been started, as a wake leaves it; and once more with
//! all connections open (*warm*). Of one setting they come a fourth time, with all connections closed but the pooler's,
//! which is what `…_over_awake` meant before (`…_over_awake_pooler_warm`). The floor takes its turn in these rounds
//! too. Clients change places from round to round; what is compared is compared within a round, and a figure is the
//! median of the rounds. *Bystanders* are 100 callers at once on ten other tenants, in turns while the router is calm
//! and while 1,000 callers wait for a silent wake of another tenant.
//!
//! A *network* of 1, 10 and 50 ms stands before the proxy in the main setting again (`…_rtt_10ms`): a relay that delays
//! what passes. How exactly it does so is measured before, with single bytes (`relay_rtt_…`).
//!
//! `cargo bench --bench cold_resume -- herd [ROUNDS]` measures only herds, in the main setting in so many rounds (20),
//! and behind each network in half as many or less. It writes `cold_resume_herd.json` and `.svg`.
//!
//! `cargo bench --bench cold_resume [-- SAMPLES]`, of which there are 500 unless told otherwise, in some 20 minutes. So
//! many rounds are for 350 ms, direct TLS and a single caller; the others have a tenth of it or less, and with fewer
//! than ten only that one setting is left, in some 20 seconds. Prints tables, and writes `cold_resume.json` and
//! `cold_resume.svg` to `target/figures`.
//!
//! `cargo bench --bench cold_resume -- --neon [SAMPLES]` measures the same on Neon itself, in an account of yours, by
//! the variable `NEON_API_KEY` (and `NEON_ORG_ID`, `NEON_REGION`). It says what that costs, creates one project,
//! suspends its compute by the API before each turn, and deletes the project, whatever happens: after an error, a
//! panic, Ctrl-C and SIGTERM too. Wakes take what they take; the direct host is measured beside the pooled one; there
//! are no bystanders; each client resolves the host's name itself, and all clients are in every round. Writes
//! `cold_resume_neon.json` and `.svg`. `--figures FOLDER` writes elsewhere.

#[path = "support/account.rs"]
pub(crate) mod account;
#[path = "cold_resume/alone.rs"]
mod alone;
#[path = "cold_resume/bystanders.rs"]
mod bystanders;
#[path = "support/chart.rs"]
mod chart;
#[path = "cold_resume/client.rs"]
mod client;
#[path = "cold_resume/curves.rs"]
mod curves;
#[path = "cold_resume/figures.rs"]
mod figures;
#[path = "cold_resume/herd.rs"]
mod herd;
#[path = "support/neon_service.rs"]
pub(crate) mod neon_service;
#[path = "cold_resume/report.rs"]
mod report;
#[path = "cold_resume/setting.rs"]
mod setting;
#[path = "cold_resume/setup.rs"]
mod setup;
mod support;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use tenantry::BoxError;

use account::{Account, Budget, cost, error_chain, minutes, say};
use neon_service::NeonService;
use report::Report;
use setting::Setting;
use setup::Setup;
use support::{Samples, relay};

/// Rounds of a single caller at 350 ms, direct TLS.
const SAMPLES: usize = 500;
/// Rounds of a herd at 350 ms, direct TLS, if nothing else is measured.
const HERDS: usize = 20;
/// Bytes by which a relay is measured.
const ECHOES: usize = 100;
/// Rounds of a single caller on each host of Neon's.
const NEON_SAMPLES: usize = 20;
/// The time of one suspend and the wake after it at Neon, and the time the compute is awake for them.
const CYCLE: Duration = Duration::from_secs(6);
const AWAKE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            say(&format!("cold_resume: {}", error_chain(&*err)));
            ExitCode::FAILURE
        }
    }
}

/// The arguments.
#[derive(Default)]
pub(crate) struct Options {
    neon: bool,
    herd: bool,
    samples: Option<usize>,
    figures: Option<PathBuf>,
}

impl Options {
    /// Cargo's own arguments are passed over.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--neon" => options.neon = true,
                "herd" => options.herd = true,
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
        } else if self.herd {
            let rounds = self.samples.unwrap_or(HERDS);
            (herds(rounds).await?, "cold_resume_herd")
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
    let settings = Setting::emulated(samples);
    let setup = Setup::emulated(1).await?;
    Ok(Report {
        emulated: true,
        relays: relays(&settings).await?,
        alone: Some(alone::run(&setup, samples).await?),
        herds: herd::run(&Setup::emulated(1).await?, settings, samples).await?,
        bystanders: Some(bystanders::run(samples).await?),
    })
}

/// Only herds.
async fn herds(rounds: usize) -> Result<Report, BoxError> {
    let settings = Setting::main_and_networks();
    Ok(Report {
        emulated: true,
        relays: relays(&settings).await?,
        alone: None,
        herds: herd::run(&Setup::emulated(1).await?, settings, 20 * rounds).await?,
        bystanders: None,
    })
}

/// The time that a byte takes through the relays of `settings`.
async fn relays(settings: &[Setting]) -> Result<Vec<(Duration, Samples)>, BoxError> {
    let mut measured = Vec::new();
    for it in settings.iter().filter(|it| it.has_network()) {
        let took = relay::measured(it.round_trip, ECHOES).await?;
        measured.push((it.round_trip, took));
    }
    Ok(measured)
}

async fn at_neon(samples: usize) -> Result<Report, BoxError> {
    let service = NeonService::from_env()?;
    let budget = announce(&service, samples);
    let account = Account::new(service, "tenantry-bench", budget);
    let measured = Arc::clone(&account);
    let work = async move {
        let setup = Setup::at_neon(&measured).await?;
        Ok(Report {
            emulated: false,
            relays: Vec::new(),
            alone: Some(alone::run(&setup, samples).await?),
            herds: herd::run(&setup, setup.settings(samples), samples).await?,
            bystanders: None,
        })
    };
    account.run(work).await
}

/// Says what will be created and what it costs.
fn announce(service: &NeonService, samples: usize) -> Budget {
    let rounds = |it: &Setting| it.rounds(samples) + it.herds(samples);
    // In each round the floor and three clients.
    let wakes: usize = Setting::at_neon().iter().map(|it| 4 * rounds(it)).sum();
    let wakes = u32::try_from(wakes).unwrap_or(u32::MAX);
    let time = CYCLE * wakes;
    let limit = 2 * time + Duration::from_secs(300);
    say(&format!(
        "At {}, by the key in NEON_API_KEY:",
        service.api_url
    ));
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
