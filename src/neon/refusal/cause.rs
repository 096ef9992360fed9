//! The causes of a refusal: one table over status, code and text.
//!
//! The statuses and codes are from Neon's OpenAPI description and from observed answers. The texts are from Neon's own
//! client of its API (`neon_api.py`), its proxy, and its messages to users. The code is often empty.

use reqwest::StatusCode;

use super::Outcome;
use crate::model::error::{ErrorKind, ExhaustedQuota};

/// The cause of a refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::neon) enum Cause {
    /// 409, and 422 with such a code: a resource of that name or id exists.
    AlreadyExists,
    /// Any other status, which Neon's description does not list.
    Another,
    /// 401 and 403: Neon answers a wrong key with either.
    BadKey,
    /// 423, and 422 that says so: another operation on the project is running, or one that this call needs has not
    /// ended.
    Busy,
    /// 410: the resource existed once.
    Gone,
    /// 400 and 422: the request itself is wrong.
    Invalid,
    /// 402, and 403, 422 or 423 that say so: a quota or a limit of the plan is reached.
    LimitReached,
    /// 423 that says so: Neon maintains the project.
    Maintenance,
    /// 404: the resource does not exist, or this key may not see it.
    NotFound,
    /// 404 that says so: only a personal key may make the call.
    NotForOrganizationKeys,
    /// 400 that says so: the key is personal, and the request names no organization.
    OrganizationMissing,
    /// 412, which Neon answers only to the call for a password.
    PasswordNotStored,
    /// 429, and other statuses that say so.
    RateLimited,
    /// 3xx: a redirect.
    Redirected,
    /// 503: documented as always safe to repeat.
    Unavailable,
    /// 5xx and 408: the call may have done its work.
    UnknownOutcome,
    /// 406: a limit of a transfer's destination, or a range of time that is too long.
    Unmet,
    /// 501 and 405: the API has no such call.
    Unsupported,
}

impl Cause {
    /// Returns the cause of an answer. The status decides. If it has several meanings, the code decides, and the text
    /// only if the code is empty.
    pub(in crate::neon) fn of(status: StatusCode, code: &str, text: &str) -> Self {
        let told = if code.is_empty() {
            Self::by_text(status, &text.to_lowercase())
        } else {
            Self::by_code(status, code)
        };
        told.unwrap_or_else(|| Self::by_status(status))
    }

    /// Returns the cause for a status with several meanings, by its code.
    fn by_code(status: StatusCode, code: &str) -> Option<Self> {
        match status.as_u16() {
            _ if code.contains("RATE_LIMIT_EXCEEDED") => Some(Self::RateLimited),
            403 | 422 | 423 if code.contains("_LIMIT_EXCEEDED") || code.ends_with("_EXCEEDED") => {
                Some(Self::LimitReached)
            }
            422 if code.ends_with("_ALREADY_EXISTS") => Some(Self::AlreadyExists),
            423 if code.contains("MAINTENANCE") => Some(Self::Maintenance),
            _ => None,
        }
    }

    /// Returns the cause for a status with several meanings, by its text in lower case.
    fn by_text(status: StatusCode, text: &str) -> Option<Self> {
        let says = |words: &str| text.contains(words);
        let limit = || {
            let words = ["quota", "exceeded the", "limit exceeded"];
            words.iter().any(|words| says(words))
        };
        match status.as_u16() {
            400 if says("org_id is required") => Some(Self::OrganizationMissing),
            404 if says("not allowed for organization api keys") => {
                Some(Self::NotForOrganizationKeys)
            }
            422 if says("not ready yet") => Some(Self::Busy),
            423 if says("maintenance") => Some(Self::Maintenance),
            403 | 422 | 423 if says("rate limit") => Some(Self::RateLimited),
            403 | 422 | 423 if limit() => Some(Self::LimitReached),
            _ => None,
        }
    }

