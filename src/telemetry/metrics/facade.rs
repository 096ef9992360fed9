//! Handles to the metrics, taken once, and the functions that write to them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, Label, SharedString, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use super::names::{self, CountOf, Kind, METRICS, ValueOf};
use crate::{
    model::error::{ErrorKind, Stage},
    telemetry::{labels::Reason, status::Status},
};

/// Label of each metric of a router, after OpenTelemetry's semantic conventions.
const POOL_NAME: &str = "db.client.connection.pool.name";
/// Values of the label `outcome`, indexed by `usize::from(ok)`.
const OUTCOMES: [&str; 2] = ["error", "ok"];
/// Label for an error's code, after the same conventions.
const ERROR_TYPE: &str = "error.type";

/// The metrics of one router, at the recorder that was installed when it was built.
pub(crate) struct Meters {
    router: SharedString,
    counters: Vec<(Counter, CountOf)>,
    gauges: Vec<(Gauge, ValueOf)>,
    /// Histograms by stage: failed, succeeded.
    stages: Vec<[Histogram; 2]>,
    wakes: Vec<Histogram>,
    wait_time: Histogram,
    create_time: Histogram,
    timeouts: Counter,
    /// Counters by the error's code.
    errors: HashMap<&'static str, Counter>,
    refusals: HashMap<&'static str, Counter>,
}

impl Meters {
    /// Creates the metrics of the router called `name`.
    pub(in crate::telemetry) fn new(name: &str) -> Self {
        describe();
        let router = SharedString::from(Arc::<str>::from(name));
        let with = |labels: &[(&'static str, &'static str)]| labelled(&router, labels);
        let counters = names::COUNTERS.iter();
        let gauges = names::GAUGES.iter();
        Self {
            counters: counters
                .map(|(name, labels, value)| (counter!(*name, with(labels)), *value))
                .collect(),
            gauges: gauges
                .map(|(name, labels, value)| (gauge!(*name, with(labels)), *value))
                .collect(),
            stages: Stage::ALL
                .map(|stage| {
                    OUTCOMES.map(|outcome| {
                        let labels = [("stage", stage.code()), ("outcome", outcome)];
                        histogram!(names::STAGE, with(&labels))
                    })
                })
                .into(),
            wakes: Reason::ALL
                .map(|reason| histogram!(names::WAKE, with(&[("reason", reason.name())])))
                .into(),
            wait_time: histogram!(names::WAIT_TIME, with(&[])),
            create_time: histogram!(names::CREATE_TIME, with(&[])),
            timeouts: counter!(names::TIMEOUTS, with(&[])),
            errors: by_code(|labels| counter!(names::ERRORS, with(labels))),
            refusals: by_code(|labels| counter!(names::REFUSALS, with(labels))),
            router,
        }
    }

    /// Copies the counters and gauges of `status`.
    pub(crate) fn record(&self, status: &Status) {
        for (counter, value) in &self.counters {
            counter.absolute(value(status));
        }
        for (gauge, value) in &self.gauges {
            gauge.set(value(status));
        }
    }

    /// Sets the rates per minute of a tenant that is shown by name, or of all other tenants together as `_other`.
    pub(crate) fn tenant(&self, tenant: &str, gets: f64, errors: f64) {
        for (name, value) in [(names::TENANT_GETS, gets), (names::TENANT_ERRORS, errors)] {
            let mut labels = labelled(&self.router, &[]);
            labels.push(Label::new("tenant", tenant.to_owned()));
            gauge!(name, labels).set(value);
        }
    }

    /// Records that a caller has waited for `stage`.
    pub(crate) fn stage(&self, stage: Stage, ok: bool, took: Duration) {
        self.stages[stage as usize][usize::from(ok)].record(took);
    }

    /// Records the time after which a caller got its connection.
    pub(in crate::telemetry) fn waited(&self, took: Duration) {
        self.wait_time.record(took);
    }

    /// Records a wake that opened a connection.
    pub(in crate::telemetry) fn woke(&self, reason: Reason, took: Duration) {
        self.wakes[reason as usize].record(took);
    }

    /// Records the opening of a connection.
    pub(crate) fn connected(&self, took: Duration) {
        self.create_time.record(took);
    }

    /// Counts a call that failed.
    pub(in crate::telemetry) fn failed(&self, kind: ErrorKind) {
        if let Some(counter) = self.errors.get(kind.code()) {
            counter.increment(1);
        }
        let after = matches!(kind, ErrorKind::Timeout(Stage::Query | Stage::Commit));
        if matches!(kind, ErrorKind::Timeout(_)) && !after {
            self.timeouts.increment(1);
        }
    }

    /// Counts a refusal that is remembered.
    pub(crate) fn refused(&self, kind: ErrorKind) {
        if let Some(counter) = self.refusals.get(kind.code()) {
            counter.increment(1);
        }
    }
}

/// The metrics of one catalog, at the recorder that was installed when the router was built.
pub(crate) struct CatalogMeters {
    /// Histograms by operation: failed, succeeded.
    calls: HashMap<&'static str, [Histogram; 2]>,
}

impl CatalogMeters {
    pub(crate) fn new(operations: &[&'static str]) -> Self {
        let of = |operation: &&'static str| {
            let calls = OUTCOMES.map(|outcome| {
                histogram!(names::CATALOG, "operation" => *operation, "outcome" => outcome)
            });
            (*operation, calls)
        };
        Self {
            calls: operations.iter().map(of).collect(),
        }
    }

    /// Records a call of the catalog.
    pub(crate) fn answered(&self, operation: &'static str, ok: bool, took: Duration) {
        if let Some(calls) = self.calls.get(operation) {
            calls[usize::from(ok)].record(took);
        }
    }
}

fn by_code(
    counter: impl Fn(&[(&'static str, &'static str)]) -> Counter,
) -> HashMap<&'static str, Counter> {
    let codes = ErrorKind::ALL.iter().map(|kind| kind.code());
    codes
        .map(|code| (code, counter(&[(ERROR_TYPE, code)])))
        .collect()
}

// The metrics of Neon's API belong to no router: a client may serve several routers, and is built before them. They go
// to the recorder that is installed at the time.

/// Records a call of Neon's API and the status of its answer, if there was one.
pub(crate) fn answered(operation: &'static str, status: Option<u16>, took: Duration) {
    let status = status.map_or(SharedString::from("none"), |it| it.to_string().into());
    histogram!(names::API, "operation" => operation, "http.response.status_code" => status)
        .record(took);
}

/// Records the time that a call of Neon's API waited for its turn.
pub(crate) fn limited(took: Duration) {
    histogram!(names::LIMITER).record(took);
}

fn labelled(router: &SharedString, labels: &[(&'static str, &'static str)]) -> Vec<Label> {
    let labels = labels.iter().map(|(name, value)| Label::new(*name, *value));
    std::iter::once(Label::new(POOL_NAME, router.clone()))
        .chain(labels)
        .collect()
}

/// Gives the recorder the description of each metric.
fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.about),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.about),
            Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.about),
        }
    }
}
