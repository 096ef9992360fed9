//! A single caller on a suspended tenant.

use tenantry::BoxError;
use tokio::time::Instant;

use crate::{
    client::Client,
    scene::Scene,
    setting::Setting,
    support::{self, Samples},
};

/// Connections that are open when the compute goes to sleep.
const IDLE: u16 = 4;

/// What was measured with a single caller.
pub(crate) struct Alone {
    pub(crate) settings: Vec<InSetting>,
    /// Postgres by itself.
    pub(crate) start: Samples,
    pub(crate) stop: Samples,
}

/// What was measured in one setting.
pub(crate) struct InSetting {
    pub(crate) setting: Setting,
    pub(crate) floor: Samples,
    /// In the order of [`Client::all`].
    pub(crate) clients: Vec<OfClient>,
}

/// What was measured with one client.
pub(crate) struct OfClient {
    pub(crate) name: &'static str,
    pub(crate) took: Samples,
    pub(crate) errors: u32,
}

pub(crate) async fn run(samples: usize) -> Result<Alone, BoxError> {
    let scene = Scene::with(1).await?;
    let mut stop = Samples::default();
    let mut settings = Vec::new();
    for setting in Setting::all(samples) {
        settings.push(in_setting(&scene, setting, setting.rounds(samples), &mut stop).await?);
    }
    let mut start = Samples::default();
    let witness = scene.witness(&scene.endpoints[0])?;
    start.extend(witness.wakes.iter().map(|wake| wake.start));
    Ok(Alone {
        settings,
        start,
        stop,
    })
}

async fn in_setting(
    scene: &Scene,
    setting: Setting,
    rounds: usize,
    stop: &mut Samples,
) -> Result<InSetting, BoxError> {
    let endpoint = &scene.endpoints[0];
    scene.emulator.set_wake_delay(setting.wake);
    let target = scene.target(endpoint, setting.direct_tls).await?;
    let clients = Client::all(scene, endpoint, &target, IDLE)?;
    let mut results = InSetting {
        setting,
        floor: Samples::default(),
        clients: clients.iter().map(OfClient::of).collect(),
    };
    let bar = support::progress(rounds);
    for round in 0..rounds {
        bar.inc(1);
        stop.add(scene.suspend(endpoint).await?);
        results.floor.add(target.bare().await?);
        // The pools, which are there to compare with, in every second round.
        let present = if round % 2 == 0 { clients.len() } else { 1 };
        for (client, result) in clients.iter().zip(&mut results.clients).take(present) {
            client.open(IDLE).await?;
            stop.add(scene.suspend(endpoint).await?);
            client.notice().await?;
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
        match client.ask().await {
            Ok(()) => self.took.add(start.elapsed()),
            Err(_) => self.errors += 1,
        }
    }
}
