//! The reasons for which Neon's control plane does not wake a compute.

use serde::Deserialize;

/// A reason for which the control plane does not wake a compute. These are Neon's own reasons, with the texts that it
/// gives for the user where they are known.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// `RUNNING_OPERATIONS`. Transient: the proxy asks up to nine times within 4.4 seconds before it tells the client.
    RunningOperations,
    /// `CONCURRENCY_LIMIT_REACHED`. Transient; its text is not known.
    ConcurrencyLimitReached,
    /// `LOCK_ALREADY_TAKEN`. Transient; its text is not known.
    LockAlreadyTaken,
    /// `ENDPOINT_IDLE`. Transient; its text is not known.
    EndpointIdle,
    /// `PROJECT_UNDER_MAINTENANCE`. Transient; its text is not known.
    ProjectUnderMaintenance,
    /// The active time of the project is used up. This reason and all following ones last: the proxy tells the client
    /// at once, and repeats the error for 30 seconds on that host without asking again.
    ActiveTimeQuota,
    /// The compute time of the account or the project is used up.
    ComputeTimeQuota,
    /// The project has reached its limit of written data.
    WrittenDataQuota,
    /// The project has reached its limit of transferred data.
    DataTransferQuota,
    /// The project has reached its limit of stored data.
    LogicalSizeQuota,
    /// The compute time of a branch that is not the default one is used up.
    BranchComputeTimeQuota,
    /// The largest allowed number of computes is active.
    ActiveEndpointsLimit,
    /// The control plane gets too many requests.
    RateLimitExceeded,
    /// The endpoint is disabled.
    EndpointDisabled,
    /// The endpoint disappeared after the client's password was looked up.
    EndpointNotFound,
    /// Status 423 or 422 without a text: maintenance, a state between two others, or a quota.
    Unavailable,
    /// Status 404 without a text.
    NotFound,
    /// Status 500, 502, 503 or 429 without a text.
    Failed,
}

impl Reason {
    /// Returns whether the proxy asks again by itself.
    pub(super) const fn passes(self) -> bool {
        match self {
            Self::RunningOperations
            | Self::ConcurrencyLimitReached
            | Self::LockAlreadyTaken
            | Self::EndpointIdle
            | Self::ProjectUnderMaintenance => true,
            Self::ActiveTimeQuota
            | Self::ComputeTimeQuota
            | Self::WrittenDataQuota
            | Self::DataTransferQuota
            | Self::LogicalSizeQuota
            | Self::BranchComputeTimeQuota
            | Self::ActiveEndpointsLimit
            | Self::RateLimitExceeded
            | Self::EndpointDisabled
            | Self::EndpointNotFound
            | Self::Unavailable
            | Self::NotFound
            | Self::Failed => false,
        }
    }

    /// Returns the text that the client gets.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::RunningOperations => {
                "Your project already has running operations. Please wait until they complete, and then try again."
            }
            Self::ActiveTimeQuota => {
                "Your project has exceeded the active time quota. Upgrade your plan to increase limits."
            }
            Self::ComputeTimeQuota => {
                "Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits."
            }
            Self::WrittenDataQuota => {
                "Your project has exceeded the written data quota. Upgrade your plan to increase limits."
            }
            Self::DataTransferQuota => {
                "Your project has exceeded the data transfer quota. Upgrade your plan to increase limits."
            }
            Self::LogicalSizeQuota => {
                "Your project has exceeded the logical size quota. Upgrade your plan to increase limits."
            }
            Self::BranchComputeTimeQuota => {
                "You've exceeded the compute time for this branch. Upgrade your plan to increase limits."
            }
            Self::ActiveEndpointsLimit => {
                "You have exceeded the limit of concurrently active endpoints. Please suspend some endpoints and try again."
            }
            Self::RateLimitExceeded => {
                "You've exceeded the rate limit. Please wait a moment and try again."
            }
            Self::EndpointDisabled => {
                "The endpoint has been disabled. Enable it using the API and retry."
            }
            Self::EndpointNotFound => {
                "The requested endpoint could not be found, or you don't have access to it. Please check the provided ID and try again."
            }
            Self::Unavailable => {
                "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or contact our support."
            }
            Self::NotFound => "Control plane request failed: endpoint cannot be found",
            Self::ConcurrencyLimitReached
            | Self::LockAlreadyTaken
            | Self::EndpointIdle
            | Self::ProjectUnderMaintenance
            | Self::Failed => "Control plane request failed",
        }
    }
}
