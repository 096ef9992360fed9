//! A project, its branches and its endpoints.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::{operation::Operation, usage::Ledger};
use crate::emulator::{
    compute::{Compute, contents::Contents},
    names::domain_of,
    witness::Witness,
};

/// The characters that are percent-encoded in a URI.
const OUTSIDE_A_WORD: &AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// A project. Only the one in the world's list is the original; copies share its computes and its ledger.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Project {
    pub(in crate::emulator) id: String,
    pub(in crate::emulator) name: String,
    pub(in crate::emulator) region: String,
    pub(in crate::emulator) pg_version: u64,
    pub(in crate::emulator) org_id: Option<String>,
    /// Size of new endpoints.
    pub(in crate::emulator) defaults: Size,
    pub(in crate::emulator) ledger: Arc<Ledger>,
    pub(in crate::emulator) created_at: SystemTime,
    pub(in crate::emulator) updated_at: SystemTime,
    /// Time of its deletion. It can be recovered since then.
    pub(in crate::emulator) deleted_at: Option<SystemTime>,
    /// Branches, oldest first.
    pub(in crate::emulator) branches: Vec<Branch>,
    pub(in crate::emulator) endpoints: Vec<Endpoint>,
    /// Operations, newest last.
    pub(in crate::emulator) operations: Vec<Operation>,
}

/// A branch: its own data, and the compute of its endpoint.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Branch {
    pub(in crate::emulator) id: String,
    pub(in crate::emulator) name: String,
    pub(in crate::emulator) parent_id: Option<String>,
    pub(in crate::emulator) default: bool,
    pub(in crate::emulator) annotations: BTreeMap<String, String>,
    pub(in crate::emulator) created_at: SystemTime,
    pub(in crate::emulator) compute: Arc<Compute>,
}

/// An endpoint: a name under which clients reach a branch's compute.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Endpoint {
    pub(in crate::emulator) id: String,
    pub(in crate::emulator) branch_id: String,
    pub(in crate::emulator) size: Size,
    pub(in crate::emulator) disabled: bool,
    pub(in crate::emulator) created_at: SystemTime,
    pub(in crate::emulator) updated_at: SystemTime,
    pub(in crate::emulator) compute: Arc<Compute>,
}

/// The size of an endpoint's compute, and its suspend window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::emulator) struct Size {
    /// Smallest and largest number of compute units.
    pub(in crate::emulator) units: (f64, f64),
    /// Suspend window as the API encodes it: 0 for the default, -1 for never.
    pub(in crate::emulator) suspend_timeout_seconds: i64,
}

impl Project {
    /// Returns whether operations are in progress, so that new ones are refused.
    pub(in crate::emulator) fn is_locked(&self) -> bool {
        self.operations.iter().any(Operation::goes_on)
    }

    pub(in crate::emulator) fn branch(&self, id: &str) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.id == id)
    }

    pub(in crate::emulator) fn default_branch(&self) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.default)
    }

    pub(in crate::emulator) fn endpoint(&self, id: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.id == id)
    }

    pub(in crate::emulator) fn endpoint_of(&self, branch_id: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.branch_id == branch_id)
    }

    pub(in crate::emulator) fn proxy_host(&self) -> String {
        domain_of(&self.region)
    }

    pub(in crate::emulator) fn host(&self, endpoint: &Endpoint) -> String {
        format!("{}.{}", endpoint.id, self.proxy_host())
    }

    pub(in crate::emulator) fn pooler_host(&self, endpoint: &Endpoint) -> String {
        format!("{}-pooler.{}", endpoint.id, self.proxy_host())
    }

    /// Returns the complete connection string, including the password.
    pub(in crate::emulator) fn uri(&self, endpoint: &Endpoint, pooled: bool) -> String {
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

    pub(in crate::emulator) fn witness(&self, endpoint: &Endpoint) -> Witness {
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
            handshakes: log.handshakes.clone(),
            resumed: log.resumed,
            retried: log.retried,
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
