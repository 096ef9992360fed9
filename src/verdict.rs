//! What a failed connect, or a lost connection, tells us to do.
//!
//! Neon's proxy sends `XX000` for nearly everything while connecting, so there the text is read first and the SQLSTATE
//! second. After the login it passes bytes on, so there the SQLSTATE is read first. What is not known is taken for a
//! passing fault: the deadline bounds it.

use std::{error::Error as StdError, io, time::Duration};

use tokio_postgres::error::SqlState;

use crate::error::{Error, ErrorKind, ExhaustedQuota};

/// For how long Neon's proxy repeats an answer of the control plane without asking again, and a little more.
pub(crate) const REPEATED: Duration = Duration::from_millis(30_500);

/// How an attempt to connect failed.
#[derive(Debug)]
pub(crate) enum DialFailure {
    /// The host has no address, or none of them took the connection.
    Unreachable(io::Error),
    /// The server, the TLS layer or the driver refused the login.
    Login(tokio_postgres::Error),
    /// Nothing came back within the time for one attempt.
    Silent,
}

/// What to do after a failed attempt to connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// Try again soon: the compute is about to come up, or the fault passes.
    Again,
    /// Try again slowly: the control plane failed, and the proxy may only be repeating what it said before.
    AgainSlowly,
    /// The tenant may have moved: ask the catalog once, then try again soon.
    AskThenAgain,
    /// The tenant may have moved or its credential changed: ask the catalog once, then try once more.
    AskThenOnce,
    /// Give up, and remember why.
    Refuse,
}

/// What to do after a failed attempt of that kind.
pub(crate) const fn next(kind: ErrorKind) -> Next {
    match kind {
        ErrorKind::ActiveComputeLimit
        | ErrorKind::Connect
        | ErrorKind::Locked
        | ErrorKind::RateLimited => Next::Again,
        ErrorKind::ControlPlane => Next::AgainSlowly,
        ErrorKind::Unreachable => Next::AskThenAgain,
        ErrorKind::BadCredential | ErrorKind::EndpointNotFound => Next::AskThenOnce,
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
        | ErrorKind::Timeout(_)
        | ErrorKind::UnknownTenant => Next::Refuse,
    }
}

/// The error that a failed connect is for its callers. Its kind says [what to do next](next).
pub(crate) fn on_connect(failure: DialFailure, host: &str, port: u16) -> Error {
    match failure {
        DialFailure::Unreachable(err) => {
            let advice = if host.ends_with(EMULATORS) {
                "it is an emulator's: give the router `.resolve(emulator.resolver())`"
            } else {
                "check host and port of the tenant's entry, and the network"
            };
            let message = format!("cannot reach {host}:{port}; {advice}");
            Error::new(ErrorKind::Unreachable, message).with_source(err)
        }
        DialFailure::Silent => {
            Error::new(ErrorKind::Connect, format!("no answer from {host}:{port}"))
        }
        DialFailure::Login(err) => on_login(err, host),
    }
}

fn on_login(err: tokio_postgres::Error, host: &str) -> Error {
    let said = err.as_db_error().map(|db| short(db.message()));
    let (kind, advice, retry_after) = match err.as_db_error() {
        Some(db) => by_text(db.message())
            .or_else(|| by_sqlstate(db.code()))
            .unwrap_or(TRANSIENT),
        None => without_code(&err),
    };
    let said = said.filter(|_| kind == ErrorKind::Misconfigured);
    let said = said.map(|it| format!(" ({it})")).unwrap_or_default();
    Error::new(
        kind,
        format!("{host} did not take the login: {advice}{said}"),
    )
    .with_retry_after(retry_after)
    .with_source(err)
}

/// What a server said, for a message of one line.
fn short(said: &str) -> String {
    let plain = said.chars().filter(|it| !it.is_control());
    plain.take(LONGEST_WORDS).collect()
}

