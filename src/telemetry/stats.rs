//! Counters, and the snapshot of them that an operator reads.

use std::{
    ops::Deref,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{metrics::Meters, top::Top};
use crate::{
    model::{error::Error, tenant::TenantId},
    sync::retry::lock,
};

/// On whose account a database is woken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// A caller wants a connection.
    Request,
    /// The application expects one to be wanted.
    Warm,
    /// The application guesses that one may be wanted.
    Hint,
    /// A database is prepared before anybody uses it.
    Fleet,
}

impl Reason {
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    pub(crate) const ALL: [Self; 4] = [Self::Request, Self::Warm, Self::Hint, Self::Fleet];

    /// As it is written in metrics, spans and explanations.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Warm => "warm",
            Self::Hint => "hint",
            Self::Fleet => "fleet",
        }
    }
}

/// How a call of `get` came to its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    /// One was idle.
    Warm,
    /// It waited for one, of a database that was awake.
    Reopened,
    /// It waited for a database believed asleep.
    Cold,
    /// It waited for the database to be created, or found again.
    Provisioned,
}

impl Path {
    /// As it is written in metrics and spans.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Reopened => "reopened",
            Self::Cold => "cold",
            Self::Provisioned => "provisioned",
        }
    }
}

/// Counts of everything a router has done since it was built. Written with relaxed atomics, so it costs nothing.
pub(crate) struct Stats {
    pub(crate) meters: Meters,
    /// Who calls `get` most often, and for whom it fails most often.
    pub(crate) busiest: Top<TenantId>,
    pub(crate) failing: Top<TenantId>,
    counts: Counts,
}

/// The plain ones.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By pools that are gone; each counts its own, where it costs nothing.
    pub(crate) reused: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) gets_failed: AtomicU64,
    gets_reopened: AtomicU64,
    gets_cold: AtomicU64,
    gets_provisioned: AtomicU64,
    pub(crate) lookups: AtomicU64,
    pub(crate) provisioned: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) dials: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) closed_by_peer: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) closed_idle: AtomicU64,
    pub(crate) held_too_long: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) hints_ignored: AtomicU64,
    pub(crate) closed_for_others: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) transactions_repeated: AtomicU64,
    wakes_by_request: WakeCounters,
    wakes_by_warm: WakeCounters,
    wakes_by_hint: WakeCounters,
    wakes_by_fleet: WakeCounters,
}

#[derive(Debug, Default)]
struct WakeCounters {
    started: AtomicU64,
    succeeded: AtomicU64,
    microseconds: AtomicU64,
}

/// Counts of what a router has asked its catalog, and of what it did not have to.
#[derive(Debug)]
pub(crate) struct CatalogStats {
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) outages: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) changes: AtomicU64,
    // When it last said what had changed; at first, when anybody began to ask. Held for a look.
    pub(crate) heard: Mutex<Instant>,
}

impl Default for CatalogStats {
    fn default() -> Self {
        Self {
            calls: AtomicU64::default(),
            failures: AtomicU64::default(),
            outages: AtomicU64::default(),
            hits: AtomicU64::default(),
            stale: AtomicU64::default(),
            changes: AtomicU64::default(),
            heard: Mutex::new(Instant::now()),
        }
    }
}

