//! `get` with metrics and tracing on, beside `get` without.
//!
//! What is installed holds for a whole process, so each way has one of its own, which takes a turn when it is told to.

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
    ids::Draws,
    rounds::{Callers, Compared, one_turn},
    subjects::{Ours, router},
};

/// Tells a process that it is one of those, and which.
const WAY: &str = "OBSERVED";
/// Tenants, each with an idle connection.
const TENANTS: usize = 1_000;
const ROUNDS: usize = 61;
const WARM_UP: usize = 5;

/// A process that takes turns. Its end is that of its input.
struct Turns {
    child: Child,
    go: ChildStdin,
    took: BufReader<ChildStdout>,
}

impl Turns {
    fn begin(way: &str) -> Result<Self, BoxError> {
        let mut child = Command::new(env::current_exe()?)
            .env(WAY, way)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (go, took) = pipes.ok_or("no pipes")?;
        let took = BufReader::new(took);
        Ok(Self { child, go, took })
    }

    /// Nanoseconds per call.
    fn take(&mut self) -> Result<f64, BoxError> {
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

/// Measures a subscriber that wants nothing, or takes everything and drops it, each with a recorder that drops everything.
pub(crate) fn compare(way: &str) -> Result<Compared, BoxError> {
    let (mut plain, mut observed) = (Turns::begin("not")?, Turns::begin(way)?);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let (a, b) = if round % 2 == 0 {
            let a = plain.take()?;
            (a, observed.take()?)
        } else {
            let b = observed.take()?;
            (plain.take()?, b)
        };
        if round >= WARM_UP {
            first.push(a);
            second.push(b);
        }
    }
    plain.end()?;
    observed.end()?;
    Ok(Compared::new(first, second))
}

/// Takes turns, if this is a process that is to; says whether it was.
pub(crate) fn serve() -> Result<bool, BoxError> {
    let Ok(way) = env::var(WAY) else {
        return Ok(false);
    };
    if way != "not" {
        let takes = way == "takes";
        tracing::subscriber::set_global_default(Dropping { takes })?;
        metrics::set_global_recorder(Dropped)?;
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let backend = Backend::default();
    let ours = runtime.block_on(router(&backend, TENANTS, TENANTS))?;
    let (ours, draws) = (Arc::new(Ours(ours)), Arc::new(Draws::uniform(TENANTS)));
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
struct Dropping {
    takes: bool,
}

impl Subscriber for Dropping {
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
struct Dropped;

impl Recorder for Dropped {
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

impl CounterFn for Dropped {
    fn increment(&self, _: u64) {}

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Dropped {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, _: f64) {}
}

impl HistogramFn for Dropped {
    fn record(&self, _: f64) {}
}
