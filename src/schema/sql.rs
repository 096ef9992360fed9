//! The text of each statement of a run. All are sent as simple queries, and answer with one column of text at most.

use std::time::Duration;

use super::step::{Checksum, Step, to_hex};

/// The key of the lock: that of the [prepare hook](crate::Provisioner::prepare), so that both exclude each other.
const KEY: i64 = i64::from_be_bytes(*b"tenantry");

/// Sets a new session up.
pub(super) const SETUP: &str = "SET application_name = 'tenantry-schema'; SET client_min_messages = warning; \
    SET standard_conforming_strings = on; SET idle_in_transaction_session_timeout = '60s'; \
    SET statement_timeout = '60s'; SET lock_timeout = 0";

/// Undoes what a step has left in the session. [`SETUP`] follows.
pub(super) const RESET: &str =
    "ROLLBACK; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; ";

/// Makes the server end a statement soon after its client has gone. Not every server can do that.
pub(super) const NOTICE_DEATH: &str = "SET client_connection_check_interval = '2s'";

/// Lists the rows of the history.
pub(super) const READ: &str = "SELECT coalesce(string_agg(version || ':' || encode(checksum, 'hex') || ':' || \
    done::int, ',' ORDER BY version), '') FROM tenantry.schema_history";

/// Says whether the schema of the history is there.
pub(super) const HAS_SCHEMA: &str = "SELECT (to_regnamespace('tenantry') IS NOT NULL)::text";

pub(super) const CREATE_SCHEMA: &str = "CREATE SCHEMA tenantry; ";

pub(super) const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS tenantry.schema_history (\
    version bigint PRIMARY KEY, name text NOT NULL, checksum bytea NOT NULL, contract boolean NOT NULL DEFAULT false, \
    done boolean NOT NULL DEFAULT true, before text, \
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), took interval, by text); \
    COMMENT ON TABLE tenantry.schema_history IS 'steps of the application''s schema, written by tenantry'; ";

/// Says whether the database has a table of the application's.
pub(super) const HAS_TABLE: &str = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
    WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema', 'tenantry') \
    AND nspname NOT LIKE 'pg\\_toast%' AND nspname NOT LIKE 'pg\\_temp%')::text";

pub(super) const HAS_REFINERY: &str =
    "SELECT (to_regclass('refinery_schema_history') IS NOT NULL)::text";
pub(super) const REFINERY: &str =
    "SELECT coalesce(string_agg(version::text, ','), '') FROM refinery_schema_history";
pub(super) const HAS_SQLX: &str = "SELECT (to_regclass('_sqlx_migrations') IS NOT NULL)::text";
pub(super) const SQLX: &str = "SELECT coalesce(string_agg(version || ':' || encode(checksum, 'hex') || ':' || \
    success::int, ',' ORDER BY version), '') FROM _sqlx_migrations";

/// Begins the transaction of a step, and returns its number.
pub(super) fn begin(lock: Option<Duration>, statement: Option<Duration>) -> String {
    format!(
        "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SELECT txid_current()::text",
        milliseconds(lock),
        milliseconds(statement)
    )
}

/// Sets the limits of a step without a transaction.
pub(super) fn limits(lock: Option<Duration>, statement: Option<Duration>) -> String {
    format!(
        "SET lock_timeout = {}; SET statement_timeout = {}",
        milliseconds(lock),
        milliseconds(statement)
    )
}

/// Returns a limit as Postgres takes it, where 0 stands for none.
fn milliseconds(limit: Option<Duration>) -> u128 {
    limit.map_or(0, |limit| limit.as_millis().max(1))
}

pub(super) fn try_lock() -> String {
    format!("SELECT pg_try_advisory_lock({KEY})::text")
}

/// A condition that holds if this session has the lock.
fn has_lock() -> String {
    format!(
        "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (classid::bigint << 32) | objid::bigint = {KEY} AND objsubid = 1)"
    )
}

/// Records a step, if this session still has the lock and the transaction `txid`.
pub(super) fn record_in(step: &Step, txid: &str) -> String {
    format!(
        "SET LOCAL ROLE NONE; {} AND txid_current() = {txid}",
        record_row(step, "clock_timestamp() - transaction_timestamp()")
    )
}

/// Records a step of code that began `took` ago, if this session still has the lock.
pub(super) fn record(step: &Step, took: Duration) -> String {
    let took = format!("interval '{} milliseconds'", took.as_millis());
    record_row(step, &took)
}

fn record_row(step: &Step, took: &str) -> String {
    format!(
        "INSERT INTO tenantry.schema_history (version, name, checksum, took, by) SELECT {}, {took}, {} WHERE {}",
        values(step.version, &step.name, &step.checksum),
        by(),
        has_lock()
    )
}

/// Notes that a step outside of a transaction begins, with the indexes that are invalid before it.
pub(super) fn begin_outside(step: &Step) -> String {
    format!(
        "INSERT INTO tenantry.schema_history (version, name, checksum, done, before, by) \
         SELECT {}, false, (SELECT coalesce(string_agg(indexrelid::text, ','), '') FROM pg_index WHERE NOT indisvalid), \
         {} WHERE {} ON CONFLICT (version) DO NOTHING",
        values(step.version, &step.name, &step.checksum),
        by(),
        has_lock()
    )
}

/// Lists the indexes, one a line, that the interrupted step `version` has left invalid.
pub(super) fn left_invalid(version: i64) -> String {
    format!(
        "SELECT coalesce(string_agg(quote_ident(nspname) || '.' || quote_ident(relname), E'\\n'), '') \
         FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE NOT indisvalid AND relkind = 'i' AND indexrelid::text <> ALL (string_to_array(\
         (SELECT before FROM tenantry.schema_history WHERE version = {version}), ','))"
    )
}

pub(super) fn forget_outside(version: i64) -> String {
    format!("DELETE FROM tenantry.schema_history WHERE version = {version} AND NOT done")
}

/// Records a step outside of a transaction.
pub(super) fn end_outside(step: &Step) -> String {
    format!(
        "UPDATE tenantry.schema_history SET done = true, checksum = decode('{}', 'hex'), name = '{}', \
         took = clock_timestamp() - applied_at, applied_at = clock_timestamp(), by = {} WHERE version = {} AND {}",
        to_hex(&step.checksum),
        step.name,
        by(),
        step.version,
        has_lock()
    )
}

/// Records a step of a baseline.
pub(super) fn baseline(step: &Step, by: &str) -> String {
    let values = values(step.version, &step.name, &step.checksum);
    format!(
        "INSERT INTO tenantry.schema_history (version, name, checksum, by) SELECT {values}, '{by}'; "
    )
}

/// Records a step that an operator says is applied.
pub(super) fn applied(step: &Step) -> String {
    let values = values(step.version, &step.name, &step.checksum);
    format!(
        "INSERT INTO tenantry.schema_history (version, name, checksum, by) SELECT {values}, 'baseline' \
         ON CONFLICT (version) DO UPDATE SET done = true, checksum = excluded.checksum, by = excluded.by; "
    )
}

/// Ends the sessions of others that hold the lock.
pub(super) fn end_others() -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted \
         AND pid <> pg_backend_pid() \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (classid::bigint << 32) | objid::bigint = {KEY} AND objsubid = 1"
    )
}

/// Returns version, name and checksum as literals. The schema's check leaves out names that need escapes.
fn values(version: i64, name: &str, checksum: &Checksum) -> String {
    format!("{version}, '{name}', decode('{}', 'hex')", to_hex(checksum))
}

fn by() -> String {
    format!("'tenantry/{}'", env!("CARGO_PKG_VERSION"))
}
