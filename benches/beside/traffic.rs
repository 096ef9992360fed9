//! The traffic of one process, by one way.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tenantry::BoxError;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    rng::{Rng, Zipf},
    support::resident,
    ways::Way,
};

/// Callers at once.
pub(crate) const CALLERS: usize = 64;

/// The work of a process.
#[derive(Deserialize, Serialize)]
pub(crate) struct Task {
    pub(crate) way: String,
    pub(crate) queries: usize,
    pub(crate) tenants: usize,
    /// Most tenants with a pool, and most connections in all.
    pub(crate) pools: usize,
    pub(crate) connections: usize,
    /// The address of all tenants.
    pub(crate) front: SocketAddr,
    /// The folder with PgBouncer's socket, and the id of its process.
    pub(crate) folder: PathBuf,
    pub(crate) pgbouncer: String,
}

/// The measurements of one process.
#[derive(Deserialize, Serialize)]
pub(crate) struct Measured {
    pub(crate) took: Duration,
    pub(crate) answered: Vec<Duration>,
    pub(crate) errors: usize,
    /// Resident bytes that came on top.
    pub(crate) memory: i64,
}

pub(crate) async fn run(task: Task) -> Result<Measured, BoxError> {
    let (places, mut rng) = (Zipf::new(task.tenants), Rng(1));
    let draws: Arc<[usize]> = (0..task.queries).map(|_| places.draw(&mut rng)).collect();
    let way = Arc::new(Way::new(&task)?);
    let mut answered = Vec::with_capacity(task.queries);
    let before = memory(&task)?;
    let (next, start) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call(
            Arc::clone(&way),
            Arc::clone(&draws),
            Arc::clone(&next),
        ));
    }
    let mut errors = Vec::new();
    while let Some(caller) = callers.join_next().await {
        let (took, failed) = caller?;
        answered.extend(took);
        errors.extend(failed);
    }
    let (took, memory) = (start.elapsed(), memory(&task)? - before);
    way.close().await;
    if let Some(first) = errors.first() {
        eprintln!("{}: {} errors, the first: {first}", task.way, errors.len());
    }
    Ok(Measured {
        took,
        answered,
        errors: errors.len(),
        memory,
    })
}

/// One caller: asks for the next tenant as long as there is one.
async fn call(
    way: Arc<Way>,
    draws: Arc<[usize]>,
    next: Arc<AtomicUsize>,
) -> (Vec<Duration>, Vec<String>) {
    let (mut took, mut errors) = (Vec::new(), Vec::new());
    while let Some(&tenant) = draws.get(next.fetch_add(1, Relaxed)) {
        let start = Instant::now();
        match way.query(tenant).await {
            Ok(()) => took.push(start.elapsed()),
            Err(err) => errors.push(err.to_string()),
        }
    }
    (took, errors)
}

/// Resident bytes of all that stands between callers and the front.
fn memory(task: &Task) -> Result<i64, BoxError> {
    Ok(resident("self")? + resident(&task.pgbouncer)?)
}