    fn by_status(status: StatusCode) -> Self {
        match status.as_u16() {
            300..=399 => Self::Redirected,
            400 | 422 => Self::Invalid,
            401 | 403 => Self::BadKey,
            402 => Self::LimitReached,
            404 => Self::NotFound,
            405 | 501 => Self::Unsupported,
            406 => Self::Unmet,
            409 => Self::AlreadyExists,
            410 => Self::Gone,
            412 => Self::PasswordNotStored,
            423 => Self::Busy,
            429 => Self::RateLimited,
            503 => Self::Unavailable,
            408 | 500..=599 => Self::UnknownOutcome,
            _ => Self::Another,
        }
    }

    /// Returns tenantry's kind of error.
    pub(in crate::neon) const fn kind(self) -> ErrorKind {
        match self {
            Self::AlreadyExists => ErrorKind::Conflict,
            Self::LimitReached => ErrorKind::QuotaExhausted(ExhaustedQuota::Other),
            Self::Busy | Self::Maintenance => ErrorKind::Locked,
            Self::RateLimited => ErrorKind::RateLimited,
            Self::Unavailable | Self::UnknownOutcome => ErrorKind::ControlPlane,
            Self::Gone | Self::NotFound => ErrorKind::NotFound,
            Self::Another
            | Self::BadKey
            | Self::Invalid
            | Self::NotForOrganizationKeys
            | Self::OrganizationMissing
            | Self::PasswordNotStored
            | Self::Redirected
            | Self::Unmet
            | Self::Unsupported => ErrorKind::Refused,
        }
    }

    /// Returns the outcome of the call.
    pub(in crate::neon) const fn outcome(self) -> Outcome {
        match self {
            Self::UnknownOutcome => Outcome::Unknown,
            Self::AlreadyExists
            | Self::Another
            | Self::BadKey
            | Self::Busy
            | Self::Gone
            | Self::Invalid
            | Self::LimitReached
            | Self::Maintenance
            | Self::NotFound
            | Self::NotForOrganizationKeys
            | Self::OrganizationMissing
            | Self::PasswordNotStored
            | Self::RateLimited
            | Self::Redirected
            | Self::Unavailable
            | Self::Unmet
            | Self::Unsupported => Outcome::NotDone,
        }
    }

