//! The snapshot of all counters that an operator reads.

use std::time::Duration;

use serde::{Serialize, Serializer};

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
