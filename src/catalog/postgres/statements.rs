//! The SQL statements. Every call is one statement, so that none is half done or holds a transaction open.

use super::{
    row::{Columns, PLACE, READ},
    schema::quoted,
};

/// The text of every statement, with the schema's name in place.
pub(super) struct Statements {
    pub(super) schema: String,
    pub(super) find: String,
    pub(super) find_many: String,
    pub(super) list: String,
    pub(super) tally: String,
    pub(super) lease: String,
    pub(super) write: String,
    pub(super) release: String,
    pub(super) changes: String,
    pub(super) note: String,
    pub(super) write_note: String,
    pub(super) register: String,
    pub(super) deregister: String,
    pub(super) processes: String,
    pub(super) unsealed_so_far: String,
    pub(super) reseal: String,
}

impl Statements {
    pub(super) fn new(schema: &str) -> Self {
        let place = quoted(schema);
        Self {
            schema: schema.to_owned(),
            find: format!("SELECT {READ} FROM {place}.tenants t WHERE namespace = $1 AND tenant = $2"),
            find_many: format!(
                "SELECT {READ} FROM {place}.tenants t WHERE namespace = $1 AND tenant = ANY ($2)"
            ),
            list: format!(
                "SELECT {READ} FROM {place}.tenants t WHERE namespace = $1 AND tenant > $2 ORDER BY tenant LIMIT $3"
            ),
            tally: format!(
                "SELECT state, schema_version, schema_failed_step IS NOT NULL AS failed,
                        schema_failed_step IS NOT NULL AND schema_retry_at IS NULL AS quarantined, count(*) AS tenants
                 FROM {place}.tenants WHERE namespace = $1 GROUP BY 1, 2, 3, 4"
            ),
            lease: lease(&place),
            write: write(&place),
            // Owner and end are both cleared, so that a late renewal becomes a new grant.
            release: format!(
                "UPDATE {place}.tenants SET lease_owner = NULL, lease_until = NULL
                 WHERE namespace = $1 AND tenant = $2 AND lease_owner = $3 AND token = $4"
            ),
            changes: changes(&place),
            note: format!(
                "SELECT text, version, (extract(epoch FROM clock_timestamp() - written_at) * 1000000)::bigint AS age
                 FROM {place}.notes WHERE namespace = $1 AND name = $2"
            ),
            write_note: write_note(&place),
            register: register(&place),
            deregister: format!(
                "UPDATE {place}.processes SET seen_at = '-infinity' WHERE namespace = $1 AND id = $2"
            ),
            processes: format!(
                "SELECT id, requires, latest, (extract(epoch FROM clock_timestamp() - seen_at) * 1000000)::bigint AS age
                 FROM {place}.processes WHERE namespace = $1 AND seen_at > clock_timestamp() - interval '1 day'"
            ),
            unsealed_so_far: format!(
                "SELECT {READ} FROM {place}.tenants t
                 WHERE namespace = $1 AND tenant > $2 AND credential IS NOT NULL AND key_id IS DISTINCT FROM $3
                 ORDER BY tenant LIMIT $4"
            ),
            reseal: format!(
                "UPDATE {place}.tenants t SET key_id = $2, credential = new.credential, mark = new.mark
                 FROM unnest($3, $4, $5, $6) AS new (tenant, old, credential, mark)
                 WHERE t.namespace = $1 AND t.tenant = new.tenant AND t.credential = new.old
                 RETURNING t.tenant"
            ),
        }
    }
}

impl Statements {
    /// Returns the text of every statement.
    pub(super) fn by_name(&self) -> Vec<(&'static str, &str)> {
        // Names every field, so that none is left out.
        let Self {
            schema: _,
            find,
            find_many,
            list,
            tally,
            lease,
            write,
            release,
            changes,
            note,
            write_note,
            register,
            deregister,
            processes,
            unsealed_so_far,
            reseal,
        } = self;
        vec![
            ("find", find),
            ("find_many", find_many),
            ("list", list),
            ("tally", tally),
            ("lease", lease),
            ("write", write),
            ("release", release),
            ("changes", changes),
            ("note", note),
            ("write_note", write_note),
            ("register", register),
            ("deregister", deregister),
            ("processes", processes),
            ("unsealed_so_far", unsealed_so_far),
            ("reseal", reseal),
        ]
    }
}

/// Returns the statement that reads the changes: `$1` namespace, `$2` version, `$3` limit.
///
/// Each write has a version of its own, so a limit never splits a version. The time at which the server was started
/// identifies it, and every role may read that time.
fn changes(place: &str) -> String {
    format!(
        "SELECT n.version AS present, t.tenant, t.version,
                (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS incarnation
         FROM (SELECT coalesce((SELECT version FROM {place}.namespaces WHERE namespace = $1), 0)) AS n (version)
         LEFT JOIN LATERAL (
             SELECT tenant, version FROM {place}.tenants
             WHERE namespace = $1 AND version > $2 ORDER BY version LIMIT $3
         ) t ON true
         ORDER BY t.version"
    )
}

/// Returns the statement that replaces a note: `$1` namespace, `$2` name, `$3` text, `$4` the version in its place.
///
/// Of two writers in place of one version, the second waits for the row and finds the next version.
fn write_note(place: &str) -> String {
    format!(
        "INSERT INTO {place}.notes AS n (namespace, name, text, version, written_at)
         SELECT $1, $2, $3, $4 + 1, clock_timestamp()
         WHERE $4 = 0 OR EXISTS (SELECT FROM {place}.notes WHERE namespace = $1 AND name = $2)
         ON CONFLICT (namespace, name) DO UPDATE
         SET text = excluded.text, version = excluded.version, written_at = clock_timestamp()
         WHERE n.version = $4
         RETURNING n.version"
    )
}

/// Returns the statement that notes a process: `$1` namespace, `$2` id, `$3` and `$4` its versions.
///
/// A new process takes the row of one that has ended, so that no role needs the right to delete.
fn register(place: &str) -> String {
    format!(
        "WITH ended AS (
             SELECT id FROM {place}.processes
             WHERE namespace = $1 AND seen_at < clock_timestamp() - interval '1 day'
             AND NOT EXISTS (SELECT FROM {place}.processes WHERE namespace = $1 AND id = $2)
             LIMIT 1 FOR UPDATE SKIP LOCKED
         ), taken AS (
             UPDATE {place}.processes p
             SET id = $2, requires = $3, latest = $4, seen_at = clock_timestamp()
             FROM ended WHERE p.namespace = $1 AND p.id = ended.id
             RETURNING p.id
         )
         INSERT INTO {place}.processes (namespace, id, requires, latest, seen_at)
         SELECT $1, $2, $3, $4, clock_timestamp() WHERE NOT EXISTS (SELECT FROM taken)
         ON CONFLICT (namespace, id) DO UPDATE
         SET requires = excluded.requires, latest = excluded.latest, seen_at = excluded.seen_at"
    )
}

