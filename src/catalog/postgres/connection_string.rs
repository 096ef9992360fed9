//! Connection strings in libpq's format. An option that `tokio-postgres` does not know is translated, ignored if that
//! is harmless, or refused with advice.
//!
//! An error names only options of the lists below. Any other text may be part of a password that is not encoded.

use std::{borrow::Cow, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio_postgres::Config;

use crate::model::config::InvalidConfig;

/// An option, and the values of it that are meant, in lower case. An empty list means all values.
type Listed = (&'static str, &'static [&'static str]);

/// The options that the driver reads as libpq does.
const READ: &[Listed] = &[
    ("application_name", &[]),
    ("channel_binding", &["disable", "prefer", "require"]),
    ("connect_timeout", &[]),
    ("dbname", &[]),
    ("host", &[]),
    ("hostaddr", &[]),
    ("keepalives", &[]),
    ("keepalives_idle", &[]),
    ("keepalives_interval", &[]),
    ("keepalives_retries", &[]),
    ("load_balance_hosts", &[]),
    ("options", &[]),
    ("password", &[]),
    ("port", &[]),
    ("sslmode", &["disable", "prefer", "require"]),
    ("sslnegotiation", &[]),
    ("target_session_attrs", &["any", "read-write", "read-only"]),
    ("user", &[]),
];

/// The options that change nothing here, and are ignored.
const HARMLESS: &[Listed] = &[
    ("client_encoding", &["auto", "utf8", "utf-8"]),
    ("gssdelegation", &[]),
    ("gssencmode", &["disable", "prefer"]),
    ("gsslib", &[]),
    ("krbsrvname", &[]),
    ("max_protocol_version", &["3.0", "3.2", "latest"]),
    ("min_protocol_version", &["3.0"]),
    ("replication", &["0", "false", "no", "off"]),
    ("ssl_max_protocol_version", &["tlsv1.3"]),
    ("ssl_min_protocol_version", &["tlsv1", "tlsv1.1", "tlsv1.2"]),
    ("sslcertmode", &["allow", "disable"]),
    ("sslcompression", &[]),
    ("sslrootcert", &["system"]),
    ("sslsni", &["1"]),
];

const NO_CLIENT_CERTIFICATE: &str =
    "client certificates are not supported; log in with a password over TLS";
const NO_GSSAPI: &str = "GSSAPI is not supported; log in with a password over TLS";
const NO_SERVICE: &str = "service files are not read; write out the settings of the service";
const OTHER_CLIENT: &str = "only other clients of Postgres use it; leave it out";
const SCHEMA: &str = "set the schema with PostgresBuilder::schema";
const TLS_VERSION: &str = "TLS 1.2 or 1.3 is always used; leave it out";
const UNCHECKED: &str = "tenantry does not check this; leave it out";

/// The options that are refused, each with the advice for its error.
const REFUSED: &[(&str, &str)] = &[
    ("channel_binding", "use disable, prefer or require"),
    ("client_encoding", "it is always UTF8; leave it out"),
    ("connection_limit", OTHER_CLIENT),
    ("currentSchema", SCHEMA),
    ("gssencmode", NO_GSSAPI),
    (
        "max_protocol_version",
        "protocol 3.0 is always used; leave it out",
    ),
    (
        "min_protocol_version",
        "protocol 3.0 is always used; leave it out",
    ),
    (
        "passfile",
        "password files are not read; write the password into the connection string",
    ),
    ("pgbouncer", OTHER_CLIENT),
    ("pool_timeout", OTHER_CLIENT),
    (
        "replication",
        "the catalog needs an ordinary session; leave it out",
    ),
    (
        "require_auth",
        "write channel_binding=require, which allows only SCRAM over TLS",
    ),
    ("requirepeer", UNCHECKED),
    ("requiressl", "write sslmode=require"),
    ("schema", SCHEMA),
    ("search_path", SCHEMA),
    ("service", NO_SERVICE),
    ("servicefile", NO_SERVICE),
    ("socket_timeout", OTHER_CLIENT),
    (
        "ssl",
        "write sslmode=require, which verifies the server as well",
    ),
    ("ssl_max_protocol_version", TLS_VERSION),
    ("ssl_min_protocol_version", TLS_VERSION),
    ("sslaccept", OTHER_CLIENT),
    ("sslcert", NO_CLIENT_CERTIFICATE),
    ("sslcertmode", NO_CLIENT_CERTIFICATE),
    ("sslcrl", UNCHECKED),
    ("sslcrldir", UNCHECKED),
    ("sslkey", NO_CLIENT_CERTIFICATE),
    ("sslmode", "use disable, prefer, require or verify-full"),
    ("sslpassword", NO_CLIENT_CERTIFICATE),
    (
        "sslrootcert",
        "certificate files are not read; pass the certificate to PostgresBuilder::root_certificate",
    ),
    (
        "sslsni",
        "tenantry always sends the host name; leave it out",
    ),
    ("statement_cache_size", OTHER_CLIENT),
    (
        "target_session_attrs",
        "use any, read-write or read-only; a catalog that tenantry writes to needs read-write",
    ),
];

/// The translation of an option for the driver.
enum Translated<'a> {
    /// The option is passed on as it is.
    Same,
    /// The option is replaced by this name and value.
    As(&'static str, &'a str),
    /// The option is left out.
    Ignored,
}

/// The settings that are applied after the driver has read the text.
#[derive(Default)]
struct Rest {
    tcp_user_timeout: Option<Duration>,
    fallback_application_name: Option<String>,
}

/// Reads `text`, a URL or a list of settings. White space around it, such as a file's last newline, is ignored.
pub(super) fn parse(text: &str) -> Result<Config, InvalidConfig> {
    let text = text.trim();
    let mut rest = Rest::default();
    let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
    let text = if is_url {
        rest.url(text)?
    } else {
        rest.settings(text)?
    };
    let mut config: Config = text.parse().map_err(|err| refused_by_driver(&err))?;
    if let Some(time) = rest.tcp_user_timeout {
        config.tcp_user_timeout(time);
    }
    if let Some(name) = rest.fallback_application_name
        && config.get_application_name().is_none()
    {
        config.application_name(name);
    }
    Ok(config)
}

impl Rest {
    /// Returns the URL with its options translated.
    fn url(&mut self, text: &str) -> Result<String, InvalidConfig> {
        if text.contains(char::is_control) {
            return Err(unreadable(
                "it contains a line break or another control character",
            ));
        }
        let (start, query) = split_query(text);
        let mut options = Vec::new();
        for (at, option) in (1..).zip(query.split('&').filter(|it| !it.is_empty())) {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| unreadable(&format!("option {at} after the ? has no value")))?;
            let (name, decoded) = (decoded(name)?, decoded(value)?);
            match self.translated(at, &name, &decoded)? {
                // The driver would take any @ for the end of user and password.
                Translated::Same => options.push(format!("{name}={}", value.replace('@', "%40"))),
                Translated::As(name, value) => {
                    options.push(format!(
                        "{name}={}",
                        utf8_percent_encode(value, NON_ALPHANUMERIC)
                    ));
                }
                Translated::Ignored => {}
            }
        }
        Ok(format!("{start}?{}", options.join("&")))
    }

    /// Returns the translated list of settings. Of several settings with the same name, the last one counts.
    fn settings(&mut self, text: &str) -> Result<String, InvalidConfig> {
        let mut settings: Vec<(Cow<'_, str>, String)> = Vec::new();
        let (mut left, mut at) = (text, 0);
        while !left.is_empty() {
            at += 1;
            let (name, value, after) = next_setting(left)?;
            left = after;
            let (name, value) = match self.translated(at, name, &value)? {
                Translated::Same => (Cow::Borrowed(name), value),
                Translated::As(name, value) => (Cow::Borrowed(name), value.to_owned()),
                Translated::Ignored => continue,
            };
            settings.retain(|(it, _)| *it != name);
            settings.push((name, value));
        }
        let written = |(name, value): &(Cow<'_, str>, String)| {
            let value = value.replace('\\', r"\\").replace('\'', r"\'");
            format!("{name}='{value}'")
        };
        Ok(settings.iter().map(written).collect::<Vec<_>>().join(" "))
    }

    /// Returns the translation of option number `at`.
    fn translated<'a>(
        &mut self,
        at: usize,
        name: &str,
        value: &'a str,
    ) -> Result<Translated<'a>, InvalidConfig> {
        let lower = value.to_ascii_lowercase();
        let is_of = |values: &[&str]| values.is_empty() || values.contains(&lower.as_str());
        let is_listed = |list: &[Listed]| {
            let mut named = list.iter().filter(|(it, _)| *it == name);
            named.any(|(_, values)| is_of(values))
        };
        match name {
            // Encryption always verifies here, so both mean the same as `require`.
            "sslmode" if is_of(&["verify-full", "verify-ca"]) => {
                return Ok(Translated::As("sslmode", "require"));
            }
            "ssl" if is_of(&["true"]) => return Ok(Translated::As("sslmode", "require")),
            "keepalives_count" => return Ok(Translated::As("keepalives_retries", value)),
            "tcp_user_timeout" => self.tcp_user_timeout = milliseconds(value)?,
            "fallback_application_name" => {
                self.fallback_application_name = Some(value.to_owned());
            }
            _ if is_listed(HARMLESS) => {}
            _ if is_listed(READ) => return Ok(Translated::Same),
            _ => return Err(not_taken(at, name)),
        }
        Ok(Translated::Ignored)
    }
}

