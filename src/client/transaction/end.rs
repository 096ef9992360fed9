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
pub(super) fn is_dead(lease: &Loan) -> bool {
    let connection = lease.connection();
    connection.client.is_closed() || connection.status.farewell().is_some()
}

/// Returns the outcome of a run whose connection was lost before the commit.
pub(super) fn lost(lease: &Loan) -> End {
    let farewell = lease.connection().status.farewell();
    let err = loss(lease);
    match verdict::on_loss(farewell.as_ref()) {
        Loss::Again => End::Again(err, Why::Lost),
        Loss::AgainSlowly => End::Again(err, Why::Crowded),
        Loss::Permanent => End::Failed(err.with_retry_after(None)),
    }
}

/// Returns the error for a connection that was lost before its transaction was committed.
pub(super) fn loss(lease: &Loan) -> Error {
    let said = match lease.connection().status.farewell() {
        Some(ServerClose { sqlstate, text }) => format!("SQLSTATE {sqlstate}: {text}"),
        None => "without a word".to_owned(),
    };
    let message =
        format!("the connection was lost in a transaction ({said}); nothing was committed");
    Error::new(ErrorKind::Connect, message)
        .with_stage(Stage::Query)
        .with_retry_after(Duration::from_secs(1))
}

/// Returns the outcome of a run whose connection was lost in the closure, which may have ended the transaction itself.
pub(super) fn lost_inside(lease: &Loan, ends: u64) -> End {
    if lease.connection().status.ends() == ends {
        return lost(lease);
    }
    let message = "the connection was lost after the closure sent what may have ended the transaction; look for what \
                   it wrote before repeating it";
    End::Failed(Error::new(ErrorKind::CommitUnknown, message).with_stage(Stage::Commit))
}

pub(super) fn conflict() -> End {
    let message = "the transaction met another one and was rolled back";
    let err = Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Query);
    End::Again(err, Why::Conflict)
}

pub(super) fn outdated() -> End {
    let message =
        "a statement was prepared before a schema change; the transaction was rolled back";
    let err = Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Query);
    End::Again(err, Why::Outdated)
}

pub(super) fn rolled_back(lease: &Loan) -> Error {
    let code = lease
        .connection()
        .status
        .last_sqlstate()
        .unwrap_or_default();
    let message = format!(
        "postgres rolled the transaction back: a statement had failed in it (SQLSTATE {code}); return that error from \
         the closure, or use a savepoint around what may fail"
    );
    Error::new(ErrorKind::RolledBack, message).with_stage(Stage::Commit)
}

pub(super) fn commit_unknown() -> Error {
    let message = "the connection was lost after COMMIT was sent and before its answer; look for what the transaction \
                   wrote before repeating it";
    Error::new(ErrorKind::CommitUnknown, message).with_stage(Stage::Commit)
}

pub(super) fn kept() -> Error {
    let message = "the closure kept its Tx beyond its own end; the transaction was not committed";
    Error::new(ErrorKind::Misused, message).with_stage(Stage::Commit)
}

pub(super) fn ended_inside() -> Error {
    let message = "the closure ended the transaction itself, and what it did may be committed; leave COMMIT and \
                   ROLLBACK to the router";
    Error::new(ErrorKind::Misused, message).with_stage(Stage::Commit)
}
