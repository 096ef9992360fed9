//! `get` with metrics and tracing on, beside `get` without.
//!
//! A recorder and a subscriber hold for a whole process, so each way has one of its own, which takes a turn when it is
//! told to.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin, stdout},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tenantry::BoxError;
use tokio::runtime::Builder;
use tracing::{Event, Subscriber, span};

use crate::{
    backend::Backend,
    ids::DrawnIds,
    rounds::{Callers, Comparison, one_turn},
    subjects::{TenantryRouter, router},
};

/// Tells a process that it is one of those, and which.
const MODE_VARIABLE: &str = "OBSERVED";
/// Tenants, each with an idle connection.
const TENANTS: usize = 1_000;
const ROUNDS: usize = 61;
const WARM_UP: usize = 5;

/// A process that takes turns. Its end is that of its input.
struct MeasuringProcess {
    child: Child,
    go: ChildStdin,
    took: BufReader<ChildStdout>,
}

impl MeasuringProcess {
    fn start(way: &str) -> Result<Self, BoxError> {
        let mut child = Command::new(env::current_exe()?)
            .env(MODE_VARIABLE, way)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (go, took) = pipes.ok_or("no pipes")?;
        let took = BufReader::new(took);
        Ok(Self { child, go, took })
    }

    /// Nanoseconds per call.
    fn run_turn(&mut self) -> Result<f64, BoxError> {
        writeln!(self.go)?;
        let mut line = String::new();
        self.took.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }

    fn end(mut self) -> Result<(), BoxError> {
        drop(self.go);
        let ended = self.child.wait()?;
        ended
            .success()
            .then_some(())
            .ok_or("a turn was not as it should be".into())
    }
}

/// Measures a subscriber that wants nothing, or takes everything and drops it, each with a recorder that drops
/// everything.
pub(crate) fn compare(way: &str) -> Result<Comparison, BoxError> {
    let (mut plain, mut observed) = (
        MeasuringProcess::start("not")?,
        MeasuringProcess::start(way)?,
    );
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let (a, b) = if round % 2 == 0 {
            let a = plain.run_turn()?;
            (a, observed.run_turn()?)
        } else {
            let b = observed.run_turn()?;
            (plain.run_turn()?, b)
        };
        if round >= WARM_UP {
            first.push(a);
            second.push(b);
        }
    }
    plain.end()?;
    observed.end()?;
    Ok(Comparison::new(first, second))
}

/// Takes turns, if this is a process that is to; says whether it was.
pub(crate) fn serve() -> Result<bool, BoxError> {
    let Ok(way) = env::var(MODE_VARIABLE) else {
        return Ok(false);
    };
    if way != "not" {
        let takes = way == "takes";
        tracing::subscriber::set_global_default(NoopSubscriber { takes })?;
        metrics::set_global_recorder(NoopRecorder)?;
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let backend = Backend::default();
    let ours = runtime.block_on(router(&backend, TENANTS, TENANTS))?;
    let (ours, draws) = (
        Arc::new(TenantryRouter(ours)),
        Arc::new(DrawnIds::uniform(TENANTS)),
    );
    for (round, go) in stdin().lines().enumerate() {
        go?;
        let took = one_turn(runtime.handle(), Callers::Threads(1), &draws, round, &ours)?;
        writeln!(stdout(), "{took}")?;
    }
    if (way == "takes") != (SPANS.load(Relaxed) > 0) {
        return Err("what was to be observed was not, or the other way round".into());
    }
    Ok(true)
}

/// Spans that were taken: proof that there were some.
static SPANS: AtomicU64 = AtomicU64::new(0);

/// A subscriber that drops everything: it wants none of it, or takes it first.
struct NoopSubscriber {
    takes: bool,
}

impl Subscriber for NoopSubscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        self.takes
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        SPANS.fetch_add(1, Relaxed);
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// A recorder of metrics that drops everything, though its handles are called.
struct NoopRecorder;

impl Recorder for NoopRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Self))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Self))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Self))
    }
}

impl CounterFn for NoopRecorder {
    fn increment(&self, _: u64) {}

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for NoopRecorder {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, _: f64) {}
}

impl HistogramFn for NoopRecorder {
    fn record(&self, _: f64) {}
}
