//! What goes wrong while there are visitors, at random.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use futures_util::future::join_all;
use tenantry::emulator::{Fault, Reason, Stop, Witness};
use tokio::time::{Instant, sleep};

use super::{Town, VISITED};

/// Suspends the longest awake where more are than have visitors.
pub(super) async fn keep_most_asleep(town: Arc<Town>) {
    while town.is_open() {
        let mut awake = awake(&town);
        let most_awake = awake.len();
        {
            let mut report = town.report.lock().unwrap();
            report.most_awake = report.most_awake.max(most_awake);
        }
        awake.sort_by_key(|(_, it)| it.wakes.last().map(|wake| wake.at));
        let surplus = most_awake.saturating_sub(VISITED);
        let longest = awake.iter().take(surplus);
        join_all(longest.map(|(tenant, _)| stop(&town, *tenant, Stop::Neon))).await;
        sleep(Duration::from_millis(50)).await;
    }
}

fn awake(town: &Town) -> Vec<(usize, Witness)> {
    let witnesses = town.stage.emulator.witnesses().into_iter();
    let awake = witnesses.filter(|it| it.is_awake);
    let tenant = |it: &Witness| {
        let tenants = town.tenants.iter();
        tenants
            .map(|tenant| &tenant.endpoint_id)
            .position(|id| *id == it.endpoint_id)
    };
    awake.filter_map(|it| Some((tenant(&it)?, it))).collect()
}

async fn stop(town: &Town, tenant: usize, how: Stop) {
    town.cut(tenant, Instant::now());
    let endpoint_id = &town.tenants[tenant].endpoint_id;
    town.stage.emulator.stop(endpoint_id, how).await;
    town.cut(tenant, Instant::now());
}

/// Makes trouble as long as the town is open, and mends it.
pub(super) async fn make(town: Arc<Town>, mut rng: Rng) {
    let emulator = &town.stage.emulator;
    let mut brought = Vec::new();
    while town.is_open() {
        let tenant = town.pick(&mut rng);
        match rng.u8(..100) {
            0..35 => drop(town.router.evict(&town.tenants[tenant].id)),
            35..50 => stop(&town, tenant, Stop::Neon).await,
            50..65 => {
                let how = [Stop::Fast, Stop::Immediate, Stop::Kill];
                stop(&town, tenant, *rng.choice(&how).unwrap()).await;
            }
            65..70 => {
                town.cut(tenant, Instant::now());
                emulator.crash(&town.tenants[tenant].endpoint_id);
            }
            70..97 => {
                if rng.bool() {
                    stop(&town, tenant, Stop::Neon).await;
                }
                let time = Duration::from_millis(rng.u64(300..3000));
                let brings = bring(Arc::clone(&town), tenant, fault(&mut rng), time);
                brought.push(tokio::spawn(brings));
            }
            _ => {
                let now = Instant::now();
                (0..town.tenants.len()).for_each(|tenant| town.cut(tenant, now));
                emulator.restart_proxy();
            }
        }
        sleep(Duration::from_millis(rng.u64(100..500))).await;
    }
    for mended in join_all(brought).await {
        mended.unwrap();
    }
}

/// Has a tenant meet `fault` for so long.
async fn bring(town: Arc<Town>, tenant: usize, fault: Fault, time: Duration) {
    if fault == Fault::CommitAnswerLost {
        town.cut(tenant, Instant::now() + time); // the others keep out who comes, and cut nobody off
    }
    let endpoint_id = &town.tenants[tenant].endpoint_id;
    town.stage.emulator.set_fault(endpoint_id, fault);
    sleep(time).await;
    town.stage.emulator.set_fault(endpoint_id, None);
}

fn fault(rng: &mut Rng) -> Fault {
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
