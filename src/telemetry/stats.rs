//! Counters, and the snapshot of them that an operator reads.

use std::{
    ops::Deref,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    labels::{Path, Reason},
    metrics::Meters,
    status::{Status, WakeCount},
    top::Top,
};
use crate::{
    model::{error::Error, tenant::TenantId},
    sync::lock,
};

/// The counters of a router since it was built. They are relaxed atomics and cost next to nothing.
pub(crate) struct Stats {
    pub(crate) meters: Meters,
    /// The tenants with the most calls of `get`.
    pub(crate) busiest: Top<TenantId>,
    /// The tenants with the most failed calls.
    pub(crate) failing: Top<TenantId>,
    counts: Counts,
}

/// The counters that are plain numbers.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Connections reused in pools that no longer exist. A live pool counts its own, under a lock that it holds anyway.
    pub(crate) reused: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(super) gets_failed: AtomicU64,
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
    pub(crate) schema_migrated: AtomicU64,
    pub(crate) schema_failed: AtomicU64,
    wakes_by_request: WakeCounters,
    wakes_by_warm: WakeCounters,
    wakes_by_hint: WakeCounters,
    wakes_by_fleet: WakeCounters,
    wakes_by_migration: WakeCounters,
}

#[derive(Debug, Default)]
struct WakeCounters {
    started: AtomicU64,
    succeeded: AtomicU64,
    microseconds: AtomicU64,
}

/// Counts of the calls of a router's catalog, and of the look-ups that its cache answered.
#[derive(Debug)]
pub(crate) struct CatalogStats {
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) outages: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) changes: AtomicU64,
    // The time at which the catalog last reported its changes; at first, the time at which the router was built. Held
    // for a read or a write.
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

/// Adds one to `counter`.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Deref for Stats {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counts
    }
}

impl Stats {
    /// Creates the counters of the router called `name`.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            meters: Meters::new(name),
            busiest: Top::new(),
            failing: Top::new(),
            counts: Counts::default(),
        }
    }

    /// Counts a `get` that got a connection on `path`, after `waited`.
    pub(crate) fn got(&self, path: Path, waited: Duration) {
        if path != Path::Warm {
            self.meters.waited(waited);
        }
        match path {
            Path::Warm => {} // counted by each pool, under a lock that it holds anyway
            Path::Reopened => count(&self.gets_reopened),
            Path::Cold => count(&self.gets_cold),
            Path::Provisioned => count(&self.gets_provisioned),
        }
    }

    /// Counts a `get` that failed with `err`.
    pub(crate) fn failed(&self, err: &Error) {
        count(&self.gets_failed);
        self.meters.failed(err.kind());
    }

    /// Counts a call other than `get`, or a step after its `get`, that failed with `err`.
    pub(crate) fn broke(&self, err: &Error) {
        self.meters.failed(err.kind());
    }

    /// Counts the start of a wake for `reason`.
    pub(crate) fn wake_started(&self, reason: Reason) {
        count(&self.wakes(reason).started);
    }

    /// Counts a wake for `reason` that opened a connection after `took`.
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
            Reason::Migration => &self.wakes_by_migration,
        }
    }

    /// Returns everything counted so far. The caller fills in the fields for what is open now.
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
            wakes_by_migration: self.wakes_by_migration.snapshot(),
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
            schema_migrated: self.schema_migrated.load(Relaxed),
            schema_failed: self.schema_failed.load(Relaxed),
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
