//! Changes of tenants, and the time until all replicas have heard of them.

use std::{sync::Arc, time::Duration};

use tenantry::{BoxError, TenantId, catalog::State};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    place::Place,
    replica::{Replica, tenant},
};
use crate::{rng::Rng, support::Samples};

/// The most popular tenants, whose changes are watched. All replicas have pools of them.
const WATCHED: usize = 20;
/// Every fifth change is watched, and every tenth is a tenant that is held.
const LIMITED: usize = 5;
const HELD: usize = 10;
/// Longest wait for a change to arrive.
const LATEST: Duration = Duration::from_secs(10);
/// Time between two looks at whether it has.
const LOOK: Duration = Duration::from_micros(500);

/// Changes of one run, and how late they were heard.
#[derive(Default)]
pub(super) struct Churn {
    pub(super) changes: f64,
    /// Of each replica, until its pool had a new limit.
    pub(super) staleness: Samples,
    /// Of all replicas, until the last one refused a tenant that is held.
    pub(super) evictions: Samples,
}

/// Changes so many tenants a second, for `time`.
pub(super) async fn run(
    place: &Place,
    replicas: &[Arc<Replica>],
    per_second: f64,
    time: Duration,
) -> Result<Churn, BoxError> {
    let mut churn = Churn::default();
    if per_second == 0.0 {
        sleep(time).await;
        return Ok(churn);
    }
    let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
    let (end, mut rng, mut number) = (Instant::now() + time, Rng(7), 0);
    let mut watched = JoinSet::new();
    while ticks.tick().await < end {
        number += 1;
        churn.changes += 1.0;
        // Each of those that are watched in its turn, so that none changes again before it was seen.
        let popular = tenant((number / LIMITED) % WATCHED)?;
        if number % HELD == 0 {
            churn.evictions.add(evict(place, &popular, replicas).await?);
            churn.changes += 1.0;
        } else if number % LIMITED == 0 {
            let limit = place.unused_limit();
            for replica in replicas {
                drop(replica.router.get(&popular).await?);
            }
            let edit = place.write(&popular, |it| it.max_connections = Some(limit));
            edit.await?;
            let seen = until_limited(replicas.to_vec(), popular, limit, Instant::now());
            watched.spawn(seen);
        } else {
            let any = tenant(WATCHED + rng.below(place.tenants - WATCHED))?;
            let limit = 1 + number % 4;
            let edit = place.write(&any, |it| it.max_connections = Some(limit));
            edit.await?;
        }
    }
    while let Some(seen) = watched.join_next().await {
        churn.staleness.extend(seen??);
    }
    Ok(churn)
}

/// Holds a tenant until each replica refuses it, and gives it back. Returns the time until the last one refused.
async fn evict(
    place: &Place,
    tenant: &TenantId,
    replicas: &[Arc<Replica>],
) -> Result<Duration, BoxError> {
    for replica in replicas {
        drop(replica.router.get(tenant).await?);
    }
    place.write(tenant, |it| it.state = State::Held).await?;
    let start = Instant::now();
    until(replicas, tenant, false).await?;
    let took = start.elapsed();
    place.write(tenant, |it| it.state = State::Ready).await?;
    until(replicas, tenant, true).await?;
    Ok(took)
}

/// Waits until each replica serves a tenant, or refuses it.
async fn until(
    replicas: &[Arc<Replica>],
    tenant: &TenantId,
    is_served: bool,
) -> Result<(), BoxError> {
    for replica in replicas {
        let changed = async {
            while replica.router.get(tenant).await.is_ok() != is_served {
                sleep(LOOK).await;
            }
        };
        timeout(LATEST, changed).await?;
    }
    Ok(())
}

/// Returns the time since `written` after which each replica's pool of `tenant` had the new limit.
async fn until_limited(
    replicas: Vec<Arc<Replica>>,
    tenant: TenantId,
    limit: usize,
    written: Instant,
) -> Result<Vec<Duration>, BoxError> {
    let mut took = vec![None; replicas.len()];
    let all = async {
        while took.iter().any(Option::is_none) {
            for (replica, took) in replicas.iter().zip(&mut took) {
                let pool = replica.router.explain(&tenant)?.pool;
                if took.is_none() && pool.is_some_and(|it| it.limit == limit) {
                    *took = Some(written.elapsed());
                }
            }
            sleep(LOOK).await;
        }
        Ok::<_, BoxError>(())
    };
    timeout(LATEST, all).await??;
    Ok(took.into_iter().flatten().collect())
}
