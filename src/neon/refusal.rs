//! The meaning of a failed call: the kind of error, the outcome, and the text.

pub(super) mod cause;

use std::time::{Duration, SystemTime};

use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};

use url::Url;

use self::cause::Cause;
use super::{redact::excerpt, wire::RefusedBody};
use crate::model::{
    error::{Error, ErrorKind},
    tls::untrusted_reason,
};

/// Longest wait that an answer can ask for; a longer one is shortened to it.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A failed call, and whether it may have done its work.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    outcome: Outcome,
}

/// The outcome of a failed call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The call certainly did not do its work.
    NotDone,
    /// The call may have done its work.
    Unknown,
}

impl Refusal {
    /// Returns whether the call may be sent again: its failure is transient, and it was not done or changes nothing.
    pub(super) fn may_repeat(&self, method: &Method) -> bool {
        self.error.kind().is_transient() && (self.outcome == Outcome::NotDone || method.is_safe())
    }

    /// Returns the time for which Neon wants no more calls of this kind.
    pub(super) fn slow_down(&self) -> Option<Duration> {
        let limited = self.error.kind() == ErrorKind::RateLimited;
        limited.then(|| self.error.retry_after()).flatten()
    }

    /// Returns the refusal for a transport fault before an answer.
    pub(super) fn transport(err: reqwest::Error) -> Self {
        let host = err.url().and_then(Url::host_str).unwrap_or_default();
        let (kind, outcome, message) = if let Some(why) = untrusted_reason(&err) {
            let message =
                format!("the certificate that neon's api at {host} shows is not trusted: {why}");
            (ErrorKind::Misconfigured, Outcome::NotDone, message)
        } else if err.is_connect() {
            let message = format!(
                "neon's api at {host} cannot be reached; check the network, the name resolution, and proxies in between"
            );
            (ErrorKind::ControlPlane, Outcome::NotDone, message)
        } else if err.is_timeout() {
            let message = format!("neon's api at {host} did not answer in time");
            (ErrorKind::ControlPlane, Outcome::Unknown, message)
        } else {
            let message = format!("neon's api at {host} closed the connection before it answered");
            (ErrorKind::ControlPlane, Outcome::Unknown, message)
        };
        Self {
            error: Error::new(kind, message).with_source(err.without_url()),
            outcome,
        }
    }

    /// Returns the refusal for a success whose body did not arrive whole.
    pub(super) fn broken_off(status: StatusCode, headers: &HeaderMap, err: reqwest::Error) -> Self {
        let what = if err.is_timeout() {
            "did not finish its answer in time"
        } else {
            "closed the connection before the end of its answer"
        };
        let id = bracketed(request_id(headers));
        let message = format!("neon's api answered {status} and {what}{id}");
        let error = Error::new(ErrorKind::ControlPlane, message);
        Self {
            error: error.with_source(err.without_url()),
            outcome: Outcome::Unknown,
        }
    }

    /// Returns the refusal for a success whose body is not as described, such as a gateway's page or half an answer.
    pub(super) fn unreadable(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        err: &serde_json::Error,
    ) -> Self {
        // The text of serde's error may quote the body, which may hold a password, so only its position is used.
        let what = not_json(body).map_or_else(
            || {
                let (line, column) = (err.line(), err.column());
                format!("a body of unexpected form (line {line} column {column})")
            },
            str::to_owned,
        );
        let id = bracketed(request_id(headers));
        let message = format!("neon's api answered {status} with {what}{id}");
        Self {
            error: Error::new(ErrorKind::ControlPlane, message),
            outcome: Outcome::Unknown,
        }
    }

    /// Returns the refusal for an answer that is not a success.
    pub(super) async fn answer(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap_or_default();
        let told = serde_json::from_slice::<RefusedBody>(&body).ok();
        let cause = told.as_ref().map_or_else(
            || Cause::of(status, "", ""),
            |told| Cause::of(status, &told.code, &told.message),
        );
        let words = match &told {
            Some(told) => words(told),
            None => not_json(&body).map(|what| format!(", with {what}")),
        };
        let advice = cause
            .advice()
            .map(|advice| format!(" ({advice})"))
            .unwrap_or_default();
        let id = request_id(&headers).or_else(|| told.as_ref()?.request_id.as_deref());
        let id = bracketed(id);
        let words = words.unwrap_or_default();
        let message = format!("neon's api answered {status}{words}{advice}{id}");
        let outcome = match cause {
            // This 503 is not from the API: a gateway wrote it, which cannot know the outcome.
            Cause::Unavailable if told.is_none() => Outcome::Unknown,
            cause => cause.outcome(),
        };
        Self {
            error: Error::new(cause.kind(), message).with_retry_after(retry_after(&headers)),
            outcome,
        }
    }
}

/// Returns the id under which Neon's support finds the request.
pub(super) fn request_id(headers: &HeaderMap) -> Option<&str> {
    ["x-neon-ret-request-id", "x-request-id"]
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok())
}

fn bracketed(request_id: Option<&str>) -> String {
    request_id.map_or_else(String::new, |id| format!(" [request {}]", excerpt(id)))
}

/// Describes a body that the API cannot have written. Returns `None` for any other body.
fn not_json(body: &[u8]) -> Option<&'static str> {
    match body.trim_ascii_start().first() {
        None => Some("an empty body"),
        Some(b'<') => Some("a page of html, probably from a proxy in front of it"),
        Some(_) => None,
    }
}

/// Returns Neon's own text, shortened and without anything that may be secret.
fn words(told: &RefusedBody) -> Option<String> {
    let mut words = vec![told.message.clone()];
    words.extend(told.limits.iter().map(|limit| {
        format!(
            "the destination's {} is {}, not {}",
            limit.name, limit.actual, limit.expected
        )
    }));
    words.extend(
        told.projects
            .iter()
            .map(|project| format!("project {} is tied to {}", project.id, project.integration)),
    );
    words.retain(|text| !text.is_empty());
    if words.is_empty() {
        return None;
    }
    Some(format!(": {}", excerpt(&words.join("; "))))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    asked_wait(headers).map(|wait| wait.min(LONGEST_WAIT))
}

/// Returns the wait in `Retry-After`, which holds seconds or a date.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_of_unknown_outcome_is_repeated_only_if_it_changes_nothing() {
        let refusal = |kind, outcome| Refusal {
            error: Error::new(kind, ""),
            outcome,
        };
        let unknown = refusal(ErrorKind::ControlPlane, Outcome::Unknown);
        assert!(unknown.may_repeat(&Method::GET));
        for writes in [Method::POST, Method::PATCH, Method::DELETE] {
            assert!(!unknown.may_repeat(&writes));
            assert!(refusal(ErrorKind::Locked, Outcome::NotDone).may_repeat(&writes));
        }
        assert!(!refusal(ErrorKind::Refused, Outcome::NotDone).may_repeat(&Method::GET));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("18446744073709551615"), Some(LONGEST_WAIT));
        assert_eq!(parse("soon"), None);
    }

    #[test]
    fn neons_words_are_repeated_in_short_and_secrets_are_not() {
        let said = |message: &str| {
            let told = serde_json::from_value(json!({ "message": message, "code": null }));
            words(&told.unwrap())
        };
        assert_eq!(said(""), None);
        assert_eq!(said("no\nsuch"), Some(": nosuch".to_owned()));
        assert!(said(&"x".repeat(9999)).unwrap().len() < 310);
        assert!(!said("npg_hunter2").unwrap().contains("hunter2"));
    }
}
