//! Costs that must not grow with the callers, and limits that must not shrink to nothing.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};
use tenantry::{Endpoint, TenantId, TenantRouter};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::support::{Backend, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Time in which `count` callers, one after the other, join the queue of a tenant that is being woken.
async fn time_to_queue(count: usize) -> Duration {
    let backend = Backend::default();
    let builder = backend.router().waiting_per_tenant(100_000);
    let router = builder.waiting_callers(100_000).build().unwrap();
    backend.set(Step::Login, Gate::Stuck);
    let wake = router.warm("acme");
    backend.until_waiting(Step::Login).await;
    let start = Instant::now();
    let mut callers: Vec<_> = (0..count).map(|_| Box::pin(router.get("acme"))).collect();
    for caller in &mut callers {
        assert!(futures_util::poll!(caller).is_pending());
    }
    let took = start.elapsed();
    backend.set(Step::Login, Gate::Open);
    wake.wait().await.unwrap();
    join_all(callers.into_iter().map(async |it| drop(it.await.unwrap()))).await;
    took
}

#[tokio::test]
async fn the_cost_of_queueing_does_not_grow_quadratically() {
    let mut small = Duration::MAX;
    let mut large = Duration::MAX;
    for _ in 0..3 {
        small = small.min(time_to_queue(2000).await);
        large = large.min(time_to_queue(16_000).await);
    }
    assert!(
        large < 30 * small,
        "{small:?}, and for eight times as many {large:?}"
    );
}

/// The processor's time that this thread has had.
fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// The processor's time that it takes for `count` tenants to wait at the bound, for ten seconds in which nothing
/// happens, and for all of them to leave.
async fn cost_of_waiting_at_limit(count: usize) -> [Duration; 3] {
    let backend = Backend::default();
    let builder = backend.router().max_connections(2).wake_reserve(0);
    let router = builder.max_pools(100_000).get_timeout(60 * SECOND);
    let router = router.build().unwrap();
    let held = join_all(["a", "b"].map(|tenant| router.get(tenant))).await;
    let (mut callers, came) = (JoinSet::new(), thread_cpu_time());
    for tenant in 0..count {
        let router = router.clone();
        callers.spawn(async move { router.get(&tenant.to_string()).await.map(drop) });
    }
    while router.status().budget_waiting < count as u64 {
        sleep(MILLISECOND).await;
    }
    let waited = thread_cpu_time();
    sleep(10 * SECOND).await;
    let left = thread_cpu_time();
    callers.abort_all();
    while router.status().budget_waiting > 0 {
        sleep(100 * MILLISECOND).await;
    }
    let gone = thread_cpu_time();
    drop(held);
    [
        waited.saturating_sub(came),
        left.saturating_sub(waited),
        gone.saturating_sub(left),
    ]
}

#[tokio::test(start_paused = true)]
async fn the_cost_of_waiting_at_the_limit_does_not_grow_quadratically() {
    let mut times = [[Duration::MAX; 3]; 2];
    for _ in 0..3 {
        for (times, count) in times.iter_mut().zip([500, 4000]) {
            let took = cost_of_waiting_at_limit(count).await;
            *times = std::array::from_fn(|part| times[part].min(took[part]));
        }
    }
    let [few, many] = times;
    for (part, what) in ["come", "wait", "leave"].iter().enumerate() {
        let (few, many) = (few[part], many[part]);
        assert!(
            many < 24 * few,
            "{what}: {few:?}, and for eight times as many {many:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn hints_that_wake_no_tenant_leave_the_budget_to_those_that_do() {
    let backend = Backend::default();
    let builder = backend.configure(TenantRouter::builder(|tenant: TenantId| async move {
        let name = tenant.as_str();
        let endpoint = Endpoint::postgres(name, name, "app", "secret").without_tls();
        Ok((name == "acme").then_some(endpoint))
    }));
    let router = builder.hints_per_minute(2).build().unwrap();
    for nobody in ["x", "y"] {
        assert!(router.hint(nobody));
    }
    sleep(MILLISECOND).await;
    assert!(router.hint("acme"));
    sleep(MILLISECOND).await;
    assert_eq!(router.status().wakes_by_hint.succeeded, 1);
    assert_eq!(router.status().hints_ignored, 0);
}

#[tokio::test(start_paused = true)]
async fn a_suspend_window_of_zero_is_the_default_and_keeps_connections() {
    let backend = Backend::default();
    let builder = backend.configure(TenantRouter::builder(|tenant: TenantId| async move {
        let name = tenant.as_str();
        let endpoint = Endpoint::postgres(name, name, "app", "secret").without_tls();
        Ok(Some(endpoint.suspend_window(Duration::ZERO)))
    }));
    let router = builder.build().unwrap();
    for _ in 0..5 {
        drop(router.get("acme").await.unwrap());
        sleep(SECOND).await;
    }
    assert_eq!(backend.counts().logins_done, 1);
    sleep(300 * SECOND).await;
    assert_eq!((backend.counts().open, router.status().closed_idle), (0, 1));
}