/// Kind, what to do, and when another attempt may help.
type Row = (ErrorKind, &'static str, Option<Duration>);

const fn row(kind: ErrorKind, advice: &'static str) -> Row {
    (kind, advice, None)
}

const fn later(kind: ErrorKind, advice: &'static str, wait: Duration) -> Row {
    (kind, advice, Some(wait))
}

const fn quota(which: ExhaustedQuota, advice: &'static str) -> Row {
    later(ErrorKind::QuotaExhausted(which), advice, QUOTA_WAIT)
}

/// What the names of an emulator's hosts end in, which no other resolver knows.
const EMULATORS: &str = ".neon.test";
/// As much as is repeated of what a server said.
const LONGEST_WORDS: usize = 200;
/// How soon something that somebody must mend first is tried again, where no proxy repeats its answer.
const MENDED: Duration = Duration::from_secs(5);
/// How soon a used-up quota is asked about again.
const QUOTA_WAIT: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

const TRANSIENT: Row = row(ErrorKind::Connect, "the fault may pass");
const CONTROL_PLANE: Row = row(
    ErrorKind::ControlPlane,
    "neon's control plane failed; if this stays so, see neon's status page",
);
const CREDENTIAL: Row = later(
    ErrorKind::BadCredential,
    "check role and password of the tenant's entry; Neon also says this of an endpoint or role that is gone",
    MENDED,
);
const COMPUTE_TIME: Row = quota(
    ExhaustedQuota::ComputeTime,
    "the compute time is used up; raise the quota or wait for the next billing period",
);
const ACTIVE_TIME: Row = quota(
    ExhaustedQuota::ActiveTime,
    "the active time is used up; raise the quota or wait for the next billing period",
);
const WRITTEN_DATA: Row = quota(
    ExhaustedQuota::WrittenData,
    "the quota of written data is used up; raise it or wait for the next billing period",
);
const DATA_TRANSFER: Row = quota(
    ExhaustedQuota::DataTransfer,
    "the quota of data transfer is used up; raise it or wait for the next billing period",
);
const LOGICAL_SIZE: Row = quota(
    ExhaustedQuota::LogicalSize,
    "the data has reached its largest size; raise the quota or delete data",
);
const QUOTA: Row = quota(
    ExhaustedQuota::Other,
    "a quota of the project or account is used up; raise it or wait for the next billing period",
);
const DISABLED: Row = later(
    ErrorKind::Disabled,
    "the endpoint is disabled; enable it through neon's api",
    REPEATED,
);
const GONE: Row = later(
    ErrorKind::EndpointNotFound,
    "the endpoint is gone, or was never there; check the tenant's entry in the catalog",
    REPEATED,
);
const NETWORK: Row = later(
    ErrorKind::Refused,
    "the database does not take connections from this server's address; add it to the allow list",
    REPEATED,
);
const SETTINGS: Row = later(
    ErrorKind::Misconfigured,
    "the connection's settings are wrong: database, role, startup options or TLS",
    MENDED,
);
const CERTIFICATE: Row = later(
    ErrorKind::Misconfigured,
    "the server's certificate does not prove its name; add its root certificate",
    MENDED,
);
const CROWDED: Row = later(
    ErrorKind::RateLimited,
    "too many connections or attempts at once; fewer at a time will pass",
    SECOND,
);
const ACTIVE: Row = later(
    ErrorKind::ActiveComputeLimit,
    "too many computes of the account are awake; let one of them sleep, or have the limit raised",
    REPEATED,
);
const ASKED_TOO_OFTEN: Row = later(
    ErrorKind::RateLimited,
    "neon's control plane is asked too often for this endpoint; leave it alone for a while",
    REPEATED,
);
const BUSY: Row = later(
    ErrorKind::Locked,
    "neon is doing something to the project, which passes within seconds",
    SECOND,
);
const UNAVAILABLE: Row = later(
    ErrorKind::Locked,
    "neon does not say why the endpoint is unavailable; check the project's quotas and state if it stays so",
    REPEATED,
);
const POOLER_WAITS: Row = later(
    ErrorKind::Connect,
    "the pooler could not log in at the database and tries again within 15 seconds",
    SECOND,
);

/// Text (in lower case) that decides, in the order in which it is looked for. What Neon's proxy and control plane say,
/// and what Postgres and PgBouncer say behind it, whose codes are lost on the way.
const TEXTS: &[(&str, Row)] = &[
    ("password authentication failed", CREDENTIAL),
    ("concurrently active endpoints", ACTIVE),
    ("active endpoints limit exceeded", ACTIVE),
    ("exceeded the compute time", COMPUTE_TIME),
    ("exceeded the active time", ACTIVE_TIME),
    ("exceeded the written data", WRITTEN_DATA),
    ("exceeded the data transfer", DATA_TRANSFER),
    ("exceeded the logical size", LOGICAL_SIZE),
    ("quota. upgrade", QUOTA),
    ("endpoint has been disabled", DISABLED),
    ("endpoint is disabled", DISABLED),
    ("could not be found", GONE),
    ("cannot be found", GONE),
    ("temporarily unavailable", UNAVAILABLE),
    ("running operations", BUSY),
    ("is not allowed to connect", NETWORK),
    ("blocked network", NETWORK),
    ("no pg_hba.conf entry", NETWORK),
    ("endpoint id is not specified", SETTINGS),
    ("inconsistent project name", SETTINGS),
    ("must contain only alphanumeric", SETTINGS),
    ("is missing in startup packet", SETTINGS),
    ("connection is insecure", SETTINGS),
    ("unsupported startup parameter", SETTINGS),
    ("authentication protocol violation", SETTINGS),
    ("channel binding", SETTINGS),
    ("exceeded the rate limit", ASKED_TOO_OFTEN),
    ("too many connections", CROWDED),
    ("failed to acquire permit", CROWDED),
    ("remaining connection slots", CROWDED),
    ("too many clients already", CROWDED),
    ("no more connections allowed", CROWDED),
    ("query_wait_timeout", CROWDED),
    ("server login has been failing", POOLER_WAITS),
    ("client_login_timeout", POOLER_WAITS),
    ("database \"", SETTINGS),
    ("role \"", CREDENTIAL),
    ("control plane request failed", CONTROL_PLANE),
];

fn by_text(message: &str) -> Option<Row> {
    let message = message.to_lowercase();
    TEXTS
        .iter()
        .find(|(text, _)| message.contains(text))
        .map(|(_, row)| *row)
}

fn by_sqlstate(code: &SqlState) -> Option<Row> {
    match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Some(CREDENTIAL)
        }
        SqlState::INVALID_CATALOG_NAME => Some(SETTINGS),
        SqlState::TOO_MANY_CONNECTIONS => Some(CROWDED),
        _ => None,
    }
}

