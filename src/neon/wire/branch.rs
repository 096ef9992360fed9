//! Branches.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ConnectionDetails, Endpoint, Operation, settings, tolerant};
use crate::model::plan::Plan;

/// A branch to be created.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CreateBranch {
    /// Its name, 1 to 256 characters, unique in the project.
    pub name: String,
    /// The branch whose data it starts with; `None` for the default branch.
    pub parent_id: Option<String>,
    /// Time at which Neon deletes the branch, at most 30 days from now; `None` for never.
    pub expires_at: Option<SystemTime>,
    /// Annotations of the branch, at most 50.
    pub annotations: BTreeMap<String, String>,
    /// Size and sleep of its compute. The rest of a plan applies to a project, and is not used here.
    pub plan: Plan,
    /// `true` to create it with a compute that takes writes.
    pub with_endpoint: bool,
}

impl CreateBranch {
    /// Describes a branch of that name, from the default branch, with a compute that has the account's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            parent_id: None,
            expires_at: None,
            annotations: BTreeMap::new(),
            plan: Plan::default(),
            with_endpoint: true,
        }
    }

    pub(in crate::neon) fn body(&self) -> Value {
        let mut branch = json!({ "name": self.name });
        if let Some(parent_id) = &self.parent_id {
            branch["parent_id"] = json!(parent_id);
        }
        if let Some(at) = self.expires_at {
            branch["expires_at"] = json!(humantime::format_rfc3339_seconds(at).to_string());
        }
        let mut body = json!({ "branch": branch });
        if self.with_endpoint {
            let mut endpoint = settings::new_compute(self.plan.compute_units, self.plan.suspend);
            endpoint.insert("type".into(), json!("read_write"));
            body["endpoints"] = json!([endpoint]);
        }
        if !self.annotations.is_empty() {
            body["annotation_value"] = json!(self.annotations);
        }
        body
    }
}

/// A branch of a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Branch {
    /// Its id, `br-…`.
    pub id: String,
    /// Its name, unique in the project.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub name: String,
    /// The branch that it was created from; `None` for a root branch.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// `true` for the project's default branch.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub default: bool,
    /// `init`, `resetting`, `ready` or `archived`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub current_state: String,
    /// The state that it is changing to.
    #[serde(default)]
    pub pending_state: Option<String>,
    /// Time of its creation, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub created_at: String,
    /// Its annotations. Neon returns them when it lists or shows a branch, not when it creates or deletes one.
    #[serde(skip)]
    pub annotations: BTreeMap<String, String>,
}

/// The answer to the creation of a branch.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[non_exhaustive]
pub struct CreatedBranch {
    /// The branch, without its annotations, which Neon does not repeat here.
    pub branch: Branch,
    /// Its computes.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub endpoints: Vec<Endpoint>,
    /// The operations that complete the creation.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub operations: Vec<Operation>,
    /// Its connection details. Empty if it has no compute, or if its parent has more than one role or database.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub connection_uris: Vec<ConnectionDetails>,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct BranchAnswer {
    branch: Branch,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    annotation: Annotation,
}

impl From<BranchAnswer> for Branch {
    fn from(BranchAnswer { branch, annotation }: BranchAnswer) -> Self {
        Self {
            annotations: annotation.value,
            ..branch
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct BranchesAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    branches: Vec<Branch>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    annotations: BTreeMap<String, Annotation>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pagination: NextPage,
}

impl BranchesAnswer {
    /// Returns the start of the next page, and the branches on this one with their annotations.
    pub(in crate::neon) fn split(mut self) -> (Option<String>, Vec<Branch>) {
        for branch in &mut self.branches {
            let noted = self.annotations.remove(&branch.id);
            branch.annotations = noted.unwrap_or_default().value;
        }
        (
            self.pagination.next.filter(|next| !next.is_empty()),
            self.branches,
        )
    }
}

/// The pagination of branches, which differs from all others.
#[derive(Debug, Default, Deserialize)]
struct NextPage {
    #[serde(default)]
    next: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Annotation {
    #[serde(default, deserialize_with = "tolerant::texts")]
    value: BTreeMap<String, String>,
}
