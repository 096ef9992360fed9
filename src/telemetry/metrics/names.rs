//! Every metric, by name. The manual's page on telemetry has the same list, and a test compares them.

use metrics::Unit;

use crate::telemetry::status::Status;

/// The kind of a metric.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric and its description.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) about: &'static str,
}

const fn counter(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit: Unit::Count,
        about,
    }
}

const fn gauge(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        unit: Unit::Count,
        about,
    }
}

const fn histogram(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        about,
    }
}

pub(super) const CREATE_TIME: &str = "db.client.connection.create_time";
pub(super) const WAIT_TIME: &str = "db.client.connection.wait_time";
pub(super) const TIMEOUTS: &str = "db.client.connection.timeouts";
pub(super) const STAGE: &str = "tenantry.stage.duration";
pub(super) const WAKE: &str = "tenantry.wake.duration";
pub(super) const CATALOG: &str = "tenantry.catalog.duration";
pub(super) const API: &str = "tenantry.api.duration";
pub(super) const LIMITER: &str = "tenantry.api.limiter.wait_time";
pub(super) const ERRORS: &str = "tenantry.errors";
pub(super) const REFUSALS: &str = "tenantry.refusals";
pub(super) const TENANT_GETS: &str = "tenantry.tenant.gets";
pub(super) const TENANT_ERRORS: &str = "tenantry.tenant.errors";

/// All metrics.
pub(super) const METRICS: &[Metric] = &[
    gauge("db.client.connection.count", "Open connections, by state."),
    gauge(
        "db.client.connection.max",
        "Largest number of connections that is allowed.",
    ),
    gauge(
        "db.client.connection.pending_requests",
        "Callers that are waiting.",
    ),
    counter(TIMEOUTS, "Calls that ran out of time."),
    histogram(CREATE_TIME, "Time to open a connection."),
    histogram(
        WAIT_TIME,
        "Waiting time of callers that found no idle connection.",
    ),
    counter(
        "tenantry.gets",
        "Calls of get, by how they got a connection.",
    ),
    counter(ERRORS, "Failed calls, by the error's code."),
    histogram(STAGE, "Waiting time of callers, by stage."),
    counter("tenantry.wakes.started", "Started wakes, by reason."),
    counter(
        "tenantry.wakes.succeeded",
        "Wakes that ended with an open connection, by reason.",
    ),
    histogram(
        WAKE,
        "Time from the first attempt of a wake to the open connection, by reason.",
    ),
    counter("tenantry.hints.ignored", "Hints that were ignored."),
    gauge("tenantry.pools", "Tenants that have a pool."),
    gauge("tenantry.flights", "Lookups and creations under way."),
    gauge("tenantry.attempts", "Attempts to connect under way."),
    gauge(
        "tenantry.budget.used",
        "Connections counted against max_connections.",
    ),
    gauge(
        "tenantry.budget.waiting",
        "Attempts to connect that wait because max_connections is reached.",
    ),
    counter("tenantry.dials", "Attempts to connect."),
    counter("tenantry.connections.opened", "Connections opened."),
    counter(
        "tenantry.connections.closed",
        "Connections closed, by reason.",
    ),
    counter(
        "tenantry.connections.held_too_long",
        "Times a connection was held for longer than warn_held_after.",
    ),
    counter("tenantry.evictions", "Pools dropped from the cache."),
    counter(
        REFUSALS,
        "Refusals of a database that were remembered for a while, by the error's code.",
    ),
    counter(
        "tenantry.overloaded",
        "Callers rejected because too many were waiting.",
    ),
    counter(
        "tenantry.transactions.repeated",
        "Times a read or a transaction was run again.",
    ),
    counter(
        "tenantry.schema.migrations",
        "Migrations of a tenant's schema, by outcome.",
    ),
    gauge(
        "tenantry.schema.tenants",
        "Tenants by the number of steps that they lack, when schema_versions was called last.",
    ),
    gauge(
        "tenantry.schema.tenants.failed",
        "Tenants whose last migration has failed, when schema_versions was called last.",
    ),
    gauge(
        "tenantry.campaign.wave",
        "Present wave of the campaign that this process runs.",
    ),
    gauge(
        "tenantry.campaign.waves",
        "Number of waves of the campaign that this process runs.",
    ),
    gauge(
        "tenantry.campaign.tenants",
        "Tenants that the campaign has visited, by outcome.",
    ),
    gauge(
        "tenantry.campaign.wakes",
        "Wakes by the campaign that this process runs.",
    ),
    counter("tenantry.lookups", "Times a tenant was looked up."),
    counter(
        "tenantry.endpoints.moved",
        "Tenants found at another endpoint, or with another credential.",
    ),
    counter("tenantry.databases.created", "Databases created."),
    counter(
        "tenantry.databases.adopted",
        "Databases found by name and adopted.",
    ),
    counter("tenantry.catalog.calls", "Calls of the catalog."),
    counter(
        "tenantry.catalog.failures",
        "Calls of the catalog that failed.",
    ),
    counter("tenantry.catalog.outages", "Times the catalog went down."),
    counter(
        "tenantry.catalog.hits",
        "Lookups answered from a cached entry.",
    ),
    counter(
        "tenantry.catalog.stale_hits",
        "Lookups answered from an outdated entry.",
    ),
    counter(
        "tenantry.catalog.changes",
        "Changes that the catalog reported for a tenant known to this router.",
    ),
    Metric {
        name: "tenantry.catalog.staleness",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        about: "Time since the catalog last reported its changes.",
    },
    histogram(
        CATALOG,
        "Duration of calls of the catalog, by operation and outcome.",
    ),
    histogram(
        API,
        "Duration of calls of Neon's API, by operation and status.",
    ),
    histogram(
        LIMITER,
        "Time that calls of Neon's API waited for their turn under its rate limit.",
    ),
    gauge(
        TENANT_GETS,
        "Calls of get per minute, for each named tenant.",
    ),
    gauge(
        TENANT_ERRORS,
        "Failed calls of get per minute, for each named tenant.",
    ),
];