/// Failures of TLS and of the driver, which tell themselves apart by their text and source only.
fn without_code(err: &tokio_postgres::Error) -> Row {
    let text = err.to_string();
    let certificate = sources(err).any(|source| {
        let tls = source.downcast_ref::<rustls::Error>();
        tls.is_some_and(|tls| matches!(tls, rustls::Error::InvalidCertificate(_)))
    });
    if certificate {
        CERTIFICATE
    } else if text.starts_with("invalid configuration") || text.starts_with("authentication error")
    {
        SETTINGS
    } else {
        TRANSIENT
    }
}

/// The chain of causes, also those that an `io::Error` carries inside.
fn sources<'a>(
    err: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(err), |err| {
        let err: &'a (dyn StdError + 'static) = *err;
        match err.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inside) => Some(inside),
            None => err.source(),
        }
    })
}

/// What the server said when it ended a connection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Farewell {
    /// Its SQLSTATE.
    pub(crate) sqlstate: String,
    /// The start of its text.
    pub(crate) text: String,
}

/// What the loss of a connection in use says about running the same again, where nothing was committed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Loss {
    /// It can run again: the compute or something in front of it went away.
    Again,
    /// It can run again, but not at once: too many others want the same.
    AgainSlowly,
    /// It would end the same way: the server ended it for what its user did.
    SameAgain,
}

/// What a lost connection tells us to do: by SQLSTATE, and by text where PgBouncer has one code for everything.
/// `None` is a connection that ended without a word, as Neon's pooler does when the compute is suspended.
pub(crate) fn on_loss(farewell: Option<&Farewell>) -> Loss {
    let Some(Farewell { sqlstate, text }) = farewell else {
        return Loss::Again;
    };
    LOSSES
        .iter()
        .find(|(code, part, _)| code == sqlstate && text.contains(part))
        .map_or(Loss::Again, |(_, _, loss)| *loss)
}

