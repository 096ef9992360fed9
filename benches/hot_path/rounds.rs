//! Two who take turns in one run, and how one compares with the other.

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
};

use tenantry::BoxError;
use tokio::{runtime::Handle, task::yield_now, time::Instant};

use crate::{ids::DrawnIds, subjects::ConnectionSource};

/// Rounds of a comparison; in each of them both take a turn.
const ROUNDS: usize = 61;
/// Rounds before, which are not counted.
const WARM_UP: usize = 5;
/// Calls of a turn, of each caller.
const CALLS: usize = 20_000;

/// The callers, and the way in which they call.
#[derive(Clone, Copy)]
pub(crate) enum Callers {
    /// So many threads, each with a caller of its own.
    Threads(usize),
    /// So many tasks on the runtime's workers.
    Tasks(usize, Yielding),
}

/// The moment at which a task lets others go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Yielding {
    /// As soon as it must wait.
    Straight,
    /// After each call.
    Between,
    /// While it holds a connection.
    Holding,
}

/// The times of two, per call.
pub(crate) struct Comparison {
    /// Nanoseconds of the first, at the median.
    pub(crate) plain: f64,
    /// Nanoseconds of the second.
    pub(crate) ours: f64,
    /// The second over the first, in each round, in order of size.
    ratios: Vec<f64>,
}

impl Comparison {
    /// The times of two in each round.
    pub(crate) fn new(plain: Vec<f64>, ours: Vec<f64>) -> Self {
        let pairs = plain.iter().zip(&ours);
        let mut ratios: Vec<_> = pairs.map(|(plain, ours)| ours / plain).collect();
        ratios.sort_by(f64::total_cmp);
        Self {
            plain: median(plain),
            ours: median(ours),
            ratios,
        }
    }

    /// The second over the first: the median of all rounds.
    pub(crate) fn ratio(&self) -> f64 {
        self.at(50)
    }

    /// The ratio below which so many in a hundred rounds lie.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        self.ratios[(self.ratios.len() - 1) * percent / 100]
    }
}

/// Has `plain` and `ours` take turns.
pub(crate) fn compare(
    runtime: &Handle,
    callers: Callers,
    draws: &Arc<DrawnIds>,
    plain: &Arc<impl ConnectionSource>,
    ours: &Arc<impl ConnectionSource>,
) -> Result<Comparison, BoxError> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let from = round * CALLS;
        // The second one finds the machine as the other has left it.
        let (a, b) = if round % 2 == 0 {
            let a = turn(runtime, callers, draws, from, plain)?;
            (a, turn(runtime, callers, draws, from, ours)?)
        } else {
            let b = turn(runtime, callers, draws, from, ours)?;
            (turn(runtime, callers, draws, from, plain)?, b)
        };
        if round >= WARM_UP {
            first.push(a);
            second.push(b);
        }
    }
    Ok(Comparison::new(first, second))
}

/// Turn number `round` of `subject` alone.
pub(crate) fn one_turn(
    runtime: &Handle,
    callers: Callers,
    draws: &Arc<DrawnIds>,
    round: usize,
    subject: &Arc<impl ConnectionSource>,
) -> Result<f64, BoxError> {
    turn(runtime, callers, draws, round * CALLS, subject)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// One turn of `subject`: nanoseconds per call, as a caller sees them.
fn turn(
    runtime: &Handle,
    callers: Callers,
    draws: &Arc<DrawnIds>,
    from: usize,
    subject: &Arc<impl ConnectionSource>,
) -> Result<f64, BoxError> {
    match callers {
        Callers::Threads(count) => Ok(on_threads(runtime, count, draws, from, subject)),
        Callers::Tasks(count, manners) => on_tasks(runtime, count, manners, draws, from, subject),
    }
}

fn on_threads(
    runtime: &Handle,
    count: usize,
    draws: &DrawnIds,
    from: usize,
    subject: &Arc<impl ConnectionSource>,
) -> f64 {
    let start = Barrier::new(count);
    let call = |caller: usize| {
        let from = from + caller * CALLS;
        start.wait();
        runtime.block_on(async {
            let began = Instant::now();
            for (tenant, id) in draws.calls(from, CALLS) {
                drop(black_box(subject.get(tenant, id).await));
            }
            began.elapsed().as_secs_f64()
        })
    };
    let call = &call;
    let took: f64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|caller| scope.spawn(move || call(caller)))
            .collect();
        let took = threads.into_iter().map(|it| it.join().unwrap_or(f64::NAN));
        took.sum()
    });
    nanoseconds(took, count * CALLS)
}

fn on_tasks(
    runtime: &Handle,
    count: usize,
    manners: Yielding,
    draws: &Arc<DrawnIds>,
    from: usize,
    subject: &Arc<impl ConnectionSource>,
) -> Result<f64, BoxError> {
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (draws, subject) = (Arc::clone(draws), Arc::clone(subject));
                tokio::spawn(async move {
                    for (tenant, id) in draws.calls(from, CALLS) {
                        let held = black_box(subject.get(tenant, id).await);
                        if matches!(manners, Yielding::Holding) {
                            yield_now().await;
                        }
                        drop(held);
                        if matches!(manners, Yielding::Between) {
                            yield_now().await;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        Ok(nanoseconds(began.elapsed().as_secs_f64(), count * CALLS))
    })
}

#[allow(clippy::cast_precision_loss, reason = "a small count")]
fn nanoseconds(seconds: f64, calls: usize) -> f64 {
    seconds * 1e9 / calls as f64
}
