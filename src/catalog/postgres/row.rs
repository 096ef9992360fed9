//! The conversion between a record and its columns.

use std::time::Duration;

use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};

use super::{
    connections::Param,
    schema_columns::{self, SchemaColumns},
};
use crate::{
    catalog::{
        Attempt, InvalidRecord, Placement, Record, State,
        key_ring::{Binding, KeyRing, Sealed, Unsealable},
    },
    model::{
        endpoint::{Encryption, Endpoint, SessionReset},
        secret::Secret,
        tenant::{Namespace, TenantId},
    },
    sync::progress::LONGEST,
};

/// The columns to read, by the names that [`record`] uses. Times are remaining times in microseconds.
pub(super) const READ: &str = "
    t.tenant, t.state, t.org, t.project, t.branch, t.endpoint, t.region, t.direct_host, t.pooled_host, t.port,
    t.database, t.role, t.suspend_after, t.is_neon, t.encryption, t.session_reset, t.key_id, t.credential, t.plan,
    t.max_connections, t.schema_version, t.schema_contracted, t.schema_digest, t.schema_baseline, t.schema_failed_step,
    t.schema_failed_mark, t.schema_failed_code, t.schema_failed_error, t.schema_attempts, t.schema_diverged,
    t.generation, t.attempt, t.attempts, t.condemned, t.last_error, t.created_at, t.updated_at, t.token,
    (extract(epoch FROM t.doubt_until - clock_timestamp()) * 1000000)::bigint AS doubt,
    (extract(epoch FROM clock_timestamp() - t.schema_failed_at) * 1000000)::bigint AS schema_failed_for,
    (extract(epoch FROM t.schema_retry_at - clock_timestamp()) * 1000000)::bigint AS schema_retry,
    CASE WHEN t.lease_owner IS NOT NULL
         THEN (extract(epoch FROM t.lease_until - clock_timestamp()) * 1000000)::bigint END AS leased_for";

/// The columns whose changes raise the generation.
pub(super) const PLACE: [&str; 14] = [
    "org",
    "project",
    "branch",
    "endpoint",
    "region",
    "direct_host",
    "pooled_host",
    "port",
    "database",
    "role",
    "suspend_after",
    "is_neon",
    "encryption",
    "session_reset",
];

/// The values of the columns to write.
#[derive(Debug, Default)]
pub(super) struct Columns {
    state: String,
    org: Option<String>,
    project: Option<String>,
    branch: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    direct_host: Option<String>,
    pooled_host: Option<String>,
    port: Option<i32>,
    database: Option<String>,
    role: Option<String>,
    suspend_after: Option<i64>,
    is_neon: Option<bool>,
    encryption: Option<&'static str>,
    session_reset: Option<&'static str>,
    plan: Option<String>,
    max_connections: Option<i64>,
    pub(super) schema: SchemaColumns,
    attempt: Option<String>,
    attempts: Vec<String>,
    condemned: Vec<String>,
    last_error: Option<String>,
    key_id: Option<String>,
    credential: Option<Vec<u8>>,
    mark: Option<Vec<u8>>,
    /// Remaining doubt, in microseconds from now.
    pub(super) doubt: Option<i64>,
    /// Ids of the keys of `same_marks`. The credential is unchanged if its stored mark is one of these.
    pub(super) same_keys: Vec<String>,
    pub(super) same_marks: Vec<Vec<u8>>,
}

impl Columns {
    /// Returns the columns of `record`. Its password is sealed with the newest key.
    pub(super) fn of(
        record: &Record,
        namespace: &Namespace,
        keys: Option<&KeyRing>,
    ) -> Result<Self, InvalidRecord> {
        let mut columns = Self {
            state: record.state.as_str().to_owned(),
            plan: record.plan.clone(),
            max_connections: record
                .max_connections
                .map(|most| i64::try_from(most).unwrap_or(i64::MAX)),
            attempts: record.attempts.clone(),
            condemned: record.condemned.clone(),
            last_error: record.last_error.as_deref().map(without_nul),
            schema: SchemaColumns::of(&record.schema),
            ..Self::default()
        };
        if let Some(Attempt { id, doubt, .. }) = &record.attempt {
            columns.attempt = Some(id.clone());
            columns.doubt = Some(micros(*doubt));
        }
        if let Some(placement) = record.placement.clone() {
            columns.project = Some(placement.project);
            columns.org = placement.org;
            columns.branch = placement.branch;
            columns.endpoint = placement.endpoint;
            columns.region = placement.region;
        }
        if let Some(endpoint) = &record.endpoint {
            columns.reach(endpoint);
            columns.seal(endpoint, namespace, &record.tenant, keys)?;
        }
        Ok(columns)
    }

