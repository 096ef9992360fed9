//! Verdicts on failed connects and lost connections.
//!
//! Neon's proxy answers nearly every failed login with `XX000`, so the text is judged first and the SQLSTATE second.
//! After the login the proxy only forwards bytes, so the SQLSTATE is judged first. An unknown failure counts as
//! transient: the deadline bounds its retries.

mod answers;

use std::{io, time::Duration};

use rustls::{AlertDescription, pki_types::InvalidDnsNameError};

use crate::model::{
    chain,
    error::{Error, ErrorKind},
    tls::{sources, untrusted_reason},
};
use answers::Row;

/// Time for which Neon's proxy repeats an answer of the control plane without asking again, and a little more.
pub(crate) const REPEATED: Duration = Duration::from_millis(30_500);

/// The failure of an attempt to connect.
#[derive(Debug)]
pub(super) enum DialFailure {
    /// The host has no address, or none of its addresses accepted the connection.
    Unreachable(io::Error),
    /// The server, the TLS layer or the driver refused the login.
    Login(tokio_postgres::Error),
    /// No answer came within the time for one attempt.
    Silent,
}

/// The next step after a failed attempt to connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RetryDecision {
    /// Try again soon: the compute is about to come up, or the fault is transient.
    Retry,
    /// Try again slowly: the control plane failed, and the proxy may only be repeating its earlier answer.
    RetrySlowly,
    /// The tenant may have moved: ask the catalog once, then try again soon.
    RelocateThenRetry,
    /// The tenant may have moved or its credential changed: ask the catalog once, then try once more.
    RelocateThenRetryOnce,
    /// Give up, and remember the error.
    GiveUp,
}

/// Returns the next step after an attempt that failed with that kind.
pub(crate) const fn next(kind: ErrorKind) -> RetryDecision {
    match kind {
        ErrorKind::ActiveComputeLimit
        | ErrorKind::Connect
        | ErrorKind::Locked
        | ErrorKind::RateLimited => RetryDecision::Retry,
        ErrorKind::ControlPlane => RetryDecision::RetrySlowly,
        ErrorKind::StaleCredential | ErrorKind::Unreachable => RetryDecision::RelocateThenRetry,
        ErrorKind::BadCredential | ErrorKind::EndpointNotFound => {
            RetryDecision::RelocateThenRetryOnce
        }
        ErrorKind::BadRecord
        | ErrorKind::Catalog
        | ErrorKind::Closed
        | ErrorKind::CommitUnknown
        | ErrorKind::Conflict
        | ErrorKind::Deleted
        | ErrorKind::Disabled
        | ErrorKind::Held
        | ErrorKind::Internal
        | ErrorKind::InvalidTenant
        | ErrorKind::Misconfigured
        | ErrorKind::Misused
        | ErrorKind::NotFound
        | ErrorKind::Overloaded
        | ErrorKind::Provisioning
        | ErrorKind::Query
        | ErrorKind::QuotaExhausted(_)
        | ErrorKind::Refused
        | ErrorKind::RolledBack
        | ErrorKind::Schema(_)
        | ErrorKind::Timeout(_)
        | ErrorKind::UnknownTenant => RetryDecision::GiveUp,
    }
}

/// Turns a failed connect into the error for its callers, whose kind decides [the next step](next). `may_lag` is set if
/// a proxy may refuse the password only because it does not know it yet.
pub(super) fn on_connect(failure: DialFailure, host: &str, port: u16, may_lag: bool) -> Error {
    match failure {
        DialFailure::Unreachable(err) => {
            let advice = if host.ends_with(EMULATORS) {
                "the host belongs to an emulator: build the router with `.resolve(emulator.resolver())`"
            } else {
                "check the host and port in the tenant's entry, and the network"
            };
            let message = format!("cannot reach {host}:{port}; {advice}");
            Error::new(ErrorKind::Unreachable, message).with_source(err)
        }
        DialFailure::Silent => {
            Error::new(ErrorKind::Connect, format!("no answer from {host}:{port}"))
        }
        DialFailure::Login(err) => on_login(err, host, may_lag),
    }
}

fn on_login(err: tokio_postgres::Error, host: &str, may_lag: bool) -> Error {
    let ((kind, _, retry_after), message) = match err.as_db_error() {
        Some(said) => {
            let row = match answers::of(said.code(), said.message()) {
                answers::CREDENTIAL if may_lag => answers::STALE_CREDENTIAL,
                row => row,
            };
            (row, format!("{host} rejected the login: {}", row.1))
        }
        None => before_login(&err, host),
    };
    let words = err.as_db_error().map(chain::words);
    let words = words.filter(|_| kind == ErrorKind::Misconfigured);
    let words = words
        .map(|it| format!("; the server said: {it}"))
        .unwrap_or_default();
    Error::new(kind, format!("{message}{words}"))
        .with_retry_after(retry_after)
        .with_source(err)
}

