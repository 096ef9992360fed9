//! Errors as answers to requests.
//!
//! The answer has only the facts that a client can act on: a status, a stable code, and the time to wait. The tenant
//! and the advice for the operator go to the log. Neither has text from the application's own code or from its rows.

use std::error::Error as _;

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::model::{
    error::{Error, ErrorKind, Stage},
    tenant::TenantId,
};

impl IntoResponse for Error {
    /// Returns the answer as `application/problem+json` (RFC 9457), with `Retry-After` if it is known. Logs the error:
    /// as a warning if the status is 5xx, and otherwise at debug level.
    fn into_response(self) -> Response {
        let status = status_of(self.kind());
        let code = self.kind().code();
        let tenant = self.tenant().map(TenantId::as_str);
        let (stage, cause) = (self.stage().map(Stage::code), cause(&self));
        let sqlstate = sqlstate(&self);
        if status.is_server_error() {
            tracing::warn!(
                tenant,
                code,
                status = status.as_u16(),
                stage,
                err = %self,
                cause,
                sqlstate,
                "request failed"
            );
        } else {
            tracing::debug!(tenant, code, status = status.as_u16(), err = %self, cause, sqlstate, "request refused");
        }
        let code = if status == StatusCode::NOT_FOUND {
            ErrorKind::UnknownTenant.code() // the same if the tenant was deleted
        } else {
            code
        };
        let problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": code,
        });
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        // A deleted tenant must look like one that never existed.
        let wait = self
            .retry_after()
            .filter(|_| status != StatusCode::NOT_FOUND);
        if let Some(wait) = wait {
            // Rounded up, so that the client does not come back too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Returns the text of the error's source, if that is an error of tenantry. The text of other errors may quote a
/// statement or a row.
fn cause(err: &Error) -> Option<String> {
    let cause = err.source()?.downcast_ref::<Error>()?;
    Some(cause.to_string())
}

/// Returns Postgres's code of the error, if its source is an error of Postgres. The code names the kind of error, and
/// quotes nothing of the statement.
fn sqlstate(err: &Error) -> Option<&str> {
    let err = err.source()?.downcast_ref::<tokio_postgres::Error>()?;
    err.code().map(SqlState::code)
}

/// Returns the status that tells a client of the application the same as `kind`.
fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidTenant => StatusCode::BAD_REQUEST,
        // A client need not learn that a deleted tenant existed.
        ErrorKind::Deleted | ErrorKind::NotFound | ErrorKind::UnknownTenant => {
            StatusCode::NOT_FOUND
        }
        ErrorKind::QuotaExhausted(_) => StatusCode::PAYMENT_REQUIRED,
        ErrorKind::Disabled | ErrorKind::Refused => StatusCode::FORBIDDEN,
        ErrorKind::Conflict | ErrorKind::RolledBack => StatusCode::CONFLICT,
        ErrorKind::Overloaded | ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::ActiveComputeLimit
        | ErrorKind::Catalog
        | ErrorKind::Closed
        | ErrorKind::Connect
        | ErrorKind::ControlPlane
        | ErrorKind::EndpointNotFound
        | ErrorKind::Held
        | ErrorKind::Locked
        | ErrorKind::Provisioning
        | ErrorKind::Schema(_)
        | ErrorKind::StaleCredential
        | ErrorKind::Timeout(_)
        | ErrorKind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::BadCredential
        | ErrorKind::BadRecord
        | ErrorKind::CommitUnknown
        | ErrorKind::Internal
        | ErrorKind::Misconfigured
        | ErrorKind::Misused
        | ErrorKind::Query => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MANUAL: &str = include_str!("../manual/errors.md");

    #[test]
    fn the_manual_has_each_kind_in_its_row_and_in_a_section() {
        // The compiler requires an arm for each kind in `code`, and each arm is on a line of its own.
        let upper = include_str!("../model/error/kind.rs")
            .split("fn is_transient")
            .next();
        let arms = upper.unwrap().matches("=> \"").count();
        let codes: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), arms, "one is missing in ALL");
        let sections = MANUAL.lines().filter_map(|line| line.strip_prefix("## "));
        assert_eq!(sections.collect::<BTreeSet<_>>(), codes);

        for kind in ErrorKind::ALL {
            let again = if kind.is_transient() { "yes" } else { "no" };
            let row = format!("| {again} | {} |", status_of(*kind).as_u16());
            let entry = format!("[`{0}`](#{0})", kind.code());
            let rows = MANUAL.lines().filter(|line| line.starts_with("| "));
            let rows: Vec<_> = rows.filter(|line| line.contains(&entry)).collect();
            assert!(
                matches!(rows[..], [only] if only.starts_with(&row)),
                "{entry} belongs into {row}, and is in {rows:?}"
            );
        }
    }
}
