//! The possible ends of one run of a transaction, and their errors.

use std::time::Duration;

use tokio_postgres::error::Severity;

use crate::{
    connection::verdict::{self, Loss, ServerClose},
    model::error::{Error, ErrorKind, Stage},
    pool::loan::Loan,
};

/// The outcome of one run, as far as the connection shows it.
pub(super) enum End {
    /// The transaction is committed, or the read is over.
    Committed,
    /// The transaction is rolled back because the closure failed.
    Undone,
    /// Nothing was committed, and the transaction may be run again.
    Again(Error, Why),
    /// The run failed with an error of the router's.
    Failed(Error),
    /// Postgres refused to begin or to commit the transaction.
    Refused(tokio_postgres::Error),
}

/// The reason for another run of a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// The connection was lost.
    Lost,
    /// The pooler had no free connection to the database.
    Crowded,
    /// BEGIN got no answer for a while: the connection may be dead, or the pooler has no free connection to the
    /// database.
    Silent,
    /// The transaction conflicted with another one.
    Conflict,
    /// A statement was prepared before a schema change.
    Outdated,
}

/// Returns whether Postgres answered. Then the request certainly had no effect, and the connection is still alive.
pub(super) fn is_answer(err: &tokio_postgres::Error) -> bool {
    let severity = err
        .as_db_error()
        .map(|db| (db.parsed_severity(), db.severity()));
    matches!(severity, Some((Some(Severity::Error), _) | (None, "ERROR")))
}

/// Returns whether the connection has ended, or the server has announced its end.
pub(super) fn is_dead(loan: &Loan) -> bool {
    let connection = loan.connection();
    connection.client.is_closed() || connection.status.farewell().is_some()
}

/// Returns the outcome of a run whose connection was lost before the commit.
pub(super) fn lost(loan: &Loan) -> End {
    let farewell = loan.connection().status.farewell();
    let err = loss(loan);
    match verdict::on_loss(farewell.as_ref()) {
        Loss::Again => End::Again(err, Why::Lost),
        Loss::AgainSlowly => End::Again(err, Why::Crowded),
        Loss::Permanent => End::Failed(err.with_retry_after(None)),
    }
}

/// Returns the error for a connection that was lost before its transaction was committed.
pub(super) fn loss(loan: &Loan) -> Error {
    let said = match loan.connection().status.farewell() {
        Some(ServerClose { sqlstate, text }) => format!("SQLSTATE {sqlstate}: {text}"),
        None => "without a message".to_owned(),
    };
    let message =
        format!("the connection was lost in a transaction ({said}); nothing was committed");
    Error::new(ErrorKind::Connect, message)
        .with_stage(Stage::Query)
        .with_retry_after(Duration::from_secs(1))
}

/// Returns the outcome of a run whose connection was lost in the closure, which may have ended the transaction itself.
pub(super) fn lost_inside(loan: &Loan, ends: u64) -> End {
    if loan.connection().status.ends() == ends {
        return lost(loan);
    }
    let message = "the connection was lost after the closure sent a statement that may have ended the transaction; \
                   check whether its writes are in the database before you repeat it";
    End::Failed(Error::new(ErrorKind::CommitUnknown, message).with_stage(Stage::Commit))
}

pub(super) fn conflict() -> End {
    let message = "the transaction conflicted with another one and was rolled back";
    let err = Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Query);
    End::Again(err, Why::Conflict)
}

pub(super) fn outdated() -> End {
    let message =
        "a statement was prepared before a schema change; the transaction was rolled back";
    let err = Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Query);
    End::Again(err, Why::Outdated)
}

pub(super) fn rolled_back(loan: &Loan) -> Error {
    let code = loan.connection().status.last_sqlstate().unwrap_or_default();
    let message = format!(
        "postgres rolled the transaction back, because a statement in it had failed (SQLSTATE {code}); return that \
         error from the closure, or put a savepoint around the statements that may fail"
    );
    Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Commit)
}

pub(super) fn commit_unknown() -> Error {
    let message = "the connection was lost after COMMIT was sent and before it was answered; check whether the \
                   transaction's writes are in the database before you repeat it";
    Error::new(ErrorKind::CommitUnknown, message).with_stage(Stage::Commit)
}

pub(super) fn kept() -> Error {
    let message =
        "the closure kept its Tx after it had returned, so the transaction was not committed";
    Error::new(ErrorKind::Misused, message).with_stage(Stage::Commit)
}

pub(super) fn ended_inside() -> Error {
    let message = "the closure ended the transaction itself, and its writes may be committed; leave COMMIT and \
                   ROLLBACK to the router";
    Error::new(ErrorKind::Misused, message).with_stage(Stage::Commit)
}
