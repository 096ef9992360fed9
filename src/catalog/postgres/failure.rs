//! Failures of the catalog's Postgres, with advice for the operator.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use deadpool_postgres::PoolError;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::{
    catalog::{CallError, InvalidRecord},
    model::{error::BoxError, tls::untrusted_reason},
};

/// The index that keeps two tenants from having the same database.
pub(super) const ONE_DATABASE: &str = "tenants_database";

/// A failure of the catalog. It can be cloned, as one failed migration has many waiters.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    message: Cow<'static, str>,
    /// Defect of one tenant's record, if that alone caused the failure.
    defect: Option<InvalidRecord>,
    blame: Blame,
    is_late: bool,
    source: Option<Arc<tokio_postgres::Error>>,
}

impl Failure {
    pub(super) fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            message: message.into(),
            defect: None,
            blame: Blame::Session,
            is_late: false,
            source: None,
        }
    }

    pub(super) fn late(limit: Duration) -> Self {
        Self {
            is_late: true,
            ..Self::new(format!("the catalog did not answer within {limit:?}"))
        }
    }

    /// Returns whether Postgres reports that it did nothing and that another attempt will help.
    pub(super) fn is_undone(&self) -> bool {
        let code = self.code();
        code == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
            || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
    }

    /// Returns whether a table is missing, or older than this release needs.
    pub(super) fn is_missing_table(&self) -> bool {
        let missing = [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        self.code().is_some_and(|code| missing.contains(code))
    }

    /// Returns the part that caused the failure.
    pub(super) fn blame(&self) -> Blame {
        self.blame
    }

    fn code(&self) -> Option<&SqlState> {
        self.source.as_ref()?.code()
    }

    /// Converts the failure for the router. A defect of one tenant's record and a refusal by a running server are no
    /// outage.
    pub(super) fn into_error(mut self) -> BoxError {
        if let Some(defect) = self.defect.take() {
            return defect.into();
        }
        if self.is_late {
            return CallError::timed_out(self.message).into();
        }
        match (self.blame, &self.source) {
            (Blame::Others | Blame::Load | Blame::Statement, Some(source)) => {
                let rejected = CallError::rejected(self.message);
                rejected.with_shared_source(Arc::clone(source) as _).into()
            }
            (_, _) => self.into(),
        }
    }
}

/// The part that caused the failure of a statement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Blame {
    /// The written values, or another transaction. The session is good.
    Others,
    /// Disk, memory, locks or a time limit. The statement may fail on another session, too.
    Load,
    /// The statement or the session. The session may have settings that the role no longer has, or lead to a server
    /// that is no longer the primary.
    Statement,
    /// The session, which has ended.
    Session,
}

impl From<tokio_postgres::Error> for Failure {
    fn from(err: tokio_postgres::Error) -> Self {
        let message = match (err.code(), untrusted_reason(&err)) {
            (Some(code), _) => Cow::from(advice(code)),
            (None, Some(why)) => {
                format!("the certificate that the catalog's Postgres shows is not trusted: {why}")
                    .into()
            }
            (None, None) => UNREACHABLE.into(),
        };
        Self {
            message,
            defect: defect(&err),
            blame: err.as_db_error().map_or(Blame::Session, blame),
            is_late: false,
            source: Some(Arc::new(err)),
        }
    }
}

impl From<PoolError> for Failure {
    fn from(err: PoolError) -> Self {
        match err {
            PoolError::Backend(err) => Self {
                blame: Blame::Session, // a login was refused: no statement was sent
                ..err.into()
            },
            other => Self::new(format!("no connection to the catalog: {other}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

const UNREACHABLE: &str = "the catalog's Postgres cannot be reached, or closed the connection";

/// Returns the message for an error code, with advice if the operator can do something.
fn advice(code: &SqlState) -> &'static str {
    match *code {
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "the catalog's role lacks a privilege; it needs USAGE on the schema and SELECT, INSERT and UPDATE on all tables \
             in it (SELECT is enough for an application that only looks tenants up), and the role that creates or upgrades \
             the tables needs CREATE on the database, or must own the schema and what is in it"
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => {
            "the catalog's server accepts no writes; connect to the primary, for example with \
             target_session_attrs=read-write and all hosts in the connection string"
        }
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "the catalog's Postgres refuses the login; check user, password and pg_hba.conf"
        }
        SqlState::INVALID_CATALOG_NAME => {
            "the catalog's database does not exist; create it, or correct the connection string"
        }
        SqlState::TOO_MANY_CONNECTIONS => {
            "the catalog's Postgres has no connection left; lower pool_size, raise max_connections, or put a pooler in \
             front of it"
        }
        SqlState::LOCK_NOT_AVAILABLE => {
            "the catalog's tables are locked; find in pg_locks which session locks them"
        }
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => {
            "the catalog's tables do not exist any more; the next call creates them again"
        }
        SqlState::UNDEFINED_COLUMN => {
            "the catalog's tables have an older version than before, probably after a restore; the next call upgrades \
             them"
        }
        _ => "the catalog's Postgres failed",
    }
}

fn blame(said: &DbError) -> Blame {
    let code = said.code().code();
    let ends_session = matches!(
        said.parsed_severity(),
        Some(Severity::Fatal | Severity::Panic)
    );
    match code.get(..2).unwrap_or_default() {
        _ if ends_session => Blame::Session,
        "08" => Blame::Session,
        "57" if code.starts_with("57P") => Blame::Session,
        "22" | "23" | "40" => Blame::Others,
        "53" | "55" | "57" => Blame::Load,
        _ => Blame::Statement,
    }
}

/// Returns the defect of the record, if that alone caused the error.
fn defect(err: &tokio_postgres::Error) -> Option<InvalidRecord> {
    let said = err.as_db_error()?;
    if said.constraint() == Some(ONE_DATABASE) {
        let which = said.detail().unwrap_or_default();
        let message = format!("another tenant has this database already: {which}");
        return Some(InvalidRecord::new(message));
    }
    // 22 is a data exception, 23 the violation of a constraint.
    let class = said.code().code().get(..2)?;
    matches!(class, "22" | "23").then(|| {
        InvalidRecord::new(format!(
            "the catalog cannot hold the record: {}",
            said.message()
        ))
    })
}