impl CatalogStats {
    /// Writes these counts into `status`.
    pub(crate) fn fill(&self, status: &mut Status) {
        status.catalog_calls = self.calls.load(Relaxed);
        status.catalog_failures = self.failures.load(Relaxed);
        status.catalog_outages = self.outages.load(Relaxed);
        status.catalog_hits = self.hits.load(Relaxed);
        status.catalog_stale = self.stale.load(Relaxed);
        status.catalog_changes = self.changes.load(Relaxed);
        status.catalog_staleness = lock(&self.heard).elapsed();
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// How often databases were woken for one reason, and how long that took.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WakeCount {
    /// Wakes begun.
    pub started: u64,
    /// Wakes that ended with an open connection.
    pub succeeded: u64,
    /// Time that the successful ones took, added up. Of one attempt or several: from the first to the open connection.
    #[serde(rename = "total_seconds", serialize_with = "seconds")]
    pub total_time: Duration,
}

/// A snapshot of what a router holds and has done since it was built. From
/// [`TenantRouter::status`](crate::TenantRouter::status), which asks no tenant anything.
///
/// As serde writes it, each field has its own name, times in seconds: for a page of the application's own, behind a login. It
/// names no tenant and holds no secret.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Tenants that have a pool now.
    pub pools: u64,
    /// Connections open now, idle ones included.
    pub connections: u64,
    /// Connections that lie idle in pools now.
    pub idle: u64,
    /// `max_connections`.
    pub max_connections: u64,
    /// Look-ups and creations under way now.
    pub flights: u64,
    /// Attempts to connect under way now, wakes included.
    pub attempts: u64,
    /// Connections counted against `max_connections` now: open, being opened, and being closed.
    pub budget_used: u64,
    /// Attempts to connect that wait now because `max_connections` is reached.
    pub budget_waiting: u64,
    /// Callers that wait now: for a look-up, a creation, a wake or a connection.
    pub waiting: u64,
    /// Callers turned away with `ErrorKind::Overloaded` because too many waited already.
    pub overloaded: u64,
    /// Calls of `get`, or of what begins with one, answered with a connection that was idle.
    pub gets_warm: u64,
    /// Those that waited for a connection to a database that was awake, and got one.
    pub gets_reopened: u64,
    /// Those that waited for a database believed asleep, and got a connection.
    pub gets_cold: u64,
    /// Those that waited for their tenant's database to be created or adopted, and got a connection.
    pub gets_provisioned: u64,
    /// Those that ended in an error.
    pub gets_failed: u64,
    /// Times a tenant was looked up: one without a pool, or one that could not be reached. Answered by the catalog, or
    /// from what was read of it before.
    pub lookups: u64,
    /// Databases created.
    pub provisioned: u64,
    /// Databases found again by name and adopted.
    pub adopted: u64,
    /// Tenants found at another endpoint, or with another credential, than the one that was cached.
    pub moved: u64,
    /// Connection attempts.
    pub dials: u64,
    /// Connections opened.
    pub opened: u64,
    /// Wakes of a database believed asleep, started by a caller's request that no hint came before.
    pub wakes_by_request: WakeCount,
    /// Wakes of a database believed asleep, started by `warm`.
    pub wakes_by_warm: WakeCount,
    /// Wakes of a database believed asleep, started by `hint`: also by `WarmLayer`, which hints at the tenant of each request
    /// as soon as its head is there. Behind that layer the wake that a request waits for is counted here and not in
    /// `wakes_by_request`; how many requests waited for one, `gets_cold` and `gets_provisioned` say.
    pub wakes_by_hint: WakeCount,
    /// Wakes to prepare a database before anybody uses it, or by another operation of the fleet.
    pub wakes_by_fleet: WakeCount,
    /// Calls of `hint` that did nothing because the budget for needless wakes was used up.
    pub hints_ignored: u64,
    /// Connections closed, for whatever reason.
    pub closed: u64,
    /// Connections that the other side closed.
    pub closed_by_peer: u64,
    /// Connections closed because they came back with a query running, a transaction open, or a session that could not be
    /// reset.
    pub discarded: u64,
    /// Connections closed because they were idle, or had been open, for long enough.
    pub closed_idle: u64,
    /// Connections closed because `max_connections` was reached and others had more need of one.
    pub closed_for_others: u64,
    /// Times a connection was held for longer than `warn_held_after`.
    pub held_too_long: u64,
    /// Pools dropped from the cache.
    pub evicted: u64,
    /// Times a database could not be had, which was remembered for a while.
    pub refused: u64,
    /// Times a `read` or `transaction` was run again.
    pub transactions_repeated: u64,
    /// Calls of the catalog, of any kind. This and the following count a router that provisions.
    pub catalog_calls: u64,
    /// Calls of the catalog that failed or took too long. Those that were not made because it was down are not counted.
    pub catalog_failures: u64,
    /// Times the catalog went down: calls failed, and were not made any more until one succeeded.
    pub catalog_outages: u64,
    /// Look-ups answered from what was read of the catalog before, also that there is no such tenant.
    pub catalog_hits: u64,
    /// Those among them that were answered from what was older than `catalog_ttl`, or known to have changed.
    pub catalog_stale: u64,
    /// Changes, heard of from the catalog, that concerned a tenant known here.
    pub catalog_changes: u64,
    /// Time since the catalog last said what had changed, or since the router was built: what others did since then is not
    /// known here. Zero without a catalog of ours.
    #[serde(rename = "catalog_staleness_seconds", serialize_with = "seconds")]
    pub catalog_staleness: Duration,
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

impl Deref for Stats {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counts
    }
}