/// Parses a time in milliseconds, which is libpq's unit; the driver's is a second.
fn milliseconds(value: &str) -> Result<Option<Duration>, InvalidConfig> {
    let time = value.parse::<i64>();
    let time = time.map_err(|_| {
        let instead = "use a whole number of milliseconds";
        refused("tcp_user_timeout", instead)
    })?;
    let time = u64::try_from(time).ok().filter(|time| *time > 0);
    Ok(time.map(Duration::from_millis))
}

/// Returns the error for option number `at`.
fn not_taken(at: usize, name: &str) -> InvalidConfig {
    match REFUSED.iter().find(|(it, _)| *it == name) {
        Some((name, instead)) => refused(name, instead),
        None => unreadable(&format!("option {at} is not known")),
    }
}

/// Splits a URL into the part before its options and the options. An @ ends user and password if it comes before the
/// first `/` or the first `?`, so that a password may hold either.
fn split_query(text: &str) -> (&str, &str) {
    let scheme = text.find("://").map_or(0, |at| at + 3);
    let position = |of: char, from: usize| text[from..].find(of).map(|at| at + from);
    let end = |of: char| position(of, scheme).unwrap_or(text.len());
    let host = match position('@', scheme) {
        Some(at) if at < end('/') || at < end('?') => at + 1,
        _ => scheme,
    };
    match position('?', host) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    }
}

