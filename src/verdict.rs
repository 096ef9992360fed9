//! What a failed connect tells us to do.
//!
//! Neon's proxy sends `XX000` for nearly everything while connecting, so the text is read first and the SQLSTATE
//! second. What is not known is taken for a passing fault: the deadline bounds it.

use std::{error::Error as StdError, io, time::Duration};

use tokio_postgres::error::SqlState;

use crate::error::{Error, ErrorKind};

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

/// The error that a failed connect is for its callers. Its kind says whether another attempt can help.
pub(crate) fn on_connect(failure: DialFailure, host: &str) -> Error {
    match failure {
        DialFailure::Unreachable(err) => {
            Error::new(ErrorKind::Connect, format!("cannot reach {host}")).with_source(err)
        }
        DialFailure::Silent => Error::new(ErrorKind::Connect, format!("no answer from {host}")),
        DialFailure::Login(err) => on_login(err, host),
    }
}

fn on_login(err: tokio_postgres::Error, host: &str) -> Error {
    let (kind, advice, retry_after) = match err.as_db_error() {
        Some(db) => by_text(db.message())
            .or_else(|| by_sqlstate(db.code()))
            .unwrap_or(TRANSIENT),
        None => without_code(&err),
    };
    Error::new(kind, format!("{host} did not take the login: {advice}"))
        .with_retry_after(retry_after)
        .with_source(err)
}

/// Kind, what to do, and when another attempt may help.
type Row = (ErrorKind, &'static str, Option<Duration>);

const fn row(kind: ErrorKind, advice: &'static str) -> Row {
    (kind, advice, None)
}

const fn later(kind: ErrorKind, advice: &'static str, milliseconds: u64) -> Row {
    (kind, advice, Some(Duration::from_millis(milliseconds)))
}

/// For how long Neon's proxy repeats an answer of the control plane without asking again, and a little more.
const REPEATED: u64 = 30_500;

const TRANSIENT: Row = row(ErrorKind::Connect, "the fault may pass");
const CREDENTIAL: Row = row(
    ErrorKind::Refused,
    "check role and password in the catalog; Neon also says this of an endpoint or role that is gone",
);
const QUOTA: Row = later(
    ErrorKind::QuotaExhausted,
    "a quota of the project or account is used up; raise it or wait for the next billing period",
    60_000,
);
const DISABLED: Row = row(
    ErrorKind::Refused,
    "the endpoint is disabled; enable it in Neon's console or API",
);
const GONE: Row = row(
    ErrorKind::Refused,
    "the endpoint is gone, or was never there; check the tenant's entry in the catalog",
);
const NETWORK: Row = row(
    ErrorKind::Refused,
    "the database does not take connections from this server's address; add it to the allow list",
);
const SETTINGS: Row = row(
    ErrorKind::Refused,
    "the connection's settings are wrong; the source says which",
);
const CROWDED: Row = later(
    ErrorKind::RateLimited,
    "too many connections or attempts at once; fewer at a time will pass",
    1000,
);
const ACTIVE: Row = later(
    ErrorKind::RateLimited,
    "too many computes of the account are awake; it clears when one of them sleeps",
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
    1000,
);
const UNAVAILABLE: Row = later(
    ErrorKind::Locked,
    "neon does not say why the endpoint is unavailable; check the project's quotas and state if it stays so",
    REPEATED,
);
const POOLER_WAITS: Row = later(
    ErrorKind::Connect,
    "the pooler could not log in at the database and tries again within 15 seconds",
    1000,
);

/// Text (in lower case) that decides, in the order in which it is looked for. What Neon's proxy and control plane say,
/// and what Postgres and PgBouncer say behind it, whose codes are lost on the way.
const TEXTS: &[(&str, Row)] = &[
    ("password authentication failed", CREDENTIAL),
    ("concurrently active endpoints", ACTIVE),
    ("active endpoints limit exceeded", ACTIVE),
    ("quota. upgrade", QUOTA),
    ("exceeded the compute time", QUOTA),
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
        (
            ErrorKind::Refused,
            "the server's certificate does not prove its name; add its root certificate",
            None,
        )
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

#[cfg(test)]
mod tests {
    use super::*;

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
            QUOTA,
        ),
        (
            "Your account or project has exceeded the compute time quota. Upgrade your plan",
            QUOTA,
        ),
        (
            "Your project has exceeded the written data quota. Upgrade your plan",
            QUOTA,
        ),
        (
            "You've exceeded the compute time for this branch. Upgrade your plan",
            QUOTA,
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
        ("Control plane request failed", TRANSIENT),
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