/// SQLSTATE, part of the text, and what to do. Everything else (57P01 to 57P03, class 08, crashes) can run again.
const LOSSES: &[(&str, &str, Loss)] = &[
    ("25P03", "", Loss::SameAgain), // idle in transaction for too long: 5 minutes at Neon
    ("25P04", "", Loss::SameAgain), // transaction_timeout
    ("57P04", "", Loss::SameAgain), // the database was dropped
    ("57P05", "", Loss::SameAgain), // idle_session_timeout
    ("08P01", "query_wait_timeout", Loss::AgainSlowly),
    ("08P01", "server login has been failing", Loss::AgainSlowly),
    ("08P01", "query_timeout", Loss::SameAgain),
    ("08P01", "query timeout", Loss::SameAgain),
    ("08P01", "transaction timeout", Loss::SameAgain),
    ("08P01", "transaction_timeout", Loss::SameAgain),
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
            ("08P01", "query_timeout", Loss::SameAgain),
            ("08P01", "idle transaction timeout", Loss::SameAgain),
            (
                "25P03",
                "terminating connection due to idle-in-transaction timeout",
                Loss::SameAgain,
            ),
            (
                "57P05",
                "terminating connection due to idle-session timeout",
                Loss::SameAgain,
            ),
            ("57P04", "database \"d\" was dropped", Loss::SameAgain),
            // The code decides, whatever the text says.
            ("57P01", "query_timeout", Loss::Again),
        ];
        for (sqlstate, text, loss) in rows {
            let farewell = Farewell {
                sqlstate: sqlstate.into(),
                text: text.into(),
            };
            assert_eq!(on_loss(Some(&farewell)), loss, "{sqlstate} {text}");
        }
        assert_eq!(on_loss(None), Loss::Again, "cut without a word");
    }

    /// What Neon's proxy was seen to say while connecting, or is documented to say.
    const SAID: &[(&str, Row)] = &[
        (
            "password authentication failed for user 'neondb_owner'",
            CREDENTIAL,
        ),
        (
            "The requested endpoint could not be found, or you don't have access to it. Please check",
            GONE,
        ),
        (
            "Control plane request failed: endpoint cannot be found",
            GONE,
        ),
        (
            "The endpoint has been disabled. Enable it using Neon API and retry.",
            DISABLED,
        ),
        (
            "Control plane request failed: endpoint is disabled",
            DISABLED,
        ),
        (
            "This IP address 127.0.0.1 is not allowed to connect to this endpoint.",
            NETWORK,
        ),
        (
            "This connection is trying to access this endpoint from a blocked network.",
            NETWORK,
        ),
        (
            "Your project has exceeded the active time quota. Upgrade your plan to increase limits.",
            ACTIVE_TIME,
        ),
        (
            "Your account or project has exceeded the compute time quota. Upgrade your plan",
            COMPUTE_TIME,
        ),
        (
            "Your project has exceeded the written data quota. Upgrade your plan",
            WRITTEN_DATA,
        ),
        (
            "Your project has exceeded the data transfer quota. Upgrade your plan to increase limits.",
            DATA_TRANSFER,
        ),
        (
            "Your project has exceeded the logical size quota. Upgrade your plan to increase limits.",
            LOGICAL_SIZE,
        ),
        ("You have exceeded your quota. Upgrade your plan", QUOTA),
        (
            "You've exceeded the compute time for this branch. Upgrade your plan",
            COMPUTE_TIME,
        ),
        (
            "You have exceeded the limit of concurrently active endpoints. Please suspend some",
            ACTIVE,
        ),
        ("active endpoints limit exceeded", ACTIVE),
        (
            "You've exceeded the rate limit. Please wait a moment and try again.",
            ASKED_TOO_OFTEN,
        ),
        (
            "Your project already has running operations. Please wait until they complete",
            BUSY,
        ),
        (
            "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or",
            UNAVAILABLE,
        ),
        (
            "Too many connections to this endpoint. Please try again later.",
            CROWDED,
        ),
        ("Too many connections attempts", CROWDED),
        (
            "Failed to acquire permit to connect to the database. Too many database",
            CROWDED,
        ),
        (
            "remaining connection slots are reserved for non-replication superuser connections",
            CROWDED,
        ),
        ("sorry, too many clients already", CROWDED),
        ("no more connections allowed (max_client_conn)", CROWDED),
        (
            "server login has been failing, cached error: connect timeout (server_login_retry)",
            POOLER_WAITS,
        ),
        ("client_login_timeout (server down)", POOLER_WAITS),
        ("database \"nodb\" does not exist", SETTINGS),
        ("role \"nobody\" does not exist", CREDENTIAL),
        (
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", database \"d\"",
            NETWORK,
        ),
        (
            "unsupported startup parameter in options: statement_timeout",
            SETTINGS,
        ),
        (
            "Endpoint ID is not specified. Either please upgrade",
            SETTINGS,
        ),
        (
            "Inconsistent project name inferred from SNI ('a') and project option ('b').",
            SETTINGS,
        ),
        (
            "Project name ('a_b') must contain only alphanumeric characters and hyphen.",
            SETTINGS,
        ),
        ("Parameter 'user' is missing in startup packet.", SETTINGS),
        (
            "connection is insecure (try using `sslmode=require`)",
            SETTINGS,
        ),
        ("Couldn't connect to compute node", TRANSIENT),
        ("Control plane request failed", CONTROL_PLANE),
        (
            "error communicating with the server: Connection reset by peer (os error 104)",
            TRANSIENT,
        ),
        ("Authentication timed out", TRANSIENT),
        ("Internal error", TRANSIENT),
        ("the database system is starting up", TRANSIENT),
        (
            "the database system is not yet accepting connections",
            TRANSIENT,
        ),
        ("the database system is in recovery mode", TRANSIENT),
        ("the database system is shutting down", TRANSIENT),
    ];

    #[test]
    fn neons_texts_decide_while_connecting() {
        for (text, row) in SAID {
            assert_eq!(by_text(text).unwrap_or(TRANSIENT), *row, "{text}");
        }
    }
}