    fn reach(&mut self, endpoint: &Endpoint) {
        self.direct_host = Some(endpoint.direct_host.clone());
        self.pooled_host = Some(endpoint.pooled_host.clone());
        self.port = Some(endpoint.port.into());
        self.database = Some(endpoint.database.clone());
        self.role = Some(endpoint.role.clone());
        self.suspend_after = endpoint.suspend_window.map(micros);
        self.is_neon = Some(endpoint.is_neon);
        self.encryption = Some(encryption_name(endpoint.encryption));
        self.session_reset = endpoint.session_reset.map(reset_name);
    }

    fn seal(
        &mut self,
        endpoint: &Endpoint,
        namespace: &Namespace,
        tenant: &TenantId,
        keys: Option<&KeyRing>,
    ) -> Result<(), InvalidRecord> {
        if endpoint.password.expose().is_empty() {
            return Ok(());
        }
        let keys = keys.ok_or_else(|| InvalidRecord::new(NO_KEYS))?;
        let place = place(namespace, tenant, endpoint);
        let sealed = keys.seal(&endpoint.password, &place);
        let sealed = sealed
            .map_err(|err| InvalidRecord::new(format!("a password cannot be sealed: {err}")))?;
        (self.same_keys, self.same_marks) =
            keys.marks(&endpoint.password, &place).into_iter().unzip();
        self.mark = self.same_marks.first().cloned();
        self.key_id = Some(sealed.key_id);
        self.credential = Some(sealed.bytes);
        Ok(())
    }

    /// Returns the columns that are written as they are, in the order in which the statement names them.
    pub(super) fn written(&self) -> Vec<(&'static str, Param<'_>)> {
        let mut written: Vec<(&'static str, Param<'_>)> = vec![
            ("state", (&self.state, Type::TEXT)),
            ("org", (&self.org, Type::TEXT)),
            ("project", (&self.project, Type::TEXT)),
            ("branch", (&self.branch, Type::TEXT)),
            ("endpoint", (&self.endpoint, Type::TEXT)),
            ("region", (&self.region, Type::TEXT)),
            ("direct_host", (&self.direct_host, Type::TEXT)),
            ("pooled_host", (&self.pooled_host, Type::TEXT)),
            ("port", (&self.port, Type::INT4)),
            ("database", (&self.database, Type::TEXT)),
            ("role", (&self.role, Type::TEXT)),
            ("suspend_after", (&self.suspend_after, Type::INT8)),
            ("is_neon", (&self.is_neon, Type::BOOL)),
            ("encryption", (&self.encryption, Type::TEXT)),
            ("session_reset", (&self.session_reset, Type::TEXT)),
            ("plan", (&self.plan, Type::TEXT)),
            ("max_connections", (&self.max_connections, Type::INT8)),
            ("attempt", (&self.attempt, Type::TEXT)),
            ("attempts", (&self.attempts, Type::TEXT_ARRAY)),
            ("condemned", (&self.condemned, Type::TEXT_ARRAY)),
            ("last_error", (&self.last_error, Type::TEXT)),
            ("key_id", (&self.key_id, Type::TEXT)),
            ("credential", (&self.credential, Type::BYTEA)),
            ("mark", (&self.mark, Type::BYTEA)),
        ];
        written.extend(self.schema.written());
        written
    }
}

pub(super) const NO_KEYS: &str = "the catalog has no keys to seal passwords with; give it a KeyRing, or leave the \
     passwords at the control plane";

/// Returns the record in `row`. Without keys, its password is left out.
pub(super) fn record(
    row: &Row,
    namespace: &Namespace,
    keys: Option<&KeyRing>,
) -> Result<Record, InvalidRecord> {
    let tenant: String = get(row, "tenant")?;
    let tenant = TenantId::parse(&tenant).map_err(|err| InvalidRecord::new(err.to_string()))?;
    let state: String = get(row, "state")?;
    let state = known_state(&state)?;
    let mut record = Record::new(tenant, state);
    record.placement = placement(row)?;
    record.endpoint = endpoint(row)?;
    if let Some(endpoint) = &mut record.endpoint {
        let place = place(namespace, &record.tenant, endpoint);
        endpoint.password = password(row, &place, keys)?;
    }
    record.plan = get(row, "plan")?;
    record.max_connections = max_connections(row)?;
    record.schema = schema_columns::state(row)?;
    record.generation = count(get(row, "generation")?);
    record.attempt = attempt(row)?;
    record.attempts = get(row, "attempts")?;
    record.condemned = get(row, "condemned")?;
    record.last_error = get(row, "last_error")?;
    record.leased_for = get_left(row, "leased_for")?.filter(|left| !left.is_zero());
    record.created_at = get(row, "created_at")?;
    record.updated_at = get(row, "updated_at")?;
    Ok(record)
}

pub(super) fn known_state(name: &str) -> Result<State, InvalidRecord> {
    State::parse(name).ok_or_else(|| {
        InvalidRecord::new(format!(
            "the record has the state {name:?}, which this version of tenantry does not know; upgrade"
        ))
    })
}

fn max_connections(row: &Row) -> Result<Option<usize>, InvalidRecord> {
    let most: Option<i64> = get(row, "max_connections")?;
    let most = most.map(usize::try_from).transpose();
    most.map_err(|_| broken("max_connections"))
}