/// Returns the verdict on a failure of TLS or of the driver, and its message. The server has not judged the login yet.
fn before_login(err: &tokio_postgres::Error, host: &str) -> (Row, String) {
    if let Some(why) = untrusted_reason(err) {
        let (kind, _, retry_after) = answers::CERTIFICATE;
        let message = format!("the certificate that {host} shows is not trusted: {why}");
        return ((kind, why, retry_after), message);
    }
    let row = without_code(err);
    let what = match row {
        answers::TRANSIENT => "broke off the login",
        answers::SETTINGS => "was not sent a login",
        _ => "cannot be connected to safely",
    };
    (row, format!("{host} {what}: {}", row.1))
}

/// Suffix of an emulator's host names, which no other resolver knows.
const EMULATORS: &str = ".neon.test";
/// Returns the verdict on a failure of TLS or of the driver. Only text and source tell such failures apart.
fn without_code(err: &tokio_postgres::Error) -> Row {
    for cause in sources(err) {
        if cause.is::<InvalidDnsNameError>() {
            return answers::HOST_NAME;
        }
        if cause.to_string() == "server does not support TLS" {
            return answers::NO_TLS;
        }
        if let Some(row) = cause.downcast_ref().and_then(on_tls) {
            return row;
        }
    }
    let text = err.to_string();
    let is_ours = [
        "invalid configuration",
        "authentication error",
        "error encoding message",
    ]
    .iter()
    .any(|kind| text.starts_with(kind));
    if is_ours {
        answers::SETTINGS
    } else {
        answers::TRANSIENT
    }
}

/// Returns the verdict on a failure of TLS, if the same two sides would meet it again.
fn on_tls(err: &rustls::Error) -> Option<Row> {
    match err {
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol
            | AlertDescription::ProtocolVersion
            | AlertDescription::UnrecognisedName,
        ) => Some(answers::TLS),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate,
        ) => Some(answers::CLIENT_CERTIFICATE),
        _ => None,
    }
}

/// The server's message when it ended a connection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ServerClose {
    /// Its SQLSTATE.
    pub(crate) sqlstate: String,
    /// The start of its text.
    pub(crate) text: String,
}

/// The verdict on a connection lost in use: whether the same work can run again, if nothing was committed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Loss {
    /// The work can run again: the compute or something in front of it went away.
    Again,
    /// The work can run again, but not at once: the pooler has no server connection free.
    AgainSlowly,
    /// The work would end the same way: the server ended the connection for what its user did.
    Permanent,
}

/// Judges a lost connection by SQLSTATE, and by text too, as PgBouncer has one code for everything. `None` is a
/// connection that ended without a message, as Neon's pooler does when the compute is suspended.
pub(crate) fn on_loss(farewell: Option<&ServerClose>) -> Loss {
    let Some(ServerClose { sqlstate, text }) = farewell else {
        return Loss::Again;
    };
    LOSSES
        .iter()
        .find(|(code, part, _)| code == sqlstate && text.contains(part))
        .map_or(Loss::Again, |(_, _, loss)| *loss)
}

/// SQLSTATE, part of the text, and verdict. Any other loss (57P01 to 57P03, class 08, crashes) lets the work run again.
const LOSSES: &[(&str, &str, Loss)] = &[
    ("25P03", "", Loss::Permanent), // idle in transaction for too long: 5 minutes at Neon
    ("25P04", "", Loss::Permanent), // transaction_timeout
    ("57P04", "", Loss::Permanent), // the database was dropped
    ("57P05", "", Loss::Permanent), // idle_session_timeout
    ("08P01", "query_wait_timeout", Loss::AgainSlowly),
    ("08P01", "server login has been failing", Loss::AgainSlowly),
    ("08P01", "query_timeout", Loss::Permanent),
    ("08P01", "query timeout", Loss::Permanent),
    ("08P01", "transaction timeout", Loss::Permanent),
    ("08P01", "transaction_timeout", Loss::Permanent),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_judged_by_its_code_first() {
        let rows = [
            (
                "57P01",
                "terminating connection due to administrator command",
                Loss::Again,
            ),
            (
                "57P02",
                "terminating connection because of crash of another server process",
                Loss::Again,
            ),
            ("57P03", "the database system is shutting down", Loss::Again),
            ("08P01", "server conn crashed?", Loss::Again),
            ("08P01", "pooler is shutting down", Loss::Again),
            ("08P01", "prepared statement did not exist", Loss::Again),
            ("08006", "connection failure", Loss::Again),
            ("08P01", "query_wait_timeout", Loss::AgainSlowly),
            (
                "08P01",
                "server login has been failing, cached error: connect failed",
                Loss::AgainSlowly,
            ),
            ("08P01", "query_timeout", Loss::Permanent),
            ("08P01", "idle transaction timeout", Loss::Permanent),
            (
                "25P03",
                "terminating connection due to idle-in-transaction timeout",
                Loss::Permanent,
            ),
            (
                "57P05",
                "terminating connection due to idle-session timeout",
                Loss::Permanent,
            ),
            ("57P04", "database \"d\" was dropped", Loss::Permanent),
            // The code decides, whatever the text says.
            ("57P01", "query_timeout", Loss::Again),
        ];
        for (sqlstate, text, loss) in rows {
            let farewell = ServerClose {
                sqlstate: sqlstate.into(),
                text: text.into(),
            };
            assert_eq!(on_loss(Some(&farewell)), loss, "{sqlstate} {text}");
        }
        assert_eq!(on_loss(None), Loss::Again, "cut without a word");
    }
}
