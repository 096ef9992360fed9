//! A thousand callers on one tenant, suspended, then awake without connections, then awake with all of them open.

use std::time::Duration;

use tenantry::{BoxError, emulator::Witness};
use tokio::time::Instant;

use super::{
    client::Client,
    scene::{Compute, Scene},
    setting::Setting,
    support::{self, Samples},
};

/// Callers at once.
pub(crate) const CALLERS: usize = 1000;
/// Connections of one tenant.
pub(crate) const POOL_SIZE: u16 = 16;

/// What was measured in one setting.
pub(crate) struct InSetting {
    pub(crate) setting: Setting,
    /// A single caller's, in the same rounds.
    pub(crate) floor: Samples,
    /// In the order of [`Client::all`].
    pub(crate) herds: Vec<Herd>,
}

/// What was measured with one client.
pub(crate) struct Herd {
    pub(crate) name: &'static str,
    pub(crate) rounds: usize,
    pub(crate) asleep: Samples,
    pub(crate) awake: Samples,
    pub(crate) warm: Samples,
    /// Most logins that were begun in one round before the compute was up; unknown at Neon.
    pub(crate) auth_attempts: Option<usize>,
    pub(crate) errors: u32,
}

pub(crate) async fn run(scene: &Scene, samples: usize) -> Result<Vec<InSetting>, BoxError> {
    let mut settings = Vec::new();
    for setting in scene.settings(samples) {
        settings.push(in_setting(scene, setting, setting.herds(samples)).await?);
    }
    Ok(settings)
}

async fn in_setting(scene: &Scene, setting: Setting, rounds: usize) -> Result<InSetting, BoxError> {
    let compute = &scene.computes[0];
    let target = scene.target(compute, setting)?;
    let clients = Client::all(scene, compute, &target, POOL_SIZE)?;
    let mut results = InSetting {
        setting,
        floor: Samples::default(),
        herds: clients.iter().map(Herd::of).collect(),
    };
    let bar = support::progress(rounds);
    for _ in 0..rounds {
        bar.inc(1);
        scene.suspend(compute).await?;
        results.floor.add(target.bare().await?);
        for (client, herd) in clients.iter().zip(&mut results.herds) {
            herd.round(scene, compute, client).await?;
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

impl InSetting {
    /// What the slowest wait besides the wake, in terms of what they wait without one. Nothing else differs: in both
    /// cases there are no connections when they come.
    pub(crate) fn over_awake(&self, herd: &Herd) -> f64 {
        (herd.asleep.at(0.99) - self.floor.at(0.5)) / herd.awake.at(0.99)
    }

    /// The same in terms of what they wait where all connections are open already.
    pub(crate) fn over_warm(&self, herd: &Herd) -> f64 {
        (herd.asleep.at(0.99) - self.floor.at(0.5)) / herd.warm.at(0.99)
    }
}

impl Herd {
    fn of(client: &Client) -> Self {
        Self {
            name: client.name(),
            rounds: 0,
            asleep: Samples::default(),
            awake: Samples::default(),
            warm: Samples::default(),
            auth_attempts: None,
            errors: 0,
        }
    }

    async fn round(
        &mut self,
        scene: &Scene,
        compute: &Compute,
        client: &Client,
    ) -> Result<(), BoxError> {
        self.rounds += 1;
        client.open(POOL_SIZE).await?;
        scene.suspend(compute).await?;
        client.notice().await?;
        let slept = Instant::now();
        self.errors += all_at_once(vec![client.clone(); CALLERS], &mut self.asleep).await?;
        let seen = scene.witness(compute);
        let attempts = seen.map(|it| attempts_until_up(&it, slept)).transpose()?;
        self.auth_attempts = self.auth_attempts.max(attempts);

        client.open(POOL_SIZE).await?;
        client.close(POOL_SIZE).await?;
        self.errors += all_at_once(vec![client.clone(); CALLERS], &mut self.awake).await?;
        client.open(POOL_SIZE).await?;
        self.errors += all_at_once(vec![client.clone(); CALLERS], &mut self.warm).await?;
        Ok(())
    }
}

/// Each of `callers` asks once; notes when each had its answer, from the common start, and returns how many had none.
pub(crate) async fn all_at_once(
    callers: Vec<Client>,
    answered: &mut Samples,
) -> Result<u32, BoxError> {
    let start = Instant::now();
    let one = |caller: Client| async move { caller.ask().await.map(|()| start.elapsed()) };
    let tasks: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::spawn(one(caller)))
        .collect();
    let mut took: Vec<Duration> = Vec::with_capacity(tasks.len());
    let mut errors = 0;
    for task in tasks {
        match task.await? {
            Ok(it) => took.push(it),
            Err(_) => errors += 1,
        }
    }
    answered.extend(took);
    Ok(errors)
}

/// Logins begun since `slept` until the compute that slept then was up.
fn attempts_until_up(witness: &Witness, slept: Instant) -> Result<usize, BoxError> {
    let wake = witness.wakes.iter().find(|wake| wake.at >= slept);
    let wake = wake.ok_or("a herd woke nothing")?;
    let until_up = slept..=wake.at + wake.took;
    let attempts = witness.auth_attempts.iter();
    Ok(attempts.filter(|at| until_up.contains(at)).count())
}