pub(super) type CountOf = fn(&Status) -> u64;
pub(super) type ValueOf = fn(&Status) -> f64;
type Labels = &'static [(&'static str, &'static str)];

/// Counters that are copied from a [`Status`].
pub(super) const COUNTERS: &[(&str, Labels, CountOf)] = &[
    ("tenantry.gets", &[("path", "warm")], |it| it.gets_warm),
    ("tenantry.gets", &[("path", "reopened")], |it| {
        it.gets_reopened
    }),
    ("tenantry.gets", &[("path", "cold")], |it| it.gets_cold),
    ("tenantry.gets", &[("path", "provisioned")], |it| {
        it.gets_provisioned
    }),
    ("tenantry.gets", &[("path", "failed")], |it| it.gets_failed),
    ("tenantry.wakes.started", &[("reason", "request")], |it| {
        it.wakes_by_request.started
    }),
    ("tenantry.wakes.started", &[("reason", "warm")], |it| {
        it.wakes_by_warm.started
    }),
    ("tenantry.wakes.started", &[("reason", "hint")], |it| {
        it.wakes_by_hint.started
    }),
    ("tenantry.wakes.started", &[("reason", "fleet")], |it| {
        it.wakes_by_fleet.started
    }),
    ("tenantry.wakes.started", &[("reason", "migration")], |it| {
        it.wakes_by_migration.started
    }),
    ("tenantry.wakes.succeeded", &[("reason", "request")], |it| {
        it.wakes_by_request.succeeded
    }),
    ("tenantry.wakes.succeeded", &[("reason", "warm")], |it| {
        it.wakes_by_warm.succeeded
    }),
    ("tenantry.wakes.succeeded", &[("reason", "hint")], |it| {
        it.wakes_by_hint.succeeded
    }),
    ("tenantry.wakes.succeeded", &[("reason", "fleet")], |it| {
        it.wakes_by_fleet.succeeded
    }),
    (
        "tenantry.wakes.succeeded",
        &[("reason", "migration")],
        |it| it.wakes_by_migration.succeeded,
    ),
    ("tenantry.hints.ignored", &[], |it| it.hints_ignored),
    ("tenantry.dials", &[], |it| it.dials),
    ("tenantry.connections.opened", &[], |it| it.opened),
    ("tenantry.connections.closed", &[("reason", "peer")], |it| {
        it.closed_by_peer
    }),
    ("tenantry.connections.closed", &[("reason", "idle")], |it| {
        it.closed_idle
    }),
    ("tenantry.connections.closed", &[("reason", "busy")], |it| {
        it.discarded
    }),
    (
        "tenantry.connections.closed",
        &[("reason", "others")],
        |it| it.closed_for_others,
    ),
    ("tenantry.connections.closed", &[("reason", "rest")], |it| {
        let told = it.closed_by_peer + it.closed_idle + it.discarded + it.closed_for_others;
        it.closed.saturating_sub(told)
    }),
    ("tenantry.connections.held_too_long", &[], |it| {
        it.held_too_long
    }),
    ("tenantry.evictions", &[], |it| it.evicted),
    ("tenantry.overloaded", &[], |it| it.overloaded),
    ("tenantry.transactions.repeated", &[], |it| {
        it.transactions_repeated
    }),
    (
        "tenantry.schema.migrations",
        &[("outcome", "migrated")],
        |it| it.schema_migrated,
    ),
    (
        "tenantry.schema.migrations",
        &[("outcome", "failed")],
        |it| it.schema_failed,
    ),
    ("tenantry.lookups", &[], |it| it.lookups),
    ("tenantry.endpoints.moved", &[], |it| it.moved),
    ("tenantry.databases.created", &[], |it| it.provisioned),
    ("tenantry.databases.adopted", &[], |it| it.adopted),
    ("tenantry.catalog.calls", &[], |it| it.catalog_calls),
    ("tenantry.catalog.failures", &[], |it| it.catalog_failures),
    ("tenantry.catalog.outages", &[], |it| it.catalog_outages),
    ("tenantry.catalog.hits", &[], |it| it.catalog_hits),
    ("tenantry.catalog.stale_hits", &[], |it| it.catalog_stale),
    ("tenantry.catalog.changes", &[], |it| it.catalog_changes),
];

