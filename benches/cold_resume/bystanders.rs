//! Callers of other tenants while one tenant's wake is silent.

use std::{collections::HashMap, time::Duration};

use tenantry::{BoxError, TenantId};
use tokio::time::sleep;

use super::{
    client::{Client, router},
    herd::{CALLERS, POOL_SIZE, all_at_once},
    setting::Setting,
    setup::{Compute, Setup, until},
    support::{self, Samples},
};

/// The time for which the wake is silent.
const SILENCE: Duration = Duration::from_secs(2);
/// The other tenants, and their callers at once.
const TENANTS: usize = 10;
const CALLERS_PER_TENANT: u16 = 10;
/// The times in a row that they come, in the calm and in the silence.
const REPEATS: usize = 20;
/// A herd stands in line after this long.
const QUEUE_TIME: Duration = Duration::from_millis(100);

/// The answers to bystanders.
#[derive(Default)]
pub(crate) struct Bystanders {
    pub(crate) calm: Samples,
    pub(crate) waking: Samples,
    /// Theirs, and those of the callers who wait.
    pub(crate) errors: u32,
}

pub(crate) async fn run(samples: usize) -> Result<Bystanders, BoxError> {
    let setup = Setup::emulated(1 + TENANTS).await?;
    let clients = clients(&setup)?;
    let [sleeper, others @ ..] = &clients[..] else {
        return Err("nobody is there".into());
    };
    for other in others {
        other.open(CALLERS_PER_TENANT).await?;
    }
    let callers = others
        .iter()
        .flat_map(|it| vec![it.clone(); CALLERS_PER_TENANT.into()]);
    let callers: Vec<_> = callers.collect();
    for _ in 0..REPEATS {
        all_at_once(callers.clone(), &mut Samples::default()).await?; // their poolers have all they need
    }
    let rounds = (samples / 30).max(1);
    let mut results = Bystanders::default();
    let bar = support::progress(rounds);
    for _ in 0..rounds {
        bar.inc(1);
        results.round(&setup, sleeper, &callers).await?;
    }
    bar.finish_and_clear();
    Ok(results)
}

/// One router for all tenants; the first is the one that will sleep.
fn clients(setup: &Setup) -> Result<Vec<Client>, BoxError> {
    let mut tenants = HashMap::new();
    for compute in &setup.computes {
        let target = setup.target(compute, Setting::NO_DELAY)?;
        tenants.insert(TenantId::parse(&compute.endpoint_id)?, target.endpoint());
    }
    let router = router(setup.service(), tenants, POOL_SIZE)?;
    let client = |it: &Compute| {
        let tenant = TenantId::parse(&it.endpoint_id)?;
        Ok(Client::Tenantry(router.clone(), tenant))
    };
    setup.computes.iter().map(client).collect()
}

impl Bystanders {
    async fn round(
        &mut self,
        setup: &Setup,
        sleeper: &Client,
        callers: &[Client],
    ) -> Result<(), BoxError> {
        let compute = &setup.computes[0];
        let emulator = setup.emulator().ok_or("only an emulator is silent")?;
        emulator.set_wake_delay_of(&compute.endpoint_id, SILENCE);
        sleeper.open(POOL_SIZE).await?;
        setup.suspend(compute).await?;
        sleep(QUEUE_TIME).await; // its connections' ends are noticed
        for _ in 0..REPEATS {
            self.errors += all_at_once(callers.to_vec(), &mut self.calm).await?;
        }

        let attempts = || setup.witness(compute).map(|it| it.auth_attempts.len());
        let before = attempts();
        let waiting = vec![sleeper.clone(); CALLERS];
        let herd = tokio::spawn(async move { all_at_once(waiting, &mut Samples::default()).await });
        until(|| attempts() > before).await?;
        sleep(QUEUE_TIME).await;
        for _ in 0..REPEATS {
            self.errors += all_at_once(callers.to_vec(), &mut self.waking).await?;
        }
        if setup.witness(compute).is_some_and(|it| it.is_awake) {
            return Err("the silence was too short for all bystanders".into());
        }
        self.errors += herd.await??;
        Ok(())
    }
}