/// Returns the statement that grants a lease: `$1` namespace, `$2` tenant, `$3` owner, `$4` microseconds.
///
/// It returns no row if another owner has the lease.
fn lease(place: &str) -> String {
    let until = "clock_timestamp() + $4 * interval '1 microsecond'";
    format!(
        "INSERT INTO {place}.tenants AS t (namespace, tenant, state, lease_owner, lease_until, token)
         VALUES ($1, $2, 'claimed', $3, {until}, 1)
         ON CONFLICT (namespace, tenant) DO UPDATE SET
             token = t.token + CASE WHEN t.lease_owner = $3 AND t.lease_until > clock_timestamp() THEN 0 ELSE 1 END,
             lease_owner = $3,
             lease_until = {until}
         WHERE t.lease_owner IS NULL OR t.lease_owner = $3 OR t.lease_until <= clock_timestamp()
         RETURNING {READ}"
    )
}

/// Number of the parameter of the first column that is written.
const FIRST_COLUMN: usize = 12;

/// Returns the statement that replaces a record: `$1` namespace, `$2` tenant, `$3` owner, `$4` token, `$5` the states
/// that may become the new one, `$6` doubt, `$7` and `$8` the keys of the marks of the same credential and the marks,
/// `$9` whether to release, `$10` the channel, `$11` the time until a failed step is tried again; then the columns.
///
/// It returns no row if the lease is lost. Each write locks the namespace's row until it is committed, so that a
/// version is visible only if all smaller ones are.
fn write(place: &str) -> String {
    let columns = Columns::default();
    let written = columns.written();
    let number = |name: &str| {
        written
            .iter()
            .position(|(it, _)| *it == name)
            .map(|at| at + FIRST_COLUMN)
    };
    let numbered = |name: &&str| number(name).map(|number| format!("${number}"));
    let set: Vec<_> = written
        .iter()
        .enumerate()
        .map(|(at, (name, _))| format!("{name} = ${}", at + FIRST_COLUMN))
        .collect();
    let old: Vec<_> = PLACE.iter().map(|name| format!("t.{name}")).collect();
    let new: Vec<_> = PLACE.iter().filter_map(numbered).collect();
    let (set, old, new) = (set.join(", "), old.join(", "), new.join(", "));
    let failed = |name: &str| number(name).unwrap_or_default();
    let (step, mark) = (failed("schema_failed_step"), failed("schema_failed_mark"));
    format!(
        "WITH held AS MATERIALIZED (
             SELECT state FROM {place}.tenants
             WHERE namespace = $1 AND tenant = $2
               AND lease_owner = $3 AND token = $4 AND lease_until > clock_timestamp()
             FOR UPDATE
         ), bumped AS (
             INSERT INTO {place}.namespaces AS n (namespace, version)
             SELECT $1, 1 FROM held WHERE held.state = ANY ($5)
             ON CONFLICT (namespace) DO UPDATE SET version = n.version + 1
             RETURNING version
         ), written AS (
             UPDATE {place}.tenants t SET
                 {set},
                 doubt_until = clock_timestamp() + $6 * interval '1 microsecond',
                 schema_retry_at = clock_timestamp() + $11 * interval '1 microsecond',
                 schema_failed_at = CASE
                     WHEN ${step}::bigint IS NULL THEN NULL
                     WHEN t.schema_failed_step = ${step} AND t.schema_failed_mark = ${mark} THEN t.schema_failed_at
                     ELSE clock_timestamp() END,
                 generation = t.generation + CASE
                     WHEN ({old}) IS NOT DISTINCT FROM ({new})
                      AND (t.mark IS NULL AND cardinality($8) = 0 OR EXISTS (
                          SELECT FROM unnest($7, $8) AS same (key_id, mark)
                          WHERE same.key_id = t.key_id AND same.mark = t.mark))
                     THEN 0 ELSE 1 END,
                 lease_owner = CASE WHEN $9 THEN NULL ELSE t.lease_owner END,
                 lease_until = CASE WHEN $9 THEN NULL ELSE t.lease_until END,
                 version = bumped.version,
                 updated_at = clock_timestamp()
             FROM bumped
             WHERE t.namespace = $1 AND t.tenant = $2
             RETURNING t.version
         )
         SELECT held.state,
                (SELECT version FROM written) IS NOT NULL AS written,
                (SELECT pg_notify($10, '')::text FROM written) AS told
         FROM held"
    )
}
