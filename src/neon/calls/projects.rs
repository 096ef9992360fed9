//! The calls about projects.

use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::json;

use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{
        CreateProject, CreatedProject, ListProjects, Project, ProjectAnswer, ProjectsAnswer,
        ProjectsPage, UpdateProject,
    },
};
use crate::{
    model::error::{Error, ErrorKind},
    sync::retry::{backoff, retry},
};

static CREATE: Route = Route::post("createProject", "/projects");
static LIST: Route = Route::get("listProjects", "/projects");
static GET: Route = Route::get("getProject", "/projects/{project_id}");
static UPDATE: Route = Route::patch("updateProject", "/projects/{project_id}");
static DELETE: Route = Route::delete("deleteProject", "/projects/{project_id}");
static RECOVER: Route = Route::post("recoverProject", "/projects/{project_id}/recover");
static TRANSFER: Route = Route::post(
    "transferProjectsFromOrgToOrg",
    "/organizations/{source_org_id}/projects/transfer",
);

/// Most projects on one page; the API takes no more.
const PAGE: u16 = 400;

impl Neon {
    /// `POST /projects` (`createProject`): a project with a branch, a database, a role and a compute.
    ///
    /// It can be used when its operations have ended ([`wait_for_operations`](Self::wait_for_operations)). Neon keeps
    /// names neither unique nor as keys: the same call again is a second project.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] means that it is unknown whether the project was created: look for its name before
    /// another attempt. [`ErrorKind::QuotaExhausted`] if the plan allows no more projects.
    pub async fn create_project(&self, project: &CreateProject) -> Result<CreatedProject, Error> {
        let org_id = self.org_id();
        let call = Call::new(&CREATE, &[]).body(project.body(org_id.as_deref()));
        self.call(call).await
    }

    /// `GET /projects/{project_id}` (`getProject`): a project, with what it consumed. Does not wake its computes.
    pub async fn get_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&GET, &[project_id])).await?;
        Ok(answer.project)
    }

    /// `GET /projects` (`listProjects`): one page of the organization's projects.
    ///
    /// [`projects_named`](Self::projects_named) goes through the pages by itself.
    pub async fn list_projects(&self, list: &ListProjects) -> Result<ProjectsPage, Error> {
        let call = Call::new(&LIST, &[])
            .query("search", list.search.as_deref().map(Into::into))
            .query("limit", list.limit.map(|limit| limit.to_string().into()))
            .query("recoverable", list.recoverable.then(|| "true".into()))
            .query("org_id", self.org_id())
            .query("cursor", list.cursor.as_deref().map(Into::into));
        let answer: ProjectsAnswer = self.call(call).await?;
        Ok(answer.into())
    }

    /// `GET /projects`, every page of it: the projects whose name is exactly `name`, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] also if Neon could not look at all projects: then absence is not proved.
    pub async fn projects_named(&self, name: &str) -> Result<Vec<Project>, Error> {
        let mut found = self.projects_like(name).await?;
        found.retain(|project| project.name == name);
        found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(found)
    }

    /// `GET /projects`, every page of it: the projects in whose name or id `part` is found.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] also if Neon could not look at all projects: then absence is not proved.
    pub async fn projects_like(&self, part: &str) -> Result<Vec<Project>, Error> {
        let progress = self.progress();
        let neon = self.within(&progress);
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(5));
        retry(&progress, waits, || neon.search(part)).await
    }

    async fn search(&self, name: &str) -> Result<Vec<Project>, Error> {
        let mut found = Vec::new();
        let mut wanted = ListProjects::new().search(name).limit(PAGE);
        loop {
            let page = self.list_projects(&wanted).await?;
            if !page.unavailable_project_ids.is_empty() {
                let message =
                    "neon could not search all projects in time, so absence is not proved";
                return Err(Error::new(ErrorKind::ControlPlane, message));
            }
            // A cursor comes even with the last page: a short page is what ends the list.
            let short = page.projects.len() < usize::from(PAGE);
            let last = short || page.cursor.is_none() || page.cursor == wanted.cursor;
            found.extend(page.projects);
            wanted.cursor = page.cursor;
            if last {
                return Ok(found);
            }
        }
    }

    /// `PATCH /projects/{project_id}` (`updateProject`): changes a project's name, its limits, and what computes get
    /// that are created from now on. Those that exist are changed with
    /// [`update_project_endpoint`](Self::update_project_endpoint).
    ///
    /// A quota is sent whole, because whether Neon merges a part of it into the old one is not documented.
    pub async fn update_project(
        &self,
        project_id: &str,
        update: &UpdateProject,
    ) -> Result<Project, Error> {
        let call = Call::new(&UPDATE, &[project_id]).body(update.body());
        let answer: ProjectAnswer = self.call(call).await?;
        Ok(answer.project)
    }

    /// `DELETE /projects/{project_id}` (`deleteProject`). Neon can recover it for seven days.
    pub async fn delete_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&DELETE, &[project_id])).await?;
        Ok(answer.project)
    }

    /// `POST /projects/{project_id}/recover` (`recoverProject`): brings a deleted project back, within seven days.
    ///
    /// [`ListProjects::recoverable`] finds those that can be.
    pub async fn recover_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&RECOVER, &[project_id])).await?;
        Ok(answer.project)
    }

    /// `POST /organizations/{source_org_id}/projects/transfer` (`transferProjectsFromOrgToOrg`): gives 1 to 400 projects
    /// to another organization, such as one with another plan. All of them, or none.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the key is not a personal one of somebody who belongs to both organizations, if the
    /// destination's plan does not allow the projects (the text names the limits), or if a project is tied to GitHub or
    /// Vercel (the text names the projects).
    pub async fn transfer_projects_from_org_to_org(
        &self,
        source_org_id: &str,
        destination_org_id: &str,
        project_ids: &[&str],
    ) -> Result<(), Error> {
        let body = json!({ "destination_org_id": destination_org_id, "project_ids": project_ids });
        let call = Call::new(&TRANSFER, &[source_org_id]).body(body);
        self.call::<IgnoredAny>(call).await?;
        Ok(())
    }
}
