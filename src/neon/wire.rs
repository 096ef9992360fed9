//! The bodies that go over the wire, as Neon names them.
//!
//! Answers are read tolerantly: only what is used is required, unknown fields are skipped, and every enumeration is a
//! string. Passwords are [`Secret`]s from the first byte; connection URIs, which contain one, are not even read.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    endpoint::DEFAULT_SUSPEND_WINDOW,
    plan::{Plan, Suspend},
    secret::Secret,
};

/// A project to be created.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CreateProject {
    /// Its name; Neon does not keep names unique.
    pub name: String,
    /// Annotations of its default branch.
    pub annotations: BTreeMap<String, String>,
    /// Size, sleep and limits.
    pub plan: Plan,
}

/// Name of the database in every project that tenantry creates (Neon's own default).
pub(super) const DATABASE: &str = "neondb";
/// Name of the role in every project that tenantry creates (Neon's own default).
pub(super) const ROLE: &str = "neondb_owner";

impl CreateProject {
    /// A project of that name, with the account's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The body of the request. What the plan leaves open is left out.
    pub(super) fn body(&self, org_id: Option<&str>) -> Value {
        let mut branch = json!({ "database_name": DATABASE, "role_name": ROLE });
        if !self.annotations.is_empty() {
            branch["annotations"] = json!(self.annotations);
        }
        let mut project = json!({ "name": self.name, "branch": branch });
        let plan = &self.plan;
        let optional = [
            (
                "region_id",
                plan.region.as_ref().map(|region| json!(region)),
            ),
            ("pg_version", plan.pg_version.map(|version| json!(version))),
            ("org_id", org_id.map(|org| json!(org))),
            ("default_endpoint_settings", filled(endpoint_settings(plan))),
            (
                "settings",
                filled(quota(plan)).map(|quota| json!({ "quota": quota })),
            ),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                project[field] = value;
            }
        }
        json!({ "project": project })
    }
}

fn endpoint_settings(plan: &Plan) -> Map<String, Value> {
    let mut settings = Map::new();
    if let Some((min, max)) = plan.compute_units {
        settings.insert("autoscaling_limit_min_cu".into(), json!(min));
        settings.insert("autoscaling_limit_max_cu".into(), json!(max));
    }
    let suspend = match plan.suspend {
        Suspend::Default => None,
        Suspend::After(window) => Some(json!(window.as_secs())),
        Suspend::Never => Some(json!(-1)),
    };
    settings.extend(suspend.map(|value| ("suspend_timeout_seconds".to_owned(), value)));
    settings
}

fn quota(plan: &Plan) -> Map<String, Value> {
    let quota = &plan.quota;
    let limits = [
        (
            "active_time_seconds",
            quota.active_time.map(|time| time.as_secs()),
        ),
        (
            "compute_time_seconds",
            quota.compute_time.map(|time| time.as_secs()),
        ),
        ("written_data_bytes", quota.written_bytes),
        ("data_transfer_bytes", quota.transfer_bytes),
        ("logical_size_bytes", quota.logical_size_bytes),
    ];
    limits
        .into_iter()
        .filter_map(|(field, limit)| Some((field.to_owned(), json!(limit?))))
        .collect()
}

fn filled(map: Map<String, Value>) -> Option<Value> {
    (!map.is_empty()).then_some(Value::Object(map))
}

/// A project: the container of branches, databases and computes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its name, which need not be unique.
    #[serde(default)]
    pub name: String,
    /// Its region.
    #[serde(default)]
    pub region_id: String,
    /// When it was created, RFC 3339.
    #[serde(default)]
    pub created_at: String,
}

/// The answer to the creation of a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct CreatedProject {
    /// The project.
    pub project: Project,
    /// How to connect to it.
    #[serde(default)]
    pub connection_uris: Vec<ConnectionDetails>,
    /// Its computes.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// What is still being done.
    #[serde(default)]
    pub operations: Vec<Operation>,
}

/// How to connect.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionDetails {
    /// The parts. The URI beside them is not read: it names the direct host and contains the password.
    pub connection_parameters: ConnectionParameters,
}

/// The parts of a connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionParameters {
    /// Name of the database.
    pub database: String,
    /// Password of the role.
    pub password: Secret,
    /// Role to log in as.
    pub role: String,
    /// The direct host.
    pub host: String,
    /// The host with the pooler.
    pub pooler_host: String,
}

/// A branch of a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Branch {
    /// Its id.
    pub id: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Whether it is the project's default branch.
    #[serde(default)]
    pub default: bool,
    /// What is written on it. Filled in from beside the list of branches.
    #[serde(skip)]
    pub annotations: BTreeMap<String, String>,
}

