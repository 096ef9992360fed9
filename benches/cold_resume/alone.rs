//! A single caller on a suspended tenant.

use tenantry::BoxError;
use tokio::time::Instant;

use super::{
    client::Client,
    setting::Setting,
    setup::{Compute, Setup},
    support::{self, Samples},
};

/// Connections that are open when the compute goes to sleep.
const IDLE: u16 = 4;

/// The measurements with a single caller.
pub(crate) struct Alone {
    pub(crate) settings: Vec<InSetting>,
    /// Postgres by itself; none at Neon.
    pub(crate) start: Samples,
    /// The same; at Neon a whole suspend by the API.
    pub(crate) stop: Samples,
}

/// The measurements in one setting.
pub(crate) struct InSetting {
    pub(crate) setting: Setting,
    pub(crate) floor: Samples,
    /// In the order of [`Client::all`].
    pub(crate) clients: Vec<OfClient>,
}

/// The measurements with one client.
pub(crate) struct OfClient {
    pub(crate) name: &'static str,
    pub(crate) took: Samples,
    pub(crate) errors: u32,
}

pub(crate) async fn run(setup: &Setup, samples: usize) -> Result<Alone, BoxError> {
    let compute = &setup.computes[0];
    let mut stop = Samples::default();
    let mut settings = Vec::new();
    for setting in setup.settings(samples) {
        let rounds = setting.rounds(samples);
        settings.push(in_setting(setup, compute, setting, rounds, &mut stop).await?);
    }
    let mut start = Samples::default();
    let seen = setup.witness(compute).into_iter();
    start.extend(seen.flat_map(|it| it.wakes).map(|wake| wake.start));
    Ok(Alone {
        settings,
        start,
        stop,
    })
}

async fn in_setting(
    setup: &Setup,
    compute: &Compute,
    setting: Setting,
    rounds: usize,
    stop: &mut Samples,
) -> Result<InSetting, BoxError> {
    let target = setup.target(compute, setting)?;
    let service = setup.service().behind(setup.way(setting)?);
    let clients = Client::all(&service, compute, &target, IDLE)?;
    let mut results = InSetting {
        setting,
        floor: Samples::default(),
        clients: clients.iter().map(OfClient::of).collect(),
    };
    let bar = support::progress(rounds);
    for round in 0..rounds {
        bar.inc(1);
        stop.add(setup.suspend(compute).await?);
        results.floor.add(target.connect_plain().await?);
        // The pools, which are there to compare with, in every second round where there are many.
        let all = round % 2 == 0 || setup.emulator().is_none();
        let present = if all { clients.len() } else { 1 };
        for (client, result) in clients.iter().zip(&mut results.clients).take(present) {
            client.open(IDLE).await?;
            stop.add(setup.suspend(compute).await?);
            client.wait_until_closed().await?;
            result.turn(client).await;
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

impl OfClient {
    fn of(client: &Client) -> Self {
        Self {
            name: client.name(),
            took: Samples::default(),
            errors: 0,
        }
    }

    async fn turn(&mut self, client: &Client) {
        let start = Instant::now();
        match client.query_one().await {
            Ok(()) => self.took.add(start.elapsed()),
            Err(_) => self.errors += 1,
        }
    }
}
