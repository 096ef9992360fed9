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

type Row = (ErrorKind, &'static str, Option<Duration>);

const TRANSIENT: Row = (ErrorKind::Connect, "the fault may pass", None);

const CREDENTIAL: &str = "check role and password in the catalog; Neon also says this of an endpoint or role that is gone";
const QUOTA: &str =
    "a quota of the project or account is used up; raise it or wait for the next billing period";
const DISABLED: &str = "the endpoint is disabled; enable it in Neon's console or API";
const GONE: &str =
    "the endpoint is gone, or was never there; check the tenant's entry in the catalog";
const NETWORK: &str = "the project's IP allow list refuses this server; add its address";
const SETTINGS: &str = "the connection's settings are wrong; the source says which";
const CROWDED: &str = "too many connection attempts at once; fewer at a time will pass";
const ACTIVE: &str =
    "too many computes of the account are awake; it clears when one of them sleeps";

/// Text (in lower case) that decides, in the order in which it is looked for.
const TEXTS: &[(&str, Row)] = &[
    (
        "password authentication failed",
        (ErrorKind::Refused, CREDENTIAL, None),
    ),
    (
        "concurrently active endpoints",
        (
            ErrorKind::RateLimited,
            ACTIVE,
            Some(Duration::from_secs(30)),
        ),
    ),
    (
        "active endpoints limit exceeded",
        (
            ErrorKind::RateLimited,
            ACTIVE,
            Some(Duration::from_secs(30)),
        ),
    ),
    (
        "quota. upgrade",
        (
            ErrorKind::QuotaExhausted,
            QUOTA,
            Some(Duration::from_secs(60)),
        ),
    ),
    (
        "exceeded the compute time",
        (
            ErrorKind::QuotaExhausted,
            QUOTA,
            Some(Duration::from_secs(60)),
        ),
    ),
    (
        "endpoint has been disabled",
        (ErrorKind::Refused, DISABLED, None),
    ),
    ("endpoint is disabled", (ErrorKind::Refused, DISABLED, None)),
    ("could not be found", (ErrorKind::Refused, GONE, None)),
    ("cannot be found", (ErrorKind::Refused, GONE, None)),
    (
        "is not allowed to connect",
        (ErrorKind::Refused, NETWORK, None),
    ),
    ("blocked network", (ErrorKind::Refused, NETWORK, None)),
    (
        "endpoint id is not specified",
        (ErrorKind::Refused, SETTINGS, None),
    ),
    (
        "inconsistent project name",
        (ErrorKind::Refused, SETTINGS, None),
    ),
    (
        "connection is insecure",
        (ErrorKind::Refused, SETTINGS, None),
    ),
    (
        "unsupported startup parameter",
        (ErrorKind::Refused, SETTINGS, None),
    ),
    (
        "rate limit",
        (
            ErrorKind::RateLimited,
            CROWDED,
            Some(Duration::from_secs(5)),
        ),
    ),
    (
        "too many connections",
        (
            ErrorKind::RateLimited,
            CROWDED,
            Some(Duration::from_secs(1)),
        ),
    ),
    (
        "failed to acquire permit",
        (
            ErrorKind::RateLimited,
            CROWDED,
            Some(Duration::from_secs(1)),
        ),
    ),
    ("database \"", (ErrorKind::Refused, SETTINGS, None)),
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
            Some((ErrorKind::Refused, CREDENTIAL, None))
        }
        SqlState::INVALID_CATALOG_NAME => Some((ErrorKind::Refused, SETTINGS, None)),
        SqlState::TOO_MANY_CONNECTIONS => Some((
            ErrorKind::RateLimited,
            CROWDED,
            Some(Duration::from_secs(1)),
        )),
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
        (ErrorKind::Refused, SETTINGS, None)
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
    use ErrorKind::{Connect, QuotaExhausted, RateLimited, Refused};

    /// What Neon's proxy was seen to say while connecting.
    const SAID: &[(&str, ErrorKind)] = &[
        (
            "password authentication failed for user 'neondb_owner'",
            Refused,
        ),
        (
            "The requested endpoint could not be found, or you don't have access to it. Please check",
            Refused,
        ),
        (
            "Control plane request failed: endpoint cannot be found",
            Refused,
        ),
        (
            "The endpoint has been disabled. Enable it using Neon API and retry.",
            Refused,
        ),
        (
            "This IP address 127.0.0.1 is not allowed to connect to this endpoint.",
            Refused,
        ),
        (
            "Your project has exceeded the active time quota. Upgrade your plan to increase limits.",
            QuotaExhausted,
        ),
        (
            "Your account or project has exceeded the compute time quota. Upgrade your plan",
            QuotaExhausted,
        ),
        (
            "You've exceeded the compute time for this branch. Upgrade your plan",
            QuotaExhausted,
        ),
        (
            "You have exceeded the limit of concurrently active endpoints. Please suspend some",
            RateLimited,
        ),
        (
            "Too many connections to this endpoint. Please try again later.",
            RateLimited,
        ),
        ("Too many connections attempts", RateLimited),
        (
            "Failed to acquire permit to connect to the database. Too many database",
            RateLimited,
        ),
        (
            "You've exceeded the rate limit. Please wait a moment and try again.",
            RateLimited,
        ),
        ("database \"nodb\" does not exist", Refused),
        ("Couldn't connect to compute node", Connect),
        ("Control plane request failed", Connect),
        (
            "the database system is not yet accepting connections",
            Connect,
        ),
        (
            "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or",
            Connect,
        ),
    ];

    #[test]
    fn neons_texts_decide_while_connecting() {
        for (text, kind) in SAID {
            assert_eq!(by_text(text).unwrap_or(TRANSIENT).0, *kind, "{text}");
        }
    }
}
