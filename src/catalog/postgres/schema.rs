//! The creation of the catalog's tables, and their upgrade when a later version of the crate needs more.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::types::Type;

use super::{
    connections::{Connections, Session, within},
    failure::Failure,
};

/// Longest time for an upgrade. It goes on after the time limit of a waiting caller is over.
const LIMIT: Duration = Duration::from_secs(120);

/// The statements by which each version extends the one before; `{schema}` stands for the schema's name. A released
/// version is never changed, and none removes anything: an older release of the crate keeps working beside a newer one.
const MIGRATIONS: &[&str] = &[
    r#"
CREATE TABLE {schema}.namespaces (
    namespace text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL
);
CREATE TABLE {schema}.tenants (
    namespace text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL CONSTRAINT tenants_state CHECK
        (state IN ('claimed', 'creating', 'preparing', 'ready', 'held', 'deleting', 'deleted')),
    org text,
    project text COLLATE "C",
    branch text,
    endpoint text,
    region text,
    direct_host text,
    pooled_host text,
    port integer CONSTRAINT tenants_port CHECK (port BETWEEN 0 AND 65535),
    database text COLLATE "C",
    role text,
    suspend_after bigint,
    is_neon boolean,
    encryption text,
    plan text,
    schema_version bigint NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 0,
    attempt text,
    doubt_until timestamptz,
    attempts text[] NOT NULL DEFAULT '{}',
    condemned text[] NOT NULL DEFAULT '{}',
    last_error text,
    lease_owner text,
    lease_until timestamptz,
    token bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    key_id text COLLATE "C",
    credential bytea,
    mark bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (namespace, tenant)
);
COMMENT ON COLUMN {schema}.tenants.suspend_after IS 'microseconds; 0 is the default, NULL is never';
COMMENT ON COLUMN {schema}.tenants.credential IS 'sealed with the key key_id, and bound to tenant, role and hosts';
COMMENT ON COLUMN {schema}.tenants.mark IS 'tells that the credential is the same without opening it';
CREATE UNIQUE INDEX tenants_database ON {schema}.tenants (project)
    WHERE project IS NOT NULL AND state <> 'deleted';
CREATE INDEX tenants_version ON {schema}.tenants (namespace, version);
"#,
    // Writes of an older release leave the new column as it is.
    "
ALTER TABLE {schema}.tenants ADD max_connections bigint
    CONSTRAINT tenants_max_connections CHECK (max_connections > 0);
COMMENT ON COLUMN {schema}.tenants.max_connections IS 'of one router to the tenant; NULL is the router''s own pool_size';
",
    "
ALTER TABLE {schema}.tenants ADD session_reset text;
COMMENT ON COLUMN {schema}.tenants.session_reset IS 'never, if_needed, always; NULL: never behind a pooler, else if_needed';
",
    "
ALTER TABLE {schema}.tenants
    ADD schema_contracted bigint NOT NULL DEFAULT 0,
    ADD schema_digest bigint NOT NULL DEFAULT 0,
    ADD schema_baseline bigint,
    ADD schema_failed_step bigint,
    ADD schema_failed_mark bigint,
    ADD schema_failed_code text,
    ADD schema_failed_error text,
    ADD schema_failed_at timestamptz,
    ADD schema_attempts integer NOT NULL DEFAULT 0,
    ADD schema_diverged boolean NOT NULL DEFAULT false,
    ADD schema_retry_at timestamptz;
COMMENT ON COLUMN {schema}.tenants.schema_version IS 'of the tenant''s database; 0 is none or not known';
COMMENT ON COLUMN {schema}.tenants.schema_failed_at IS 'the first failure of the step; NULL if none has failed';
COMMENT ON COLUMN {schema}.tenants.schema_retry_at IS 'when the step is tried again; NULL is not by itself';
",
    r#"
CREATE TABLE {schema}.notes (
    namespace text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    text text NOT NULL,
    version bigint NOT NULL,
    written_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, name)
);
COMMENT ON TABLE {schema}.notes IS 'what all replicas share beside the tenants, such as the state of a campaign';
CREATE TABLE {schema}.processes (
    namespace text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    requires bigint NOT NULL,
    latest bigint NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, id)
);
COMMENT ON TABLE {schema}.processes IS 'the routers that have a schema, and the versions that they work with';
"#,
];

/// The tables in one schema.
pub(super) struct Schema {
    name: String,
    quoted: String,
}

