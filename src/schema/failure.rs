//! The judgement on a failure of a run: the step's own, or a session that ended.

use std::error::Error as StdError;

use tokio_postgres::error::SqlState;

use super::{checked::named, step::Step};
use crate::model::{
    chain,
    error::{BoxError, Error, ErrorKind, SchemaFault, Stage},
};

/// The reason for which a run does not go on with its session.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(StepFailure),
    /// The session has ended, or may have. The next one finds out what was done.
    Doubtful(BoxError),
}

/// A failure that concerns the tenant's database and not the way to it.
#[derive(Clone, Debug)]
pub(super) struct StepFailure {
    pub(super) error: Error,
    /// Version of the step; 0 if the history could not be used.
    pub(super) step: i64,
    /// Revision of the step.
    pub(super) mark: i64,
    pub(super) code: Option<String>,
    /// `true` if another try of the same step cannot help.
    pub(super) is_final: bool,
}

impl StepFailure {
    /// Returns whether the database has other steps than the program.
    pub(super) fn is_divergence(&self) -> bool {
        self.error.kind() == ErrorKind::Schema(SchemaFault::Diverged)
    }

    fn of(step: &Step, error: Error) -> Self {
        Self {
            error,
            step: step.version,
            mark: step.revision,
            code: None,
            is_final: false,
        }
    }

    fn with_code(self, err: Option<&tokio_postgres::Error>) -> Self {
        let code = err.and_then(tokio_postgres::Error::code);
        let code = code.map(|code| code.code().to_owned());
        Self { code, ..self }
    }
}

impl From<StepFailure> for Stop {
    fn from(failure: StepFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Returns whether `err` says that the session has ended, and nothing about the statement.
fn is_doubtful(err: &tokio_postgres::Error) -> bool {
    let ends = [
        &SqlState::ADMIN_SHUTDOWN,
        &SqlState::CRASH_SHUTDOWN,
        &SqlState::CANNOT_CONNECT_NOW,
    ];
    match err.code() {
        None => true,
        Some(code) => code.code().starts_with("08") || ends.contains(&code),
    }
}

/// Returns whether a statement that failed with `err` may succeed a little later.
pub(super) fn is_contended(err: &tokio_postgres::Error) -> bool {
    let codes = [
        &SqlState::LOCK_NOT_AVAILABLE,
        &SqlState::T_R_DEADLOCK_DETECTED,
        &SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    err.code().is_some_and(|code| codes.contains(&code))
}

fn words(err: &tokio_postgres::Error) -> String {
    err.as_db_error()
        .map_or_else(|| err.to_string(), chain::words)
}

/// Judges a failure of tenantry's own statements.
pub(super) fn of_history(err: tokio_postgres::Error) -> Stop {
    if is_doubtful(&err) {
        return Stop::Doubtful(err.into());
    }
    let advice = if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        "; the role needs CREATE on the database, or USAGE on the schema tenantry and SELECT, INSERT, UPDATE and \
         DELETE on its table"
    } else {
        ""
    };
    let message = format!(
        "the history of the schema could not be used: {}{advice}",
        words(&err)
    );
    let code = err.code().map(|code| code.code().to_owned());
    Stop::Failed(StepFailure {
        error: error(SchemaFault::Failed, message).with_source(err),
        step: 0,
        mark: 0,
        code,
        is_final: false,
    })
}

/// Judges a failure of a step's SQL.
pub(super) fn of_step(step: &Step, err: tokio_postgres::Error) -> Stop {
    if is_doubtful(&err) {
        return Stop::Doubtful(err.into());
    }
    let message = format!(
        "{} failed on this tenant's database: {}; mend the step or the data, then migrate again",
        named(step),
        words(&err)
    );
    let failure = failed(step, message).with_code(Some(&err));
    Stop::Failed(with_source(failure, err))
}

/// Judges a failure of a step of code. `ended`: its session has ended.
pub(super) fn of_code(step: &Step, err: BoxError, ended: bool) -> Stop {
    let driver = find_driver(&*err);
    if ended && driver.is_none_or(is_doubtful) {
        return Stop::Doubtful(err);
    }
    let said = driver.map(|err| format!(": {}", words(err)));
    let message = format!(
        "{} failed on this tenant's database{}; mend the step or the data, then migrate again",
        named(step),
        said.unwrap_or_default()
    );
    let failure = failed(step, message).with_code(driver);
    Stop::Failed(with_source(failure, err))
}

/// Returns the driver's error among the causes of `err`.
fn find_driver<'a>(err: &'a (dyn StdError + 'static)) -> Option<&'a tokio_postgres::Error> {
    std::iter::successors(Some(err), |err| (*err).source()).find_map(|err| err.downcast_ref())
}

/// Returns the failure of a step whose row could not be written, though no statement failed.
pub(super) fn lost_transaction(step: &Step) -> Stop {
    let message = format!(
        "{} has ended its own transaction or lost the lock, so parts of it may be applied; take COMMIT, ROLLBACK and \
         pg_advisory_unlock_all out of it, and make sure that the direct host is no pooler's",
        named(step)
    );
    let failure = failed(step, message);
    Stop::Failed(StepFailure {
        is_final: true,
        ..failure
    })
}

/// Returns the failure of a step.
pub(super) fn failed(step: &Step, message: String) -> StepFailure {
    StepFailure::of(step, error(SchemaFault::Failed, message))
}

/// Returns the failure of a step that the database has in another form than the program, or lacks.
pub(super) fn diverged(step: &Step, message: String) -> StepFailure {
    let failure = StepFailure::of(step, error(SchemaFault::Diverged, message));
    StepFailure {
        is_final: true,
        ..failure
    }
}

fn with_source(failure: StepFailure, source: impl Into<BoxError>) -> StepFailure {
    StepFailure {
        error: failure.error.with_source(source),
        ..failure
    }
}

fn error(fault: SchemaFault, message: String) -> Error {
    Error::new(ErrorKind::Schema(fault), message).with_stage(Stage::Migrate)
}