    /// Returns the advice for the operator.
    pub(in crate::neon) const fn advice(self) -> Option<&'static str> {
        match self {
            Self::BadKey => {
                Some("check the api key, and whether it may do this in this organization")
            }
            Self::Gone | Self::NotFound => {
                Some("it does not exist, or this api key may not see it")
            }
            Self::LimitReached => {
                Some("a limit of the plan is reached; raise it, or delete something")
            }
            Self::Maintenance => Some("neon is maintaining the project; this is temporary"),
            Self::NotForOrganizationKeys => {
                Some("use the personal api key of a member of the organization")
            }
            Self::OrganizationMissing => {
                Some("name the organization with org_id, or use an organization's own api key")
            }
            Self::PasswordNotStored => {
                Some("the project does not store passwords; reset the password to get a new one")
            }
            Self::Redirected => Some("the answer is a redirect; check the base url"),
            Self::Unsupported => Some("check the base url; this api does not know the call"),
            Self::AlreadyExists
            | Self::Another
            | Self::Busy
            | Self::Invalid
            | Self::RateLimited
            | Self::Unavailable
            | Self::UnknownOutcome
            | Self::Unmet => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::Cause::{
        AlreadyExists, Another, BadKey, Busy, Gone, Invalid, LimitReached, Maintenance,
        NotForOrganizationKeys, NotFound, OrganizationMissing, PasswordNotStored, RateLimited,
        Redirected, Unavailable, UnknownOutcome, Unmet, Unsupported,
    };

    const TABLE: &[(u16, &str, &str, Cause)] = &[
        (302, "", "", Redirected),
        (
            400,
            "",
            "invalid request: decode application/json: invalid: project (field required)",
            Invalid,
        ),
        (400, "", "Org_ID is required", OrganizationMissing),
        (401, "", "", BadKey),
        (402, "", "", LimitReached),
        (403, "", "", BadKey),
        (403, "PROJECTS_LIMIT_EXCEEDED", "", LimitReached),
        (403, "", "projects limit exceeded", LimitReached),
        (403, "FORBIDDEN", "this is not a quota", BadKey),
        (403, "RATE_LIMIT_EXCEEDED", "", RateLimited),
        (404, "", "project not found", NotFound),
        (
            404,
            "",
            "not allowed for organization API keys",
            NotForOrganizationKeys,
        ),
        (405, "", "", Unsupported),
        (406, "", "", Unmet),
        (408, "", "", UnknownOutcome),
        (409, "", "branch already exists", AlreadyExists),
        (410, "", "", Gone),
        (412, "", "", PasswordNotStored),
        (418, "", "", Another),
        (
            422,
            "PROJECTS_LIMIT_EXCEEDED",
            "projects limit exceeded",
            LimitReached,
        ),
        (422, "BRANCHES_LIMIT_EXCEEDED", "", LimitReached),
        (422, "ROOT_BRANCHES_LIMIT_EXCEEDED", "", LimitReached),
        (422, "ACTIVE_ENDPOINTS_LIMIT_EXCEEDED", "", LimitReached),
        (
            422,
            "BRANCH_SIZE_LIMIT_EXCEEDED_THRESHOLD",
            "",
            LimitReached,
        ),
        (422, "COMPUTE_TIME_EXCEEDED", "", LimitReached),
        (
            422,
            "NON_PRIMARY_BRANCH_COMPUTE_TIME_EXCEEDED",
            "",
            LimitReached,
        ),
        (422, "PROJECT_ID_ALREADY_EXISTS", "", AlreadyExists),
        (422, "", "Projects limit exceeded", LimitReached),
        (422, "", "branch not ready yet", Busy),
        (422, "", "something else", Invalid),
        (422, "INVALID", "the quota is not a number", Invalid),
        (422, "RATE_LIMIT_EXCEEDED", "", RateLimited),
        (423, "", "", Busy),
        (
            423,
            "",
            "project already has running conflicting operations, scheduling of new ones is prohibited",
            Busy,
        ),
        (
            423,
            "",
            "endpoint is in some transitive state, could not suspend",
            Busy,
        ),
        (423, "", "lock wait time exceeded, try again", Busy),
        (423, "", "compute time quota reached", LimitReached),
        (
            423,
            "",
            "Your project has exceeded the active time quota. Upgrade your plan.",
            LimitReached,
        ),
        (
            423,
            "",
            "You've exceeded the compute time for this branch.",
            LimitReached,
        ),
        (
            423,
            "",
            "You have exceeded the limit of concurrently active endpoints.",
            LimitReached,
        ),
        (
            423,
            "",
            "You've exceeded the rate limit. Please wait a moment and try again.",
            RateLimited,
        ),
        (423, "", "project is under Maintenance", Maintenance),
        (423, "PROJECT_UNDER_MAINTENANCE", "", Maintenance),
        (429, "", "", RateLimited),
        (429, "", "you have exceeded the limit", RateLimited),
        (500, "", "", UnknownOutcome),
        (500, "", "quota", UnknownOutcome),
        (500, "RATE_LIMIT_EXCEEDED", "", RateLimited),
        (501, "", "", Unsupported),
        (502, "", "", UnknownOutcome),
        (503, "", "", Unavailable),
        (504, "", "", UnknownOutcome),
        (524, "", "", UnknownOutcome),
    ];

    #[test]
    fn each_refusal_has_its_cause() {
        for (status, code, text, cause) in TABLE {
            let status = StatusCode::from_u16(*status).unwrap();
            assert_eq!(
                Cause::of(status, code, text),
                *cause,
                "{status} {code} {text}"
            );
        }
    }

    #[test]
    fn only_a_refusal_for_now_is_worth_another_attempt() {
        for (cause, again) in [
            (Cause::Busy, true),
            (Cause::Maintenance, true),
            (Cause::RateLimited, true),
            (Cause::Unavailable, true),
            (Cause::UnknownOutcome, true),
            (Cause::AlreadyExists, false),
            (Cause::BadKey, false),
            (Cause::LimitReached, false),
            (Cause::NotFound, false),
            (Cause::Unmet, false),
        ] {
            assert_eq!(cause.kind().is_transient(), again, "{cause:?}");
        }
    }
}
