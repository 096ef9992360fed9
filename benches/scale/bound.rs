//! Cost of many tenants that wait for a connection while all connections are in use.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tenantry::{BoxError, TenantClient, TenantId, TenantRouter};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{backend::Backend, spread::median};

/// Tenants that wait: as many callers as may by default.
const WAITING: usize = 10_000;
/// Tenants that hold a connection each, which is all there may be.
const HOLDING: usize = 500;
/// Longer than the run takes.
const LONG: Duration = Duration::from_secs(3600);
/// Rounds, and how long each is measured.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
/// Time between two looks at whether all wait.
const SETTLE: Duration = Duration::from_millis(100);

/// Milliseconds of the processor's time that the process takes in one second in which nothing happens but waiting: the
/// median of all rounds.
pub(crate) async fn run() -> Result<f64, BoxError> {
    let (backend, router) = setup()?;
    let mut held: Vec<TenantClient> = Vec::with_capacity(HOLDING);
    for tenant in 0..HOLDING {
        held.push(router.get(&format!("holds-{tenant}")).await?);
    }
    let mut waiting = JoinSet::new();
    for tenant in 0..WAITING {
        let router = router.clone();
        waiting.spawn(async move { router.get(&format!("waits-{tenant}")).await.map(drop) });
    }
    while router.status().budget_waiting < WAITING as u64 {
        sleep(SETTLE).await;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (cpu, began) = (process_cpu_time(), Instant::now());
        sleep(ROUND).await;
        let used = process_cpu_time().saturating_sub(cpu);
        rounds.push(1e3 * used.as_secs_f64() / began.elapsed().as_secs_f64());
    }
    if router.status().budget_waiting != WAITING as u64 || backend.opened() != HOLDING as u64 {
        return Err("something happened beside waiting".into());
    }
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    drop(held);
    router.close().await;
    Ok(median(rounds.into_iter()))
}

fn setup() -> Result<(Backend, TenantRouter), BoxError> {
    let backend = Backend::default();
    let lookup = |tenant: TenantId| {
        let endpoint = Backend::endpoint(tenant.as_str());
        std::future::ready(Ok(Some(endpoint)))
    };
    let builder = backend.configure(TenantRouter::builder(lookup));
    let builder = builder
        .max_pools(2 * WAITING as u64)
        .max_connections(HOLDING);
    let builder = builder.waiting_callers(WAITING).wake_reserve(0);
    let builder = builder.get_timeout(LONG).wake_timeout(LONG);
    let router = builder.warn_held_after(LONG).build()?;
    Ok((backend, router))
}

/// The processor's time that this process has had.
pub(crate) fn process_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
