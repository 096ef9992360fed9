//! A project, its branches and its endpoints.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::{
    compute::Compute, contents::Contents, names::domain_of, operation::Operation, usage::Ledger,
    witness::Witness,
};

/// What is not written plainly in a URI.
const OUTSIDE_A_WORD: &AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// A project. A copy, unless it is in the world's own list; computes and ledger are shared.
#[derive(Clone, Debug)]
pub(super) struct Project {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) region: String,
    pub(super) pg_version: u64,
    pub(super) org_id: Option<String>,
    /// What new endpoints get.
    pub(super) defaults: Size,
    pub(super) ledger: Arc<Ledger>,
    pub(super) created_at: SystemTime,
    pub(super) updated_at: SystemTime,
    /// Since when it is gone, and can be recovered.
    pub(super) deleted_at: Option<SystemTime>,
    /// Oldest first.
    pub(super) branches: Vec<Branch>,
    pub(super) endpoints: Vec<Endpoint>,
    /// Newest last.
    pub(super) operations: Vec<Operation>,
}

/// A branch: data of its own, and the compute that an endpoint of it has.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) parent_id: Option<String>,
    pub(super) default: bool,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) created_at: SystemTime,
    pub(super) compute: Arc<Compute>,
}

/// A name under which a branch's compute can be reached.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) id: String,
    pub(super) branch_id: String,
    pub(super) size: Size,
    pub(super) disabled: bool,
    pub(super) created_at: SystemTime,
    pub(super) updated_at: SystemTime,
    pub(super) compute: Arc<Compute>,
}

/// How large an endpoint's compute is, and how long it stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    /// Least and most compute units.
    pub(super) units: (f64, f64),
    /// As the API has it: 0 for the default, -1 for never.
    pub(super) suspend_timeout_seconds: i64,
}

impl Project {
    /// Whether operations go on, so that others must wait.
    pub(super) fn is_locked(&self) -> bool {
        self.operations.iter().any(Operation::goes_on)
    }

    pub(super) fn branch(&self, id: &str) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.id == id)
    }

    pub(super) fn default_branch(&self) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.default)
    }

    pub(super) fn endpoint(&self, id: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.id == id)
    }

    pub(super) fn endpoint_of(&self, branch_id: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.branch_id == branch_id)
    }

    pub(super) fn proxy_host(&self) -> String {
        domain_of(&self.region)
    }

    pub(super) fn host(&self, endpoint: &Endpoint) -> String {
        format!("{}.{}", endpoint.id, self.proxy_host())
    }

    pub(super) fn pooler_host(&self, endpoint: &Endpoint) -> String {
        format!("{}-pooler.{}", endpoint.id, self.proxy_host())
    }

    /// The whole connection string, password included.
    pub(super) fn uri(&self, endpoint: &Endpoint, pooled: bool) -> String {
        let Contents {
            database,
            role,
            password,
            ..
        } = endpoint.compute.contents();
        let host = if pooled {
            self.pooler_host(endpoint)
        } else {
            self.host(endpoint)
        };
        let (role, database) = (encoded(&role), encoded(&database));
        let password = password.expose();
        format!(
            "postgresql://{role}:{password}@{host}/{database}?sslmode=require&channel_binding=require"
        )
    }

    pub(super) fn witness(&self, endpoint: &Endpoint) -> Witness {
        let branch = self.branch(&endpoint.branch_id);
        let annotations = branch.map(|branch| branch.annotations.clone());
        let log = endpoint.compute.log.entries();
        Witness {
            endpoint_id: endpoint.id.clone(),
            host: self.host(endpoint),
            project_id: self.id.clone(),
            project_name: self.name.clone(),
            branch_id: endpoint.branch_id.clone(),
            annotations: annotations.unwrap_or_default(),
            is_awake: endpoint.compute.is_awake(),
            wakes: log.wakes.clone(),
            suspends: log.suspends.clone(),
            auth_attempts: log.auth_attempts.clone(),
            sessions: log.sessions.clone(),
            open_sessions: log.open_sessions,
            most_open_sessions: log.most_open_sessions,
        }
    }
}

fn encoded(part: &str) -> impl std::fmt::Display {
    utf8_percent_encode(part, OUTSIDE_A_WORD).to_string()
}