fn decoded(text: &str) -> Result<Cow<'_, str>, InvalidConfig> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| unreadable("an option is not UTF-8"))
}

/// Splits off the first setting of a list. Returns its name, its value and the remaining text.
fn next_setting(text: &str) -> Result<(&str, String, &str), InvalidConfig> {
    let (name, after) = text.split_once('=').ok_or_else(|| {
        unreadable("it is neither a URL (postgres://user:password@host/database) nor settings (host=… user=… dbname=…)")
    })?;
    let (mut value, mut after) = (String::new(), after.trim_start().chars());
    let is_quoted = after.as_str().starts_with('\'');
    if is_quoted {
        after.next();
    }
    loop {
        match after.next() {
            Some('\\') => value.extend(after.next()),
            Some('\'') if is_quoted => break,
            Some(it) if !is_quoted && it.is_whitespace() => break,
            Some(it) => value.push(it),
            None if is_quoted => return Err(unreadable("a quote is not closed")),
            None => break,
        }
    }
    Ok((name.trim_end(), value, after.as_str().trim_start()))
}

/// Returns the driver's error about a value, which shows only the option's name. Its other errors may show the text,
/// and are replaced.
fn refused_by_driver(err: &tokio_postgres::Error) -> InvalidConfig {
    let cause = std::error::Error::source(err).map(ToString::to_string);
    match cause.filter(|cause| cause.starts_with("invalid value for option")) {
        Some(cause) => unreadable(&cause),
        None => unreadable("check whether user, password and database are percent-encoded"),
    }
}

