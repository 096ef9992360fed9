//! Random faults while callers use the tenants.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use futures_util::future::join_all;
use tenantry::emulator::{Fault, Reason, Stop, Witness};
use tokio::time::{Instant, sleep};

use super::{ACTIVE_TENANTS, LoadTest, SERVED_BETWEEN};

/// Suspends the computes that have been awake longest, if more are awake than tenants are in use.
pub(super) async fn keep_most_asleep(load_test: Arc<LoadTest>) {
    while load_test.is_open() {
        let mut awake = awake_tenants(&load_test);
        let most_awake = awake.len();
        {
            let mut report = load_test.report.lock().unwrap();
            report.most_awake = report.most_awake.max(most_awake);
        }
        awake.sort_by_key(|(_, it)| it.wakes.last().map(|wake| wake.at));
        let surplus = most_awake.saturating_sub(ACTIVE_TENANTS);
        let longest = awake.iter().take(surplus);
        join_all(longest.map(|(tenant, _)| stop_compute(&load_test, *tenant, Stop::Neon))).await;
        sleep(Duration::from_millis(50)).await;
    }
}

fn awake_tenants(load_test: &LoadTest) -> Vec<(usize, Witness)> {
    let witnesses = load_test.env.emulator.witnesses().into_iter();
    let awake = witnesses.filter(|it| it.is_awake);
    let tenant = |it: &Witness| {
        let tenants = load_test.tenants.iter();
        tenants
            .map(|tenant| &tenant.endpoint_id)
            .position(|id| *id == it.endpoint_id)
    };
    awake.filter_map(|it| Some((tenant(&it)?, it))).collect()
}

async fn stop_compute(load_test: &LoadTest, tenant: usize, how: Stop) {
    load_test.mark_cut(tenant, Instant::now());
    let endpoint_id = &load_test.tenants[tenant].endpoint_id;
    load_test.env.emulator.stop(endpoint_id, how).await;
    load_test.mark_cut(tenant, Instant::now());
}

/// Injects random faults until the load test is over, and ends each of them.
pub(super) async fn inject(load_test: Arc<LoadTest>, mut rng: Rng) {
    let emulator = &load_test.env.emulator;
    let mut injected = Vec::new();
    while load_test.is_open() {
        let tenant = load_test.pick_tenant(&mut rng);
        match rng.u8(..100) {
            0..35 => drop(load_test.router.evict(&load_test.tenants[tenant].id)),
            35..50 => stop_compute(&load_test, tenant, Stop::Neon).await,
            50..65 => {
                let how = [Stop::Fast, Stop::Immediate, Stop::Kill];
                stop_compute(&load_test, tenant, *rng.choice(&how).unwrap()).await;
            }
            65..70 => {
                load_test.mark_cut(tenant, Instant::now());
                emulator.crash(&load_test.tenants[tenant].endpoint_id);
            }
            70..97 => {
                if rng.bool() {
                    stop_compute(&load_test, tenant, Stop::Neon).await;
                }
                let time = Duration::from_millis(rng.u64(300..3000));
                let injects =
                    apply_fault_for(Arc::clone(&load_test), tenant, random_fault(&mut rng), time);
                injected.push(tokio::spawn(injects));
            }
            _ => {
                let now = Instant::now();
                (0..load_test.tenants.len()).for_each(|tenant| load_test.mark_cut(tenant, now));
                emulator.restart_proxy();
            }
        }
        let served = load_test.served();
        sleep(Duration::from_millis(rng.u64(100..500))).await;
        while load_test.is_open() && load_test.served() < served + SERVED_BETWEEN {
            sleep(Duration::from_millis(10)).await;
        }
    }
    for ended in join_all(injected).await {
        ended.unwrap();
    }
}

/// Applies `fault` to a tenant for `time`.
async fn apply_fault_for(load_test: Arc<LoadTest>, tenant: usize, fault: Fault, time: Duration) {
    if fault == Fault::CommitAnswerLost {
        load_test.mark_cut(tenant, Instant::now() + time); // the others keep out who comes, and cut nobody off
    }
    let endpoint_id = &load_test.tenants[tenant].endpoint_id;
    load_test.env.emulator.set_fault(endpoint_id, fault);
    sleep(time).await;
    load_test.env.emulator.set_fault(endpoint_id, None);
}

fn random_fault(rng: &mut Rng) -> Fault {
    let times = rng.u32(1..5);
    match rng.u8(..12) {
        0 => Fault::wake_refused(Reason::RunningOperations, times),
        1 => Fault::wake_refused(Reason::ActiveTimeQuota, times),
        2 => Fault::ControlPlaneDown,
        3 => Fault::AddressNotAllowed,
        4 => Fault::TooManyConnections { times },
        5 => Fault::TooManyWakes { times },
        6 => Fault::NoPermit { times },
        7 => Fault::ComputeRefuses,
        8 => Fault::ComputeUnreachable,
        9 => Fault::ComputeCloses,
        10 => Fault::ComputeSilent,
        _ => Fault::CommitAnswerLost,
    }
}