impl Schema {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            quoted: quoted(name),
        }
    }

    /// Returns the version that this release works with.
    pub(super) fn latest() -> usize {
        MIGRATIONS.len()
    }

    /// Creates or upgrades the tables, up to `version`. Newer tables are left as they are.
    pub(super) async fn upgrade(&self, to: &Connections, version: usize) -> Result<(), Failure> {
        let work = async {
            if self
                .present(to)
                .await?
                .is_some_and(|present| present >= version)
            {
                return Ok(());
            }
            let session = to.session().await?;
            self.upgrade_locked(&session, version).await?;
            session.settle();
            Ok(())
        };
        within(LIMIT, work).await
    }

    /// Returns the present version; `None` if there are no tables. Takes no lock, and needs only the privilege to read.
    async fn present(&self, at: &Connections) -> Result<Option<usize>, Failure> {
        let sql = format!(
            "SELECT current_setting('server_encoding'), coalesce(max(version), 0) FROM {}.migrations",
            self.quoted
        );
        match at.ask(&sql, &[]).await {
            Err(failure) if failure.is_missing_table() => Ok(None),
            Err(failure) => Err(failure),
            Ok(rows) => {
                let Some(row) = rows.first() else {
                    return Ok(None);
                };
                check_encoding(row.try_get(0)?)?;
                Ok(usize::try_from(row.try_get::<_, i32>(1)?).ok())
            }
        }
    }

    /// Upgrades the tables in one transaction, under a lock that admits one replica at a time.
    async fn upgrade_locked(&self, session: &Session, version: usize) -> Result<(), Failure> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             SET LOCAL lock_timeout = '30s';
             SET LOCAL idle_in_transaction_session_timeout = '30s';
             SELECT pg_advisory_xact_lock({});",
            self.lock()
        );
        session.batch_execute(&begin).await?;
        let present = self.prepared(session).await?;
        for (version, migration) in (1..=version).zip(MIGRATIONS).skip(present) {
            let sql = migration.replace("{schema}", &self.quoted);
            let note = format!(
                "INSERT INTO {}.migrations (version) VALUES ({version});",
                self.quoted
            );
            session.batch_execute(&sql).await?;
            session.batch_execute(&note).await?;
            tracing::info!(schema = self.name, version, "catalog upgraded");
        }
        Ok(session.batch_execute("COMMIT").await?)
    }

    /// Creates the schema and the table of versions if they are missing. Returns the present version.
    async fn prepared(&self, session: &Session) -> Result<usize, Failure> {
        let (schema, table) = (&self.name, format!("{}.migrations", self.quoted));
        // The privilege to create is needed only if something is missing.
        let sql = "SELECT current_setting('server_encoding'),
                          EXISTS (SELECT FROM pg_namespace WHERE nspname = $1::name)";
        let row = session
            .query_typed_one(sql, &[(schema, Type::TEXT)])
            .await?;
        check_encoding(row.try_get(0)?)?;
        if !row.try_get::<_, bool>(1)? {
            let sql = format!("CREATE SCHEMA {}", self.quoted);
            session.batch_execute(&sql).await?;
        }
        let sql = "SELECT to_regclass($1) IS NOT NULL";
        let row = session
            .query_typed_one(sql, &[(&table, Type::TEXT)])
            .await?;
        if !row.try_get::<_, bool>(0)? {
            let sql = format!(
                "CREATE TABLE {table} (
                     version integer PRIMARY KEY,
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
                 )"
            );
            session.batch_execute(&sql).await?;
        }
        let sql = format!("SELECT coalesce(max(version), 0) FROM {table}");
        let row = session.query_typed_one(&sql, &[]).await?;
        Ok(usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default())
    }

    /// Returns the number of the advisory lock that all replicas take.
    fn lock(&self) -> i64 {
        let digest = Sha256::digest(format!("tenantry migrations {}", self.name));
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        i64::from_be_bytes(bytes)
    }
}

/// Returns a name as a quoted SQL identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Fails unless the encoding is UTF-8: no other one stores every tenant's id.
fn check_encoding(encoding: &str) -> Result<(), Failure> {
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the catalog's database has the encoding {encoding}, which cannot hold every tenant's id; create one with \
         ENCODING 'UTF8'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_quoted() {
        assert_eq!(quoted("tenantry"), r#""tenantry""#);
        assert_eq!(quoted(r#"a"; DROP"#), r#""a""; DROP""#);
    }

    #[test]
    fn schemas_have_locks_of_their_own() {
        assert_ne!(Schema::new("a").lock(), Schema::new("b").lock());
    }
}
