//! An error as the answer to a request.
//!
//! The client hears what it can act on: a status, a stable code, when to come back. Which tenant it was, what the driver
//! said and what the operator should change go to the log.

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    error::{Error, ErrorKind},
    tenant::TenantId,
};

impl IntoResponse for Error {
    /// The answer as `application/problem+json` (RFC 9457), with `Retry-After` where it is known. Logs the error: as a
    /// warning if the server is at fault or must be looked after, else for debugging.
    fn into_response(self) -> Response {
        let status = status_of(self.kind());
        let code = self.kind().code();
        let tenant = self.tenant().map(TenantId::as_str);
        if status.is_server_error() {
            tracing::warn!(tenant, code, status = status.as_u16(), stage = ?self.stage(), err = %self, "request failed");
        } else {
            tracing::debug!(tenant, code, status = status.as_u16(), err = %self, "request refused");
        }
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
        if let Some(wait) = self.retry_after() {
            // Whole seconds, and never before it is worth while.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The status that says the same as `kind` to a client of the application.
fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidTenant => StatusCode::BAD_REQUEST,
        // A client need not learn that there once was one.
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
