//! The table of the answers with which servers refuse a login, and the verdict on each.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::REPEATED;
use crate::model::error::{ErrorKind, ExhaustedQuota};

/// Kind, advice, and the wait after which another attempt may help.
pub(super) type Row = (ErrorKind, &'static str, Option<Duration>);

const fn row(kind: ErrorKind, advice: &'static str) -> Row {
    (kind, advice, None)
}

const fn later(kind: ErrorKind, advice: &'static str, wait: Duration) -> Row {
    (kind, advice, Some(wait))
}

const fn quota(which: ExhaustedQuota, advice: &'static str) -> Row {
    later(ErrorKind::QuotaExhausted(which), advice, QUOTA_WAIT)
}

/// Wait before the next attempt after a failure that an operator must fix, if no proxy repeats its answer.
const MENDED: Duration = Duration::from_secs(5);
/// Wait before the next attempt after a used-up quota.
const QUOTA_WAIT: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

pub(super) const TRANSIENT: Row = row(ErrorKind::Connect, "this may be temporary");
const CONTROL_PLANE: Row = row(
    ErrorKind::ControlPlane,
    "neon's control plane failed; if this persists, see neon's status page",
);
pub(super) const CREDENTIAL: Row = later(
    ErrorKind::BadCredential,
    "check the role and password in the tenant's entry; neon gives the same answer if the endpoint or the role does \
     not exist any more",
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
    "the quota of stored data is used up; raise it or delete data",
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
    "the endpoint does not exist; it may have been deleted, so check the tenant's entry in the catalog",
    REPEATED,
);
const NETWORK: Row = later(
    ErrorKind::Refused,
    "the database accepts no connections from this server's address; add the address to the allow list",
    REPEATED,
);
pub(super) const SETTINGS: Row = later(
    ErrorKind::Misconfigured,
    "the connection's settings are wrong: database, role, startup options or TLS",
    MENDED,
);
pub(super) const HOST_NAME: Row = later(
    ErrorKind::Misconfigured,
    "no certificate can be valid for a host of that name; give a host name or an address",
    MENDED,
);
pub(super) const NO_TLS: Row = later(
    ErrorKind::Misconfigured,
    "the server has no tls; turn it on there (ssl = on), or use Endpoint::without_tls if the server is on the same \
     machine",
    MENDED,
);
pub(super) const TLS: Row = later(
    ErrorKind::Misconfigured,
    "the server and tenantry have no tls settings in common; the server must accept tls 1.2 or 1.3 for this host name",
    MENDED,
);
pub(super) const CLIENT_CERTIFICATE: Row = later(
    ErrorKind::Misconfigured,
    "the server asks for a client certificate, which tenantry does not support; configure it to ask for a password \
     instead",
    MENDED,
);
const UNENCRYPTED: Row = later(
    ErrorKind::Misconfigured,
    "the server accepts no connection without tls from this address; do not use Endpoint::without_tls for it",
    MENDED,
);
const POOLER_SETTINGS: Row = later(
    ErrorKind::Misconfigured,
    "the pooler's own settings are wrong; see its log",
    MENDED,
);
pub(super) const STALE_CREDENTIAL: Row = row(
    ErrorKind::StaleCredential,
    "neon's proxy and the database behind it have different passwords for the role, because the password is being \
     changed",
);
pub(super) const CERTIFICATE: Row = later(
    ErrorKind::Misconfigured,
    "the server's certificate is not trusted for its host name; add its root certificate",
    MENDED,
);
const CROWDED: Row = later(
    ErrorKind::RateLimited,
    "too many connections or attempts at once; make fewer at a time",
    SECOND,
);
const ACTIVE: Row = later(
    ErrorKind::ActiveComputeLimit,
    "too many computes of the account are awake; suspend one of them, or ask neon to raise the limit",
    REPEATED,
);
const ASKED_TOO_OFTEN: Row = later(
    ErrorKind::RateLimited,
    "neon's control plane gets too many requests for this endpoint; wait before the next one",
    REPEATED,
);
const BUSY: Row = later(
    ErrorKind::Locked,
    "another operation on the project is running at neon, and ends within seconds",
    SECOND,
);
const UNAVAILABLE: Row = later(
    ErrorKind::Locked,
    "neon does not say why the endpoint is unavailable; if this persists, check the project's quotas and state",
    REPEATED,
);
const POOLER_WAITS: Row = later(
    ErrorKind::Connect,
    "the pooler could not log in to the database, and tries again within 15 seconds",
    SECOND,
);

/// Texts (in lower case) that decide the verdict, in the order of the search. They come from Neon's proxy and control
/// plane, and from Postgres and PgBouncer: behind the proxy, which loses their codes, or without one. PgBouncer has one
/// code for everything.
const TEXTS: &[(&str, Row)] = &[
    ("password authentication failed", CREDENTIAL),
    ("sasl authentication failed", CREDENTIAL),
    ("\"trust\" authentication failed", CREDENTIAL),
    ("empty password returned by client", CREDENTIAL),
    ("no such user", CREDENTIAL),
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
    ("\", no encryption", UNENCRYPTED),
    ("\", ssl off", UNENCRYPTED),
    ("connection is insecure", UNENCRYPTED),
    ("ssl required", UNENCRYPTED),
    ("client certificate", CLIENT_CERTIFICATE),
    ("certificate authentication failed", CLIENT_CERTIFICATE),
    ("is not allowed to connect", NETWORK),
    ("blocked network", NETWORK),
    ("no pg_hba.conf entry", NETWORK),
    ("pg_hba.conf rejects", NETWORK),
    ("login rejected", NETWORK),
    ("endpoint id is not specified", SETTINGS),
    ("inconsistent project name", SETTINGS),
    ("must contain only alphanumeric", SETTINGS),
    ("is missing in startup packet", SETTINGS),
    ("no username supplied", SETTINGS),
    ("no such database", SETTINGS),
    ("unsupported startup parameter", SETTINGS),
    ("authentication protocol violation", SETTINGS),
    ("channel binding", SETTINGS),
    ("bouncer config error", POOLER_SETTINGS),
    ("no authentication method is found", POOLER_SETTINGS),
    ("wrong password type", POOLER_SETTINGS),
    ("exceeded the rate limit", ASKED_TOO_OFTEN),
    ("too many connections", CROWDED),
    ("client connections exceeded", CROWDED),
    ("failed to acquire permit", CROWDED),
    ("remaining connection slots", CROWDED),
    ("too many clients already", CROWDED),
    ("no more connections allowed", CROWDED),
    ("query_wait_timeout", CROWDED),
    ("server login has been failing", POOLER_WAITS),
    ("client_login_timeout", POOLER_WAITS),
    ("during database shutdown", TRANSIENT),
    ("database \"", SETTINGS),
    ("role \"", CREDENTIAL),
    ("control plane request failed", CONTROL_PLANE),
];

/// Texts (in lower case) with which PgBouncer and Postgres behind Neon's proxy refuse a login whose password the proxy
/// itself has accepted. Postgres puts the user in other quotes than the proxy does.
const BEHIND_THE_PROXY: [&str; 2] = [
    "sasl authentication failed",
    "password authentication failed for user \"",
];

/// Returns the verdict on an answer with that SQLSTATE and text. An unknown answer counts as transient.
pub(super) fn of(code: &SqlState, message: &str) -> Row {
    let message = message.to_lowercase();
    let said = |text: &&str| message.contains(text);
    // The proxy's code for everything. Another code means that no proxy is there, which could hold another password.
    if *code == SqlState::INTERNAL_ERROR && BEHIND_THE_PROXY.iter().any(said) {
        return STALE_CREDENTIAL;
    }
    let by_text = TEXTS.iter().find(|(text, _)| said(text));
    by_text.map_or_else(|| by_sqlstate(code), |(_, row)| *row)
}

/// Returns the verdict by the class of the SQLSTATE, if all codes of that class would recur at the next login.
fn by_sqlstate(code: &SqlState) -> Row {
    if *code == SqlState::TOO_MANY_CONNECTIONS {
        return CROWDED;
    }
    match code.code().get(..2) {
        Some("28") => CREDENTIAL,                    // invalid authorization
        Some("0A" | "22" | "3D" | "42") => SETTINGS, // not supported, data, catalog name, syntax or access rule
        _ => TRANSIENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of Neon's proxy to a login, observed or documented.
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
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", database \"d\", SSL encryption",
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
            UNENCRYPTED,
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
            assert_eq!(of(&SqlState::INTERNAL_ERROR, text), *row, "{text}");
        }
    }

    /// Answers of Postgres and PgBouncer without Neon's proxy, with their codes. PgBouncer gives 08P01 for all its own
    /// answers, and forwards a server's answer with the server's code.
    const SAID_WITH_CODE: &[(&str, &str, Row)] = &[
        ("08P01", "SSL required", UNENCRYPTED),
        ("08P01", "no such database: nodb", SETTINGS),
        ("08P01", "database \"app\" is disabled", SETTINGS),
        ("08P01", "no such user", CREDENTIAL),
        ("08P01", "no such user: nobody", CREDENTIAL),
        ("08P01", "SASL authentication failed", CREDENTIAL),
        ("08P01", "password authentication failed", CREDENTIAL),
        ("08P01", "\"trust\" authentication failed", CREDENTIAL),
        ("08P01", "login rejected", NETWORK),
        (
            "08P01",
            "certificate authentication failed",
            CLIENT_CERTIFICATE,
        ),
        ("08P01", "bouncer config error", POOLER_SETTINGS),
        (
            "08P01",
            "server login failed: wrong password type",
            POOLER_SETTINGS,
        ),
        ("08P01", "unsupported startup parameter: foo", SETTINGS),
        (
            "08P01",
            "client connections exceeded (max_db_client_connections)",
            CROWDED,
        ),
        ("08P01", "pooler is shutting down", TRANSIENT),
        ("08P01", "bouncer resources exhaustion", TRANSIENT),
        (
            "28000",
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", database \"d\", no encryption",
            UNENCRYPTED,
        ),
        (
            "28000",
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", database \"d\", SSL off",
            UNENCRYPTED,
        ),
        (
            "28000",
            "pg_hba.conf rejects connection for host \"10.0.0.1\", user \"u\", database \"d\", no encryption",
            UNENCRYPTED,
        ),
        (
            "28000",
            "pg_hba.conf rejects connection for host \"10.0.0.1\", user \"u\", database \"d\", SSL encryption",
            NETWORK,
        ),
        (
            "28000",
            "connection requires a valid client certificate",
            CLIENT_CERTIFICATE,
        ),
        ("28000", "role \"nobody\" does not exist", CREDENTIAL),
        (
            "28000",
            "Peer authentication failed for user \"u\"",
            CREDENTIAL,
        ),
        (
            "28P01",
            "password authentication failed for user \"u\"",
            CREDENTIAL,
        ),
        ("3D000", "database \"nodb\" does not exist", SETTINGS),
        ("42501", "permission denied for database \"app\"", SETTINGS),
        (
            "42704",
            "unrecognized configuration parameter \"foo\"",
            SETTINGS,
        ),
        (
            "22023",
            "invalid value for parameter \"work_mem\": \"x\"",
            SETTINGS,
        ),
        (
            "0A000",
            "unsupported frontend protocol 4.0: server supports 3.0 to 3.0",
            SETTINGS,
        ),
        (
            "53300",
            "too many connections for database \"app\"",
            CROWDED,
        ),
        ("53300", "in the server's own language", CROWDED),
        ("28P01", "in the server's own language", CREDENTIAL),
        ("3D000", "in the server's own language", SETTINGS),
        ("42ABC", "of a class that is final", SETTINGS),
        // Unknown answers count as transient.
        ("57P03", "the database system is starting up", TRANSIENT),
        (
            "57P01",
            "terminating connection due to administrator command",
            TRANSIENT,
        ),
        ("53200", "out of memory", TRANSIENT),
        ("58030", "could not read file", TRANSIENT),
        ("P0001", "not now", TRANSIENT),
        ("08P01", "new in a later release", TRANSIENT),
        ("XX000", "new in a later release", TRANSIENT),
        ("ZZ999", "new in a later release", TRANSIENT),
    ];

    #[test]
    fn text_decides_before_the_code_and_the_class_of_the_code_last() {
        for (code, text, row) in SAID_WITH_CODE {
            assert_eq!(of(&SqlState::from_code(code), text), *row, "{code} {text}");
        }
    }

    #[test]
    fn what_refuses_a_password_behind_the_proxy_that_took_it_may_know_another_one() {
        let proxys = |text| of(&SqlState::INTERNAL_ERROR, text);
        assert_eq!(proxys("SASL authentication failed"), STALE_CREDENTIAL);
        let double = "password authentication failed for user \"neondb_owner\"";
        assert_eq!(proxys(double), STALE_CREDENTIAL);
        let single = "password authentication failed for user 'neondb_owner'";
        assert_eq!(proxys(single), CREDENTIAL, "the proxy's own answer");
    }
}
