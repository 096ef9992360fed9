//! Projects.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Branch, ConnectionDetails, Endpoint, Operation, settings, tolerant};
use crate::model::plan::{Plan, Quota, Suspend};

/// Name of the database in every project that tenantry creates (Neon's own default).
pub(in crate::neon) const DATABASE: &str = "neondb";
/// Name of the role in every project that tenantry creates (Neon's own default).
pub(in crate::neon) const ROLE: &str = "neondb_owner";

/// A project to be created.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CreateProject {
    /// Its name, 1 to 256 characters; Neon does not keep names unique.
    pub name: String,
    /// Annotations of its default branch, at most 50.
    pub annotations: BTreeMap<String, String>,
    /// Size, sleep and limits.
    pub plan: Plan,
}

impl CreateProject {
    /// Describes a project of that name, with the account's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Returns the body of the request. Fields that the plan does not set are left out.
    pub(in crate::neon) fn body(&self, org_id: Option<&str>) -> Value {
        let mut branch = json!({ "database_name": DATABASE, "role_name": ROLE });
        if !self.annotations.is_empty() {
            branch["annotations"] = json!(self.annotations);
        }
        let mut project = json!({ "name": self.name, "branch": branch });
        let plan = &self.plan;
        let compute = settings::new_compute(plan.compute_units, plan.suspend);
        let quota = settings::filled(settings::quota(&plan.quota));
        let optional = [
            (
                "region_id",
                plan.region.as_ref().map(|region| json!(region)),
            ),
            ("pg_version", plan.pg_version.map(|version| json!(version))),
            ("org_id", org_id.map(|org| json!(org))),
            ("default_endpoint_settings", settings::filled(compute)),
            ("settings", quota.map(|quota| json!({ "quota": quota }))),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                project[field] = value;
            }
        }
        json!({ "project": project })
    }
}

/// The changes to a project. A field that is `None` changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct UpdateProject {
    /// Its name.
    pub name: Option<String>,
    /// Least and most compute units of computes that are created from now on.
    pub compute_units: Option<(f64, f64)>,
    /// Time without activity until computes that are created from now on sleep; the default is Neon's own.
    pub suspend: Option<Suspend>,
    /// All limits for one billing period. A limit that the quota does not set is removed.
    pub quota: Option<Quota>,
}

impl UpdateProject {
    /// Creates an update that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Applies the parts of `plan` that can be changed: the size and the sleep of new computes, and all limits. The
    /// region and the version of Postgres cannot be changed. A plan without a size keeps the old size.
    #[must_use]
    pub fn plan(mut self, plan: &Plan) -> Self {
        self.compute_units = plan.compute_units;
        self.suspend = Some(plan.suspend);
        self.quota = Some(plan.quota);
        self
    }

    pub(in crate::neon) fn body(&self) -> Value {
        let mut project = Map::new();
        let compute = settings::compute(self.compute_units, self.suspend);
        let optional = [
            ("name", self.name.as_ref().map(|name| json!(name))),
            ("default_endpoint_settings", settings::filled(compute)),
            (
                "settings",
                self.quota
                    .map(|quota| json!({ "quota": settings::whole_quota(&quota) })),
            ),
        ];
        for (field, value) in optional {
            project.extend(value.map(|value| (field.to_owned(), value)));
        }
        json!({ "project": project })
    }
}

/// A query for a list of projects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ListProjects {
    /// Part of the name or of the id.
    pub search: Option<String>,
    /// Start of the page: the `cursor` of the page before it.
    pub cursor: Option<String>,
    /// Most projects on the page, 1 to 400; Neon's default is 10.
    pub limit: Option<u16>,
    /// `true` to list the deleted projects that can be recovered, instead of those that exist.
    pub recoverable: bool,
}

impl ListProjects {
    /// Creates a query for the first page of all projects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Restricts the list to projects with `part` in their name or id.
    #[must_use]
    pub fn search(mut self, part: impl Into<String>) -> Self {
        self.search = Some(part.into());
        self
    }