/// A compute endpoint of a branch.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Endpoint {
    /// Its id, `ep-…`.
    pub id: String,
    /// Its direct host.
    pub host: String,
    /// The branch it serves.
    #[serde(default)]
    pub branch_id: String,
    /// `read_write` or `read_only`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// `init`, `active` or `idle`.
    #[serde(default)]
    pub current_state: String,
    /// Seconds without activity until it sleeps; 0 for the default of 300, -1 for never.
    #[serde(default)]
    pub suspend_timeout_seconds: i64,
}

impl Endpoint {
    /// Time without activity until it sleeps; `None` for never.
    pub fn suspend_window(&self) -> Option<Duration> {
        match self.suspend_timeout_seconds {
            0 => Some(DEFAULT_SUSPEND_WINDOW),
            seconds => u64::try_from(seconds).ok().map(Duration::from_secs),
        }
    }
}

/// Something that Neon is doing to a project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// What is done, such as `start_compute`.
    #[serde(default)]
    pub action: String,
    /// How far it is, such as `running` or `finished`.
    #[serde(default)]
    pub status: String,
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
pub(super) struct ProjectAnswer {
    pub(super) project: Project,
}

#[derive(Debug, Deserialize)]
pub(super) struct ProjectsPage {
    #[serde(default)]
    pub(super) projects: Vec<Project>,
    /// Projects that the search could not look at in time: with any of these, absence is not proved.
    #[serde(default)]
    pub(super) unavailable_project_ids: Vec<String>,
    #[serde(default)]
    pub(super) pagination: Option<Pagination>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pagination {
    #[serde(default)]
    pub(super) cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct BranchesAnswer {
    pub(super) branches: Vec<Branch>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, Annotation>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Annotation {
    #[serde(default)]
    pub(super) value: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointsAnswer {
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointAnswer {
    pub(super) endpoint: Endpoint,
}

#[derive(Debug, Deserialize)]
pub(super) struct OperationsAnswer {
    #[serde(default)]
    pub(super) operations: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
pub(super) struct OperationAnswer {
    pub(super) operation: Operation,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConnectionUriAnswer {
    pub(super) uri: Secret,
}

/// Neon's body for anything that is not a success. The code is often empty.
#[derive(Debug, Default, Deserialize)]
pub(super) struct GeneralError {
    #[serde(default)]
    pub(super) request_id: Option<String>,
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_written_as_neon_reads_it_and_nothing_else_is() {
        let bare = CreateProject::new("p").body(None);
        let branch = json!({ "database_name": "neondb", "role_name": "neondb_owner" });
        assert_eq!(
            bare,
            json!({ "project": { "name": "p", "branch": branch } })
        );

        let plan = Plan::new()
            .region("aws-us-east-2")
            .pg_version(17)
            .compute_units(0.25, 2.0)
            .suspend_after(Duration::from_secs(60))
            .active_time_quota(Duration::from_secs(3600));
        let full = CreateProject {
            plan,
            ..CreateProject::new("p")
        }
        .body(Some("org-a"));
        assert_eq!(
            full["project"]["default_endpoint_settings"],
            json!({
                "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 2.0, "suspend_timeout_seconds": 60,
            })
        );
        assert_eq!(
            full["project"]["settings"],
            json!({ "quota": { "active_time_seconds": 3600 } })
        );
        assert_eq!(full["project"]["org_id"], "org-a");
    }

    #[test]
    fn zero_is_the_default_window_and_minus_one_is_never() {
        let endpoint = |seconds: i64| -> Endpoint {
            serde_json::from_value(
                json!({ "id": "ep-a", "host": "h", "suspend_timeout_seconds": seconds }),
            )
            .unwrap()
        };
        assert_eq!(endpoint(0).suspend_window(), Some(Duration::from_secs(300)));
        assert_eq!(endpoint(60).suspend_window(), Some(Duration::from_secs(60)));
        assert_eq!(endpoint(-1).suspend_window(), None);
    }

    #[test]
    fn unknown_fields_and_values_are_let_through_and_secrets_stay_hidden() {
        let body = json!({
            "project": { "id": "p-1", "name": "n", "owner_id": "o", "brand_new": { "deep": [1] } },
            "connection_uris": [{
                "connection_uri": "postgresql://r:hunter2@h/d?sslmode=require&channel_binding=require",
                "connection_parameters":
                    { "database": "d", "password": "hunter2", "role": "r", "host": "h", "pooler_host": "h-pooler", "x": 1 },
            }],
            "roles": [{ "name": "r", "password": "hunter2" }],
            "operations": [{ "id": "o-1", "action": "teleport", "status": "pondering" }],
        });
        let created: CreatedProject = serde_json::from_value(body).unwrap();
        assert!(!created.operations[0].is_pending());
        assert_eq!(
            created.connection_uris[0]
                .connection_parameters
                .password
                .expose(),
            "hunter2"
        );
        assert!(!format!("{created:?}").contains("hunter2"));
    }
}