fn placement(row: &Row) -> Result<Option<Placement>, InvalidRecord> {
    let Some(project) = get::<Option<String>>(row, "project")? else {
        return Ok(None);
    };
    let mut placement = Placement::new(project);
    placement.org = get(row, "org")?;
    placement.branch = get(row, "branch")?;
    placement.endpoint = get(row, "endpoint")?;
    placement.region = get(row, "region")?;
    Ok(Some(placement))
}

/// Returns the endpoint in `row`, without its password.
pub(super) fn endpoint(row: &Row) -> Result<Option<Endpoint>, InvalidRecord> {
    let Some(host) = get::<Option<String>>(row, "direct_host")? else {
        return Ok(None);
    };
    let (database, role) = (get::<String>(row, "database")?, get::<String>(row, "role")?);
    let mut endpoint = Endpoint::postgres(host, database, role, Secret::new(""));
    endpoint.pooled_host = get(row, "pooled_host")?;
    endpoint.port = u16::try_from(get::<i32>(row, "port")?).map_err(|_| broken("port"))?;
    endpoint.suspend_window = get_left(row, "suspend_after")?;
    endpoint.is_neon = get(row, "is_neon")?;
    endpoint.encryption = match get::<String>(row, "encryption")?.as_str() {
        "tls" => Encryption::Tls,
        "none" => Encryption::None,
        _ => return Err(broken("encryption")),
    };
    endpoint.session_reset = session_reset(row)?;
    Ok(Some(endpoint))
}

fn session_reset(row: &Row) -> Result<Option<SessionReset>, InvalidRecord> {
    let Some(name) = get::<Option<String>>(row, "session_reset")? else {
        return Ok(None);
    };
    let all = [
        SessionReset::Never,
        SessionReset::IfNeeded,
        SessionReset::Always,
    ];
    let reset = all.into_iter().find(|it| reset_name(*it) == name);
    reset.map(Some).ok_or_else(|| broken("session_reset"))
}

fn password(row: &Row, place: &Binding, keys: Option<&KeyRing>) -> Result<Secret, InvalidRecord> {
    match (sealed(row)?, keys) {
        (Some(sealed), Some(keys)) => keys.open(&sealed, place).map_err(|err| unsealable(&err)),
        _ => Ok(Secret::new("")),
    }
}

pub(super) fn unsealable(err: &Unsealable) -> InvalidRecord {
    InvalidRecord::new(format!(
        "the tenant's password cannot be read from the catalog: {err}"
    ))
}

pub(super) fn sealed(row: &Row) -> Result<Option<Sealed>, InvalidRecord> {
    let Some(bytes) = get(row, "credential")? else {
        return Ok(None);
    };
    let key_id = get::<Option<String>>(row, "key_id")?.unwrap_or_default();
    Ok(Some(Sealed { key_id, bytes }))
}

fn attempt(row: &Row) -> Result<Option<Attempt>, InvalidRecord> {
    let id: Option<String> = get(row, "attempt")?;
    let doubt = get_left(row, "doubt")?.unwrap_or_default();
    Ok(id.map(|id| Attempt::new(id, doubt)))
}

/// Returns the place that a tenant's password is bound to: the tenant, the role, the server and the encryption.
pub(super) fn place(namespace: &Namespace, tenant: &TenantId, endpoint: &Endpoint) -> Binding {
    Binding::new(&[
        namespace.as_str(),
        tenant.as_str(),
        &endpoint.role,
        &endpoint.direct_host,
        &endpoint.pooled_host,
        &endpoint.port.to_string(),
        encryption_name(endpoint.encryption),
    ])
}

fn encryption_name(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Tls => "tls",
        Encryption::None => "none",
    }
}

fn reset_name(reset: SessionReset) -> &'static str {
    match reset {
        SessionReset::Never => "never",
        SessionReset::IfNeeded => "if_needed",
        SessionReset::Always => "always",
    }
}

/// Returns the value of a column. If it is invalid, the other columns can still be read.
pub(super) fn get<'a, T: FromSql<'a>>(
    row: &'a Row,
    column: &'static str,
) -> Result<T, InvalidRecord> {
    row.try_get(column).map_err(|_| broken(column))
}

pub(super) fn get_left(row: &Row, column: &'static str) -> Result<Option<Duration>, InvalidRecord> {
    let micros: Option<i64> = get(row, column)?;
    Ok(micros.map(|micros| Duration::from_micros(count(micros))))
}

fn broken(column: &str) -> InvalidRecord {
    InvalidRecord::new(format!(
        "the record's column {column} holds a value that tenantry never writes"
    ))
}

/// Returns a text that may come from anywhere as Postgres stores it, which takes no NUL.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Returns a time from now in microseconds, limited to the longest time of any work.
pub(super) fn lease_micros(time: Duration) -> i64 {
    micros(time.min(LONGEST))
}

/// Converts a number that the catalog never lets fall below zero.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