/// Gauges that are copied from a [`Status`].
pub(super) const GAUGES: &[(&str, Labels, ValueOf)] = &[
    (
        "db.client.connection.count",
        &[("db.client.connection.state", "idle")],
        |it| number(it.idle),
    ),
    (
        "db.client.connection.count",
        &[("db.client.connection.state", "used")],
        |it| number(it.connections.saturating_sub(it.idle)),
    ),
    ("db.client.connection.max", &[], |it| {
        number(it.max_connections)
    }),
    ("db.client.connection.pending_requests", &[], |it| {
        number(it.waiting)
    }),
    ("tenantry.pools", &[], |it| number(it.pools)),
    ("tenantry.flights", &[], |it| number(it.flights)),
    ("tenantry.attempts", &[], |it| number(it.attempts)),
    ("tenantry.budget.used", &[], |it| number(it.budget_used)),
    ("tenantry.budget.waiting", &[], |it| {
        number(it.budget_waiting)
    }),
    ("tenantry.schema.tenants", &[("behind", "0")], |it| {
        number(it.behind.none)
    }),
    ("tenantry.schema.tenants", &[("behind", "1")], |it| {
        number(it.behind.one)
    }),
    ("tenantry.schema.tenants", &[("behind", "2_to_5")], |it| {
        number(it.behind.two_to_five)
    }),
    ("tenantry.schema.tenants", &[("behind", "more")], |it| {
        number(it.behind.more)
    }),
    ("tenantry.schema.tenants.failed", &[], |it| {
        number(it.behind.failed)
    }),
    ("tenantry.campaign.wave", &[], |it| number(it.campaign.wave)),
    ("tenantry.campaign.waves", &[], |it| {
        number(it.campaign.waves)
    }),
    (
        "tenantry.campaign.tenants",
        &[("outcome", "migrated")],
        |it| number(it.campaign.migrated),
    ),
    (
        "tenantry.campaign.tenants",
        &[("outcome", "failed")],
        |it| number(it.campaign.failed),
    ),
    (
        "tenantry.campaign.tenants",
        &[("outcome", "unreached")],
        |it| number(it.campaign.unreached),
    ),
    ("tenantry.campaign.wakes", &[], |it| {
        number(it.campaign.woken)
    }),
    ("tenantry.catalog.staleness", &[], |it| {
        it.catalog_staleness.as_secs_f64()
    }),
];

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53, and a gauge takes nothing else"
)]
fn number(count: u64) -> f64 {
    count as f64
}