impl Stats {
    /// Those of a router of that name.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            meters: Meters::new(name),
            busiest: Top::new(),
            failing: Top::new(),
            counts: Counts::default(),
        }
    }

    /// A call of `get` has its connection, for which it waited.
    pub(crate) fn got(&self, path: Path, waited: Duration) {
        if path != Path::Warm {
            self.meters.waited(waited);
        }
        match path {
            Path::Warm => {} // counted where it is free: by each pool
            Path::Reopened => count(&self.gets_reopened),
            Path::Cold => count(&self.gets_cold),
            Path::Provisioned => count(&self.gets_provisioned),
        }
    }

    /// A call of `get` has ended in `err`.
    pub(crate) fn failed(&self, err: &Error) {
        count(&self.gets_failed);
        self.meters.failed(err.kind());
    }

    /// A call of another kind, or what came after its `get`, has ended in `err`.
    pub(crate) fn broke(&self, err: &Error) {
        self.meters.failed(err.kind());
    }

    /// A wake for `reason` begins.
    pub(crate) fn wake_started(&self, reason: Reason) {
        count(&self.wakes(reason).started);
    }

    /// A wake for `reason` has ended with an open connection, after `took`.
    pub(crate) fn wake_succeeded(&self, reason: Reason, took: Duration) {
        let counters = self.wakes(reason);
        count(&counters.succeeded);
        self.meters.woke(reason, took);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        counters.microseconds.fetch_add(took, Relaxed);
    }

    fn wakes(&self, reason: Reason) -> &WakeCounters {
        match reason {
            Reason::Request => &self.wakes_by_request,
            Reason::Warm => &self.wakes_by_warm,
            Reason::Hint => &self.wakes_by_hint,
            Reason::Fleet => &self.wakes_by_fleet,
        }
    }

    /// Everything counted so far; what is open now is for the caller to fill in.
    pub(crate) fn snapshot(&self) -> Status {
        Status {
            gets_reopened: self.gets_reopened.load(Relaxed),
            gets_cold: self.gets_cold.load(Relaxed),
            gets_provisioned: self.gets_provisioned.load(Relaxed),
            gets_failed: self.gets_failed.load(Relaxed),
            lookups: self.lookups.load(Relaxed),
            provisioned: self.provisioned.load(Relaxed),
            adopted: self.adopted.load(Relaxed),
            moved: self.moved.load(Relaxed),
            dials: self.dials.load(Relaxed),
            opened: self.opened.load(Relaxed),
            wakes_by_request: self.wakes_by_request.snapshot(),
            wakes_by_warm: self.wakes_by_warm.snapshot(),
            wakes_by_hint: self.wakes_by_hint.snapshot(),
            wakes_by_fleet: self.wakes_by_fleet.snapshot(),
            hints_ignored: self.hints_ignored.load(Relaxed),
            closed: self.closed.load(Relaxed),
            closed_by_peer: self.closed_by_peer.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
            closed_for_others: self.closed_for_others.load(Relaxed),
            overloaded: self.overloaded.load(Relaxed),
            closed_idle: self.closed_idle.load(Relaxed),
            held_too_long: self.held_too_long.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            refused: self.refused.load(Relaxed),
            transactions_repeated: self.transactions_repeated.load(Relaxed),
            ..Status::default()
        }
    }
}

impl WakeCounters {
    fn snapshot(&self) -> WakeCount {
        WakeCount {
            started: self.started.load(Relaxed),
            succeeded: self.succeeded.load(Relaxed),
            total_time: Duration::from_micros(self.microseconds.load(Relaxed)),
        }
    }
}
