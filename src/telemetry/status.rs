//! The snapshot of all counters that an operator reads.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// The wakes for one reason, and the time that they took.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WakeCount {
    /// Wakes begun.
    pub started: u64,
    /// Wakes that ended with an open connection.
    pub succeeded: u64,
    /// Total time of the successful wakes, each from its first attempt to the open connection.
    #[serde(rename = "total_seconds", serialize_with = "seconds")]
    pub total_time: Duration,
}

/// The tenants by the number of steps that their schemas lack. Counted by the last call of
/// [`Fleet::schema_versions`](crate::Fleet::schema_versions).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TenantsBehind {
    /// Tenants that lack no step.
    pub none: u64,
    /// Tenants that lack one.
    pub one: u64,
    /// Tenants that lack 2 to 5.
    pub two_to_five: u64,
    /// Tenants that lack more, or whose version is not known.
    pub more: u64,
    /// Tenants of any of these whose last migration has failed.
    pub failed: u64,
}

/// The campaign that this process runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CampaignCount {
    /// The number of the present wave, from 1 on.
    pub wave: u64,
    /// The number of waves.
    pub waves: u64,
    /// Tenants that were migrated in it.
    pub migrated: u64,
    /// Tenants on which a step has failed in it.
    pub failed: u64,
    /// Tenants that could not be reached in this wave yet.
    pub unreached: u64,
    /// Wakes by the campaign, with those that may have failed.
    pub woken: u64,
}

/// A snapshot of a router's state, and of its counters since it was built. Returned by
/// [`TenantRouter::status`](crate::TenantRouter::status), which sends nothing to any tenant's database.
///
/// Serde writes each field under its own name, with times in seconds: for a page of the application's own, behind a
/// login. It names no tenant and holds no secret.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Tenants that have a pool now.
    pub pools: u64,
    /// Connections open now, idle ones included.
    pub connections: u64,
    /// Idle connections in pools now.
    pub idle: u64,
    /// The setting `max_connections`.
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
    /// Calls of `get`, or of a method that begins with one, that got an idle connection.
    pub gets_warm: u64,
    /// Calls that waited for a connection to a database that was awake, and got one.
    pub gets_reopened: u64,
    /// Calls that waited for a database believed asleep, and got a connection.
    pub gets_cold: u64,
    /// Calls that waited for their tenant's database to be created or adopted, and got a connection.
    pub gets_provisioned: u64,
    /// Calls that ended in an error.
    pub gets_failed: u64,
    /// Look-ups of a tenant that had no pool or could not be reached. The catalog answered them, or its cached entry.
    pub lookups: u64,
    /// Databases created.
    pub provisioned: u64,
    /// Databases found again by name and adopted.
    pub adopted: u64,
    /// Tenants found at another endpoint, or with another credential, than the cached one.
    pub moved: u64,
    /// Connection attempts.
    pub dials: u64,
    /// Connections opened.
    pub opened: u64,
    /// Wakes of a database believed asleep, started by a caller's request without an earlier hint.
    pub wakes_by_request: WakeCount,
    /// Wakes of a database believed asleep, started by `warm`.
    pub wakes_by_warm: WakeCount,
    /// Wakes of a database believed asleep, started by `hint`. `WarmLayer` also hints, at the tenant of each request as
    /// soon as the request's head has arrived. Behind that layer, a wake that a request waits for is counted here and
    /// not in `wakes_by_request`; `gets_cold` and `gets_provisioned` count the requests that waited for a wake.
    pub wakes_by_hint: WakeCount,
    /// Wakes that prepare a database before its first use, or that another operation of the fleet started.
    pub wakes_by_fleet: WakeCount,
    /// Wakes that migrate a tenant's schema.
    pub wakes_by_migration: WakeCount,
    /// Calls of `hint` that did nothing because the budget for needless wakes was used up, or because only the
    /// connections of `wake_reserve` were left.
    pub hints_ignored: u64,
    /// Connections closed, for any reason.
    pub closed: u64,
    /// Connections that the other side closed.
    pub closed_by_peer: u64,
    /// Connections closed because they came back with a query running, a transaction open, or a session that could not
    /// be reset.
    pub discarded: u64,
    /// Connections closed because of their idle time or their age.
    pub closed_idle: u64,
    /// Connections closed because `max_connections` was reached and another tenant needed one more.
    pub closed_for_others: u64,
    /// Times a connection was held for longer than `warn_held_after`.
    pub held_too_long: u64,
    /// Pools dropped from the cache.
    pub evicted: u64,
    /// Refusals of a database that were remembered for a while.
    pub refused: u64,
    /// Times a `read` or `transaction` was run again.
    pub transactions_repeated: u64,
    /// Migrations of a tenant's schema that have applied a step. New databases do not count.
    pub schema_migrated: u64,
    /// Migrations that ended because a step failed, or because a database has other steps.
    pub schema_failed: u64,
    /// The tenants by the number of steps that they lack; all zero before the first call of `schema_versions`.
    pub behind: TenantsBehind,
    /// The campaign that this process runs; all zero if it runs none.
    pub campaign: CampaignCount,
    /// Calls of the catalog, of any kind. This field and the following ones are counted only by a router that
    /// provisions.
    pub catalog_calls: u64,
    /// Calls of the catalog that failed or took too long. Calls that were not made because the catalog was down do not
    /// count.
    pub catalog_failures: u64,
    /// Times the catalog went down: calls failed, and further calls were held back until one succeeded.
    pub catalog_outages: u64,
    /// Look-ups answered from a cached entry, also from one that says that there is no such tenant.
    pub catalog_hits: u64,
    /// Look-ups answered from an entry that was older than `catalog_ttl`, or known to have changed.
    pub catalog_stale: u64,
    /// Changes that the catalog reported for a tenant known here.
    pub catalog_changes: u64,
    /// Time since the catalog last reported its changes, or since the router was built. Later changes by other
    /// processes are not known here. Zero for a router that does not provision.
    #[serde(rename = "catalog_staleness_seconds", serialize_with = "seconds")]
    pub catalog_staleness: Duration,
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}
