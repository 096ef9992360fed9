//! A thousand callers on one tenant, suspended, then awake without connections, then awake with all of them open.

use std::time::Duration;

use tenantry::{BoxError, emulator::Witness};
use tokio::time::Instant;

use super::{
    client::Client,
    setting::Setting,
    setup::{Compute, Setup},
    support::{self, Samples, Target, median},
};

/// Callers at once.
pub(crate) const CALLERS: usize = 1000;
/// Connections of one tenant.
pub(crate) const POOL_SIZE: u16 = 16;

/// The measurements in one setting.
pub(crate) struct InSetting {
    pub(crate) setting: Setting,
    /// A single caller's, in the same rounds.
    pub(crate) floor: Samples,
    /// In the order of [`Client::all`].
    pub(crate) herds: Vec<Herd>,
}

/// The measurements with one client.
pub(crate) struct Herd {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<Round>,
    pub(crate) asleep: Samples,
    pub(crate) awake: Samples,
    pub(crate) warm: Samples,
    /// Most logins that were begun in one round before the compute was up; unknown at Neon.
    pub(crate) auth_attempts: Option<usize>,
    pub(crate) errors: u32,
}

/// The waits of the slowest of one round, in milliseconds.
pub(crate) struct Round {
    floor: f64,
    asleep: f64,
    /// With a pooler that has just been started, as after a wake.
    awake: f64,
    /// With a pooler that has all its connections.
    awake_pooler_warm: f64,
    warm: f64,
}

pub(crate) async fn run(
    setup: &Setup,
    settings: Vec<Setting>,
    samples: usize,
) -> Result<Vec<InSetting>, BoxError> {
    let mut measured = Vec::new();
    for setting in settings {
        measured.push(in_setting(setup, setting, setting.herds(samples)).await?);
    }
    Ok(measured)
}

async fn in_setting(setup: &Setup, setting: Setting, rounds: usize) -> Result<InSetting, BoxError> {
    let compute = &setup.computes[0];
    let target = setup.target(compute, setting)?;
    let service = setup.service().behind(setup.way(setting)?);
    let clients = Client::all(&service, compute, &target, POOL_SIZE)?;
    let place = Place {
        setup,
        compute,
        target: &target,
        setting,
    };
    let mut results = InSetting {
        setting,
        floor: Samples::default(),
        herds: clients.iter().map(Herd::of).collect(),
    };
    let bar = support::progress(rounds);
    for round in 0..rounds {
        bar.inc(1);
        setup.suspend(compute).await?;
        let floor = target.connect_plain().await?;
        results.floor.add(floor);
        // Each comes first as often as the others.
        for who in (0..clients.len()).map(|it| (round + it) % clients.len()) {
            let herd = &mut results.herds[who];
            herd.round(&place, &clients[who], floor).await?;
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

impl InSetting {
    /// The time that the slowest wait besides the wake, in terms of what they wait without one. Nothing else differs:
    /// in both cases there are no connections when they come, and the pooler has just been started.
    pub(crate) fn over_awake(herd: &Herd) -> f64 {
        herd.ratio(|it| (it.asleep - it.floor) / it.awake)
    }

    /// The same in terms of what they wait where the pooler has all its connections already; not a number if that was
    /// not measured.
    pub(crate) fn over_awake_pooler_warm(herd: &Herd) -> f64 {
        herd.ratio(|it| (it.asleep - it.floor) / it.awake_pooler_warm)
    }

    /// The same in terms of what they wait where all connections are open already.
    pub(crate) fn over_warm(herd: &Herd) -> f64 {
        herd.ratio(|it| (it.asleep - it.floor) / it.warm)
    }

    /// The time that the slowest wait, wake and all, in terms of what they wait in plain pools of deadpool-postgres.
    pub(crate) fn over_deadpool(&self, herd: &Herd) -> f64 {
        let deadpool = self.herds.iter().find(|it| it.name == "deadpool-postgres");
        let others = deadpool.map_or(&[][..], |it| &it.rounds);
        let rounds = herd.rounds.iter().zip(others);
        median(rounds.map(|(it, other)| it.asleep / other.asleep))
    }
}

/// The place that a herd comes to.
struct Place<'a> {
    setup: &'a Setup,
    compute: &'a Compute,
    target: &'a Target,
    setting: Setting,
}

impl Herd {
    fn of(client: &Client) -> Self {
        Self {
            name: client.name(),
            rounds: Vec::new(),
            asleep: Samples::default(),
            awake: Samples::default(),
            warm: Samples::default(),
            auth_attempts: None,
            errors: 0,
        }
    }

    async fn round(
        &mut self,
        place: &Place<'_>,
        client: &Client,
        floor: Duration,
    ) -> Result<(), BoxError> {
        let (setup, compute) = (place.setup, place.compute);
        client.open(POOL_SIZE).await?;
        setup.suspend(compute).await?;
        client.wait_until_closed().await?;
        let slept = Instant::now();
        let asleep = self.turn(client).await?;
        let seen = setup.witness(compute);
        let attempts = seen.map(|it| attempts_until_up(&it, slept)).transpose()?;
        self.auth_attempts = self.auth_attempts.max(attempts);

        client.open(POOL_SIZE).await?;
        client.close(POOL_SIZE).await?;
        setup.cool(compute, place.target).await?;
        let awake = self.turn(client).await?;
        client.open(POOL_SIZE).await?;
        let warm = self.turn(client).await?;
        let mut awake_pooler_warm = Samples::default();
        if !place.setting.has_network() {
            client.close(POOL_SIZE).await?;
            awake_pooler_warm = self.turn(client).await?;
        }
        self.rounds.push(Round {
            floor: floor.as_secs_f64() * 1e3,
            asleep: asleep.at(0.99),
            awake: awake.at(0.99),
            awake_pooler_warm: awake_pooler_warm.at(0.99),
            warm: warm.at(0.99),
        });
        self.asleep.merge(&asleep);
        self.awake.merge(&awake);
        self.warm.merge(&warm);
        Ok(())
    }

    async fn turn(&mut self, client: &Client) -> Result<Samples, BoxError> {
        let mut answered = Samples::default();
        self.errors += all_at_once(vec![client.clone(); CALLERS], &mut answered).await?;
        Ok(answered)
    }

    /// The median of what `of` makes of each round.
    fn ratio(&self, of: fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }
}

/// Each of `callers` asks once; notes when each had its answer, from the common start, and returns how many had none.
pub(crate) async fn all_at_once(
    callers: Vec<Client>,
    answered: &mut Samples,
) -> Result<u32, BoxError> {
    let start = Instant::now();
    let one = |caller: Client| async move { caller.query_one().await.map(|()| start.elapsed()) };
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
