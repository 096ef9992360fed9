//! Counters, and the snapshot of them that an operator reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of everything a router has done since it was built. Written with relaxed atomics, so it costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) reused: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) waited: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) lookups: AtomicU64,
    pub(crate) provisioned: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) dials: AtomicU64,
    pub(crate) wakes_by_request: AtomicU64,
    pub(crate) wakes_by_warm: AtomicU64,
    pub(crate) closed_by_peer: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) evicted: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// A snapshot of what a router holds and has done since it was built. From
/// [`TenantRouter::status`](crate::TenantRouter::status), which asks no tenant anything.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Tenants that have a pool now.
    pub pools: u64,
    /// Connections open now, idle ones included.
    pub connections: u64,
    /// Look-ups and creations under way now.
    pub flights: u64,
    /// Calls of `get` answered with a connection that was idle.
    pub reused: u64,
    /// Calls of `get` that waited for a connection and got one.
    pub waited: u64,
    /// Calls of `get` that ended in an error.
    pub failed: u64,
    /// Times the catalog was asked for a tenant.
    pub lookups: u64,
    /// Databases created.
    pub provisioned: u64,
    /// Databases found again by name and adopted.
    pub adopted: u64,
    /// Connection attempts.
    pub dials: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connection attempts to a tenant believed asleep, started by a caller's request.
    pub wakes_by_request: u64,
    /// Connection attempts to a tenant believed asleep, started by `warm`.
    pub wakes_by_warm: u64,
    /// Connections that the other side closed.
    pub closed_by_peer: u64,
    /// Connections closed because they came back with a query running or a transaction open.
    pub discarded: u64,
    /// Pools dropped from the cache.
    pub evicted: u64,
}

impl Stats {
    /// Everything counted so far; what is open now is for the caller to fill in.
    pub(crate) fn snapshot(&self) -> Status {
        Status {
            pools: 0,
            connections: 0,
            flights: 0,
            reused: self.reused.load(Relaxed),
            waited: self.waited.load(Relaxed),
            failed: self.failed.load(Relaxed),
            lookups: self.lookups.load(Relaxed),
            provisioned: self.provisioned.load(Relaxed),
            adopted: self.adopted.load(Relaxed),
            dials: self.dials.load(Relaxed),
            opened: self.opened.load(Relaxed),
            wakes_by_request: self.wakes_by_request.load(Relaxed),
            wakes_by_warm: self.wakes_by_warm.load(Relaxed),
            closed_by_peer: self.closed_by_peer.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
        }
    }
}
