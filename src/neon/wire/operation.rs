//! Operations: the work on a project that Neon does after it has answered a call.

use serde::Deserialize;

use super::tolerant;

/// An operation of Neon on a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// Its kind of work, such as `start_compute`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub action: String,
    /// Its status, such as `running` or `finished`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub status: String,
    /// The branch that it works on.
    #[serde(default)]
    pub branch_id: Option<String>,
    /// The compute endpoint that it works on.
    #[serde(default)]
    pub endpoint_id: Option<String>,
    /// The reason why it failed.
    #[serde(default)]
    pub error: Option<String>,
}

impl Operation {
    /// Returns whether it has not ended yet.
    pub fn is_pending(&self) -> bool {
        matches!(
            self.status.as_str(),
            "scheduling" | "running" | "cancelling"
        )
    }

    /// Returns whether it ended in failure. `cancelled` and `skipped` are not failures.
    pub fn has_failed(&self) -> bool {
        matches!(self.status.as_str(), "failed" | "error")
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct OperationsAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) operations: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct OperationAnswer {
    pub(in crate::neon) operation: Operation,
}
