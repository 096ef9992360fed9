//! Callers of other tenants while one tenant's wake is silent.

use std::{collections::HashMap, time::Duration};

use tenantry::{BoxError, TenantId};
use tokio::time::sleep;

use super::{
    client::{Client, router},
    herd::{CALLERS, POOL_SIZE, all_at_once},
    scene::{Compute, Scene, until},
    setting::Setting,
    support::{self, Samples},
};

/// How long the wake is silent.
const SILENCE: Duration = Duration::from_secs(2);
/// The other tenants, and their callers at once.
const TENANTS: usize = 10;
const EACH: u16 = 10;
/// How often in a row they come, in the calm and in the silence.
const TIMES: usize = 20;
/// A herd stands in line after this long.
const IN_LINE: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Default)]
pub(crate) struct Bystanders {
    pub(crate) calm: Samples,
    pub(crate) waking: Samples,
    /// Theirs, and those of the callers who wait.
    pub(crate) errors: u32,
}

pub(crate) async fn run(samples: usize) -> Result<Bystanders, BoxError> {
    let scene = Scene::emulated(1 + TENANTS).await?;
    let clients = clients(&scene)?;
    let [sleeper, others @ ..] = &clients[..] else {
        return Err("nobody is there".into());
    };
    for other in others {
        other.open(EACH).await?;
    }
    let callers = others.iter().flat_map(|it| vec![it.clone(); EACH.into()]);
    let callers: Vec<_> = callers.collect();
    for _ in 0..TIMES {
        all_at_once(callers.clone(), &mut Samples::default()).await?; // their poolers have all they need
    }
    let rounds = (samples / 30).max(1);
    let mut results = Bystanders::default();
    let bar = support::progress(rounds);
    for _ in 0..rounds {
        bar.inc(1);
        results.round(&scene, sleeper, &callers).await?;
    }
    bar.finish_and_clear();
    Ok(results)
}

/// One router for all tenants; the first is the one that will sleep.
fn clients(scene: &Scene) -> Result<Vec<Client>, BoxError> {
    let mut tenants = HashMap::new();
    for compute in &scene.computes {
        let target = scene.target(compute, Setting::QUICK)?;
        tenants.insert(TenantId::parse(&compute.endpoint_id)?, target.endpoint());
    }
    let router = router(scene, tenants, POOL_SIZE)?;
    let client = |it: &Compute| {
        let tenant = TenantId::parse(&it.endpoint_id)?;
        Ok(Client::Tenantry(router.clone(), tenant))
    };
    scene.computes.iter().map(client).collect()
}

impl Bystanders {
    async fn round(
        &mut self,
        scene: &Scene,
        sleeper: &Client,
        callers: &[Client],
    ) -> Result<(), BoxError> {
        let compute = &scene.computes[0];
        let emulator = scene.emulator().ok_or("only an emulator is silent")?;
        emulator.set_wake_delay_of(&compute.endpoint_id, SILENCE);
        sleeper.open(POOL_SIZE).await?;
        scene.suspend(compute).await?;
        sleep(IN_LINE).await; // its connections' ends are noticed
        for _ in 0..TIMES {
            self.errors += all_at_once(callers.to_vec(), &mut self.calm).await?;
        }

        let attempts = || scene.witness(compute).map(|it| it.auth_attempts.len());
        let before = attempts();
        let waiting = vec![sleeper.clone(); CALLERS];
        let herd = tokio::spawn(async move { all_at_once(waiting, &mut Samples::default()).await });
        until(|| attempts() > before).await?;
        sleep(IN_LINE).await;
        for _ in 0..TIMES {
            self.errors += all_at_once(callers.to_vec(), &mut self.waking).await?;
        }
        if scene.witness(compute).is_some_and(|it| it.is_awake) {
            return Err("the silence was too short for all bystanders".into());
        }
        self.errors += herd.await??;
        Ok(())
    }
}
