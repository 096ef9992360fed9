//! The properties of a kind of error: its code, and whether another attempt can help.

use std::fmt;

use super::{ErrorKind, ExhaustedQuota, SchemaFault, Stage};

impl ErrorKind {
    /// One kind for each code. A test counts them.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    pub(crate) const ALL: &[Self] = &[
        Self::ActiveComputeLimit,
        Self::BadCredential,
        Self::BadRecord,
        Self::Catalog,
        Self::Closed,
        Self::CommitUnknown,
        Self::Conflict,
        Self::Connect,
        Self::ControlPlane,
        Self::Deleted,
        Self::Disabled,
        Self::EndpointNotFound,
        Self::Held,
        Self::Internal,
        Self::InvalidTenant,
        Self::Locked,
        Self::Misconfigured,
        Self::Misused,
        Self::NotFound,
        Self::Overloaded,
        Self::Provisioning,
        Self::Query,
        Self::QuotaExhausted(ExhaustedQuota::Other),
        Self::RateLimited,
        Self::Refused,
        Self::RolledBack,
        Self::Schema(SchemaFault::Failed),
        Self::StaleCredential,
        Self::Timeout(Stage::Wake),
        Self::UnknownTenant,
        Self::Unreachable,
    ];

    /// Returns a name that stays the same in every version, for logs, alerts, metrics and clients.
    pub const fn code(self) -> &'static str {
        match self {
            Self::ActiveComputeLimit => "active_compute_limit",
            Self::BadCredential => "bad_credential",
            Self::BadRecord => "bad_record",
            Self::Catalog => "catalog",
            Self::Closed => "closed",
            Self::CommitUnknown => "commit_unknown",
            Self::Conflict => "conflict",
            Self::Connect => "connect",
            Self::ControlPlane => "control_plane",
            Self::Deleted => "deleted",
            Self::Disabled => "disabled",
            Self::EndpointNotFound => "endpoint_not_found",
            Self::Held => "held",
            Self::Internal => "internal",
            Self::InvalidTenant => "invalid_tenant",
            Self::Locked => "locked",
            Self::Misconfigured => "misconfigured",
            Self::Misused => "misused",
            Self::NotFound => "not_found",
            Self::Overloaded => "overloaded",
            Self::Provisioning => "provisioning",
            Self::Query => "query",
            Self::QuotaExhausted(_) => "quota_exhausted",
            Self::RateLimited => "rate_limited",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
            Self::Schema(_) => "schema",
            Self::StaleCredential => "stale_credential",
            Self::Timeout(_) => "timeout",
            Self::UnknownTenant => "unknown_tenant",
            Self::Unreachable => "unreachable",
        }
    }

    /// Returns whether another attempt may succeed without any change.
    ///
    /// A timeout is not transient: tenantry has already retried until then.
    pub const fn is_transient(self) -> bool {
        match self {
            Self::ActiveComputeLimit
            | Self::Catalog
            | Self::Connect
            | Self::ControlPlane
            | Self::Locked
            | Self::Overloaded
            | Self::Provisioning
            | Self::RateLimited
            | Self::StaleCredential
            | Self::Unreachable => true,
            Self::BadCredential
            | Self::BadRecord
            | Self::Closed
            | Self::CommitUnknown
            | Self::Conflict
            | Self::Deleted
            | Self::Disabled
            | Self::EndpointNotFound
            | Self::Held
            | Self::Internal
            | Self::InvalidTenant
            | Self::Misconfigured
            | Self::Misused
            | Self::NotFound
            | Self::Query
            | Self::QuotaExhausted(_)
            | Self::Refused
            | Self::RolledBack
            | Self::Schema(_)
            | Self::Timeout(_)
            | Self::UnknownTenant => false,
        }
    }
}

/// Writes the [code](Self::code).
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
