//! What an answer that is not a success means, in one place.

use std::time::{Duration, SystemTime};

use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};

use super::wire::GeneralError;
use crate::error::{Error, ErrorKind};

/// A call that failed, and whether it may have done its work all the same.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    outcome: Outcome,
}

/// Whether a failed call did its work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// Certainly not.
    NotDone,
    /// Nobody knows.
    Unknown,
}

impl Refusal {
    /// Whether the call may be sent again: it was refused for now, or it changes nothing.
    pub(super) fn may_repeat(&self, method: &Method) -> bool {
        self.error.kind().is_transient() && (self.outcome == Outcome::NotDone || method.is_safe())
    }

    /// A failure below HTTP.
    pub(super) fn transport(err: reqwest::Error) -> Self {
        let outcome = if err.is_connect() {
            Outcome::NotDone
        } else {
            Outcome::Unknown
        };
        let what = if err.is_timeout() {
            "gave no answer in time"
        } else {
            "cannot be reached"
        };
        let error = Error::new(ErrorKind::ControlPlane, format!("neon's api {what}"));
        Self {
            error: error.with_source(err.without_url()),
            outcome,
        }
    }

    /// A success whose body is not what it should be: a gateway's page, or half an answer.
    pub(super) fn unreadable(status: StatusCode, err: &serde_json::Error) -> Self {
        // Only the place: serde's text may quote the body, which may hold a password.
        let place = format!("line {} column {}", err.line(), err.column());
        let message =
            format!("neon's api answered {status} with a body that is not as described ({place})");
        Self {
            error: Error::new(ErrorKind::ControlPlane, message),
            outcome: Outcome::Unknown,
        }
    }

    /// An answer that is not a success.
    pub(super) async fn answer(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap_or_default();
        let told: GeneralError = serde_json::from_slice(&body).unwrap_or_default();
        let (kind, outcome) = classify(status, &told.code, &told.message);
        let error = Error::new(kind, describe(status, &headers, &told, kind))
            .with_retry_after(retry_after(&headers));
        Self { error, outcome }
    }
}

/// Status first, then the code, which is often empty, then the text.
fn classify(status: StatusCode, code: &str, message: &str) -> (ErrorKind, Outcome) {
    use Outcome::{NotDone, Unknown};
    let quota = message.contains("quota") || message.contains("exceeded");
    let kind = match status.as_u16() {
        409 => ErrorKind::Conflict,
        402 => ErrorKind::QuotaExhausted,
        422 if code.ends_with("_EXCEEDED") => ErrorKind::QuotaExhausted,
        422 if message.contains("not ready yet") => ErrorKind::Locked,
        423 if quota => ErrorKind::QuotaExhausted,
        423 => ErrorKind::Locked,
        429 => ErrorKind::RateLimited,
        // Neon's description: a 503 is always safe to repeat.
        503 => ErrorKind::ControlPlane,
        500..=599 => return (ErrorKind::ControlPlane, Unknown),
        _ => ErrorKind::Refused,
    };
    (kind, NotDone)
}

fn describe(
    status: StatusCode,
    headers: &HeaderMap,
    told: &GeneralError,
    kind: ErrorKind,
) -> String {
    let mut text = vec![format!("neon's api answered {status}")];
    if !told.message.is_empty() {
        text.push(format!(": {}", told.message));
    }
    let advice = match status.as_u16() {
        401 | 403 => " (check the api key, and that it may do this in this organization)",
        300..=399 => " (a redirect; check the base url)",
        404 => " (it does not exist, or this api key may not see it)",
        _ if kind == ErrorKind::QuotaExhausted => {
            " (a limit of the plan; raise it or free something)"
        }
        _ => "",
    };
    text.push(advice.to_owned());
    let id = headers
        .get("x-neon-ret-request-id")
        .and_then(|id| id.to_str().ok());
    if let Some(id) = id.or(told.request_id.as_deref()) {
        text.push(format!(" [request {id}]"));
    }
    text.concat()
}

/// No wait is believed that is longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    asked_wait(headers).map(|wait| wait.min(LONGEST_WAIT))
}

/// Seconds, or a date.
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

    #[test]
    fn each_refusal_has_its_kind_and_its_outcome() {
        use ErrorKind::{Conflict, ControlPlane, Locked, QuotaExhausted, RateLimited, Refused};
        use Outcome::{NotDone, Unknown};
        let table = [
            (400, "", "invalid request", Refused, NotDone),
            (401, "", "", Refused, NotDone),
            (403, "", "", Refused, NotDone),
            (404, "", "project not found", Refused, NotDone),
            (409, "", "branch already exists", Conflict, NotDone),
            (
                422,
                "PROJECTS_LIMIT_EXCEEDED",
                "projects limit exceeded",
                QuotaExhausted,
                NotDone,
            ),
            (422, "", "branch not ready yet", Locked, NotDone),
            (422, "", "something else", Refused, NotDone),
            (
                423,
                "",
                "project already has running conflicting operations",
                Locked,
                NotDone,
            ),
            (
                423,
                "",
                "compute time quota reached",
                QuotaExhausted,
                NotDone,
            ),
            (429, "", "", RateLimited, NotDone),
            (500, "", "", ControlPlane, Unknown),
            (502, "", "", ControlPlane, Unknown),
            (503, "", "", ControlPlane, NotDone),
            (524, "", "", ControlPlane, Unknown),
            (302, "", "", Refused, NotDone),
        ];
        for (status, code, message, kind, outcome) in table {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                classify(status, code, message),
                (kind, outcome),
                "{status} {code} {message}"
            );
        }
    }

    #[test]
    fn a_call_of_unknown_outcome_is_repeated_only_if_it_changes_nothing() {
        let refusal = |kind, outcome| Refusal {
            error: Error::new(kind, ""),
            outcome,
        };
        let unknown = refusal(ErrorKind::ControlPlane, Outcome::Unknown);
        assert!(unknown.may_repeat(&Method::GET));
        assert!(!unknown.may_repeat(&Method::POST));
        assert!(refusal(ErrorKind::Locked, Outcome::NotDone).may_repeat(&Method::POST));
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
}
