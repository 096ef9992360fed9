//! The conversion between the state of a tenant's schema and its columns.

use tokio_postgres::{Row, types::Type};

use super::{
    connections::Param,
    row::{get, get_left, lease_micros, without_nul},
};
use crate::{
    catalog::InvalidRecord,
    schema::{SchemaFailure, SchemaState},
};

/// The values of the columns to write.
#[derive(Debug, Default)]
pub(super) struct SchemaColumns {
    version: i64,
    contracted: i64,
    digest: i64,
    baseline: Option<i64>,
    failed_step: Option<i64>,
    failed_mark: Option<i64>,
    failed_code: Option<String>,
    failed_error: Option<String>,
    attempts: i32,
    diverged: bool,
    /// Time until the step that failed is tried again, in microseconds from now.
    pub(super) retry: Option<i64>,
}

impl SchemaColumns {
    pub(super) fn of(schema: &SchemaState) -> Self {
        let state = Self {
            version: schema.version,
            contracted: schema.contracted,
            digest: schema.digest,
            baseline: schema.baseline,
            ..Self::default()
        };
        let Some(failure) = &schema.failure else {
            return state;
        };
        Self {
            failed_step: Some(failure.step),
            failed_mark: Some(failure.mark),
            failed_code: failure.code.as_deref().map(without_nul),
            failed_error: Some(without_nul(&failure.message)),
            attempts: i32::try_from(failure.attempts).unwrap_or(i32::MAX),
            diverged: failure.diverged,
            retry: failure.retry.map(lease_micros),
            ..state
        }
    }

    /// Returns the columns that are written as they are.
    pub(super) fn written(&self) -> [(&'static str, Param<'_>); 10] {
        [
            ("schema_version", (&self.version, Type::INT8)),
            ("schema_contracted", (&self.contracted, Type::INT8)),
            ("schema_digest", (&self.digest, Type::INT8)),
            ("schema_baseline", (&self.baseline, Type::INT8)),
            ("schema_failed_step", (&self.failed_step, Type::INT8)),
            ("schema_failed_mark", (&self.failed_mark, Type::INT8)),
            ("schema_failed_code", (&self.failed_code, Type::TEXT)),
            ("schema_failed_error", (&self.failed_error, Type::TEXT)),
            ("schema_attempts", (&self.attempts, Type::INT4)),
            ("schema_diverged", (&self.diverged, Type::BOOL)),
        ]
    }
}

/// Returns the state in `row`.
pub(super) fn state(row: &Row) -> Result<SchemaState, InvalidRecord> {
    Ok(SchemaState {
        version: get(row, "schema_version")?,
        contracted: get(row, "schema_contracted")?,
        digest: get(row, "schema_digest")?,
        baseline: get(row, "schema_baseline")?,
        failure: failure(row)?,
    })
}

fn failure(row: &Row) -> Result<Option<SchemaFailure>, InvalidRecord> {
    let Some(step) = get(row, "schema_failed_step")? else {
        return Ok(None);
    };
    let mark: Option<i64> = get(row, "schema_failed_mark")?;
    let message: Option<String> = get(row, "schema_failed_error")?;
    let (mark, message) = (mark.unwrap_or_default(), message.unwrap_or_default());
    let mut failure = SchemaFailure::new(step, mark, message);
    failure.code = get(row, "schema_failed_code")?;
    failure.attempts = u32::try_from(get::<i32>(row, "schema_attempts")?).unwrap_or_default();
    failure.diverged = get(row, "schema_diverged")?;
    failure.age = get_left(row, "schema_failed_for")?.unwrap_or_default();
    failure.retry = get_left(row, "schema_retry")?;
    Ok(Some(failure))
}
