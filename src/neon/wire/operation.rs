//! Operations: what Neon does to a project after it has answered.

use serde::Deserialize;

use super::tolerant;

/// Something that Neon is doing to a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// What is done, such as `start_compute`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub action: String,
    /// How far it is, such as `running` or `finished`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub status: String,
    /// The branch that it is about.
    #[serde(default)]
    pub branch_id: Option<String>,
    /// The compute endpoint that it is about.
    #[serde(default)]
    pub endpoint_id: Option<String>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
}

impl Operation {
    /// Whether it goes on.
    pub fn is_pending(&self) -> bool {
        matches!(
            self.status.as_str(),
            "scheduling" | "running" | "cancelling"
        )
    }

    /// Whether it ended in failure. `cancelled` and `skipped` are ends, not failures.
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