    /// Continues after the page that returned `cursor`.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Sets the size of the page, 1 to 400. Defaults to Neon's 10. Larger pages save requests.
    #[must_use]
    pub fn limit(mut self, limit: u16) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Lists the deleted projects that can be recovered, instead of those that exist.
    #[must_use]
    pub fn recoverable(mut self) -> Self {
        self.recoverable = true;
        self
    }
}

/// One page of projects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ProjectsPage {
    /// The projects on it.
    pub projects: Vec<Project>,
    /// Start of the next page. Neon returns one even with the last page: a page with fewer projects than asked for is
    /// the end.
    pub cursor: Option<String>,
    /// Projects that Neon could not search in time. If there are any, a search does not prove absence.
    pub unavailable_project_ids: Vec<String>,
}

/// A project: the container of branches, databases and computes.
///
/// A list of projects does not include their consumption: there the counters are 0.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its name, which need not be unique.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub name: String,
    /// Its region, such as `aws-us-east-2`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub region_id: String,
    /// Major version of Postgres; 0 if Neon does not say.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub pg_version: u64,
    /// The organization that owns it.
    #[serde(default)]
    pub org_id: Option<String>,
    /// Time of its creation, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub created_at: String,
    /// Time of its deletion, RFC 3339; in lists of recoverable projects.
    #[serde(default)]
    pub deleted_at: Option<String>,
    /// Time until which it can be recovered, RFC 3339; in lists of recoverable projects.
    #[serde(default)]
    pub recoverable_until: Option<String>,
    /// Its limits for one billing period.
    #[serde(
        default,
        rename = "settings",
        deserialize_with = "super::settings::quota_of"
    )]
    pub quota: Quota,
    /// Seconds in this billing period during which a compute was awake.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub active_time_seconds: u64,
    /// Seconds of CPU time used in this billing period.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub compute_time_seconds: u64,
    /// Bytes written in this billing period.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub written_data_bytes: u64,
    /// Bytes sent over the network in this billing period.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub data_transfer_bytes: u64,
    /// Start of the billing period, RFC 3339; `0001-01-01T00:00:00Z` until the first one begins.
    #[serde(default)]
    pub consumption_period_start: Option<String>,
    /// End of the billing period, RFC 3339; `0001-01-01T00:00:00Z` until the first one begins.
    #[serde(default)]
    pub consumption_period_end: Option<String>,
}

/// The answer to the creation of a project.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[non_exhaustive]
pub struct CreatedProject {
    /// The project.
    pub project: Project,
    /// Its default branch, without the annotations, which Neon does not repeat here.
    #[serde(default)]
    pub branch: Option<Branch>,
    /// Its connection details.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub connection_uris: Vec<ConnectionDetails>,
    /// Its computes.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub endpoints: Vec<Endpoint>,
    /// The operations that complete the creation.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub operations: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct ProjectAnswer {
    pub(in crate::neon) project: Project,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct ProjectsAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    projects: Vec<Project>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    unavailable_project_ids: Vec<String>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pagination: Pagination,
}

/// The pagination of all lists except branches.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Pagination {
    #[serde(default)]
    cursor: Option<String>,
}

impl Pagination {
    /// Returns the start of the next page, if there is one.
    pub(super) fn next(self) -> Option<String> {
        self.cursor.filter(|cursor| !cursor.is_empty())
    }
}

impl From<ProjectsAnswer> for ProjectsPage {
    fn from(answer: ProjectsAnswer) -> Self {
        Self {
            projects: answer.projects,
            cursor: answer.pagination.next(),
            unavailable_project_ids: answer.unavailable_project_ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
        let expected = json!({
            "name": "p", "branch": branch, "region_id": "aws-us-east-2", "pg_version": 17, "org_id": "org-a",
            "default_endpoint_settings": {
                "autoscaling_limit_min_cu": 0.25, "autoscaling_limit_max_cu": 2.0, "suspend_timeout_seconds": 60,
            },
            "settings": { "quota": { "active_time_seconds": 3600 } },
        });
        assert_eq!(full, json!({ "project": expected }));
    }

    #[test]
    fn an_update_of_nothing_says_nothing() {
        assert_eq!(UpdateProject::new().body(), json!({ "project": {} }));
    }
}