fn refused(name: &str, instead: &str) -> InvalidConfig {
    unreadable(&format!("{name} cannot be used as written: {instead}"))
}

fn unreadable(why: &str) -> InvalidConfig {
    InvalidConfig::new(format!(
        "the catalog's connection string cannot be read: {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts, each with one that the driver reads the same.
    const SAME: &[(&str, &str)] = &[
        (
            "postgres://app:p%40ss@db.test:5433/app\n",
            "postgres://app:p%40ss@db.test:5433/app",
        ),
        (
            " \t postgresql://app@db.test/app?sslmode=verify-full&channel_binding=require \r\n",
            "postgresql://app@db.test/app?sslmode=require&channel_binding=require",
        ),
        (
            "postgres://app@db.test/app?sslmode=verify-ca&sslrootcert=system&gssencmode=disable&krbsrvname=postgres",
            "postgres://app@db.test/app?sslmode=require",
        ),
        (
            "postgres://app@db.test/app?ssl=true&keepalives_count=3&options=-c%20work_mem%3D1MB&application_name=a%26b",
            "postgres://app@db.test/app?sslmode=require&keepalives_retries=3&options=-c%20work_mem%3D1MB&application_name=a%26b",
        ),
        (
            "postgres://app:a/b=d@db.test/app?connect_timeout=1",
            "user=app password='a/b=d' host=db.test port=5432 dbname=app connect_timeout=1",
        ),
        (
            "postgres://app:a?c=d@db.test/app?connect_timeout=1",
            "user=app password='a?c=d' host=db.test port=5432 dbname=app connect_timeout=1",
        ),
        (
            "postgres://db.test/app?user=a@b&password=p@ss",
            "host=db.test port=5432 dbname=app user=a@b password=p@ss",
        ),
        (
            "postgres://app@%2Frun%2Fpostgresql:5433/app",
            "host=/run/postgresql port=5433 user=app dbname=app",
        ),
        (
            "postgres://app@/app?host=%2Frun%2Fpostgresql&port=5433",
            "host=/run/postgresql port=5433 user=app dbname=app",
        ),
        (
            "postgres://app@a.test:1,b.test:2/app?target_session_attrs=read-write",
            "host=a.test,b.test port=1,2 user=app dbname=app target_session_attrs=read-write",
        ),
        (
            "host=db.test\nuser = app\n password = 'first one' password='it\\'s \\\\ me' dbname=app\n",
            "host=db.test user=app password='it\\'s \\\\ me' dbname=app",
        ),
        (
            "host=db.test user=app password='' sslmode=verify-full sslsni=1 client_encoding=UTF8",
            "host=db.test user=app password='' sslmode=require",
        ),
    ];

    #[test]
    fn a_text_is_read_as_libpq_reads_it() {
        for (text, same) in SAME {
            let expected: Config = same.parse().unwrap();
            let read = parse(text).unwrap_or_else(|err| panic!("{text}: {err}"));
            assert!(read == expected, "{text}: {read:?}, not {expected:?}");
        }
        let timed = |text: &str| parse(text).unwrap().get_tcp_user_timeout().copied();
        let second = Some(Duration::from_secs(1));
        assert_eq!(timed("host=h user=u tcp_user_timeout=1000"), second);
        assert_eq!(timed("postgres://u@h?tcp_user_timeout=1000"), second);
        assert_eq!(timed("host=h user=u tcp_user_timeout=0"), None);
        let named = |text: &str| {
            parse(text)
                .unwrap()
                .get_application_name()
                .map(str::to_owned)
        };
        let fallback = "postgres://u@h?fallback_application_name=fallback";
        assert_eq!(named(fallback).as_deref(), Some("fallback"));
        let named = named(&format!("{fallback}&application_name=app"));
        assert_eq!(named.as_deref(), Some("app"));
    }

    #[test]
    fn every_option_is_in_one_list_or_refused_only_for_some_values() {
        for (name, _) in REFUSED {
            for (listed, values) in READ.iter().chain(HARMLESS) {
                assert!(name != listed || !values.is_empty(), "{name}");
            }
        }
        for (name, _) in HARMLESS {
            assert!(READ.iter().all(|(read, _)| read != name), "{name}");
        }
    }
}
