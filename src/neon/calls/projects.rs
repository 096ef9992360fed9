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

/// Most projects that the API puts on one page.
const PAGE: u16 = 400;

impl Neon {
    /// Creates a project with a branch, a database, a role and a compute.
    ///
    /// Calls `POST /projects` (`createProject`). The project can be used when its operations have ended
    /// ([`wait_for_operations`](Self::wait_for_operations)). Names are neither unique nor keys: the same call again
    /// creates a second project.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] means that it is unknown whether the project was created: search for its name before
    /// another attempt. [`ErrorKind::QuotaExhausted`] if the plan allows no more projects.
    pub async fn create_project(&self, project: &CreateProject) -> Result<CreatedProject, Error> {
        let org_id = self.org_id();
        let call = Call::new(&CREATE, &[]).body(project.body(org_id.as_deref()));
        self.call(call).await
    }

    /// Returns a project with its consumption. Does not wake its computes.
    ///
    /// Calls `GET /projects/{project_id}` (`getProject`).
    pub async fn get_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&GET, &[project_id])).await?;
        Ok(answer.project)
    }

    /// Returns one page of the organization's projects.
    ///
    /// Calls `GET /projects` (`listProjects`). [`projects_named`](Self::projects_named) reads all pages by itself.
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

    /// Returns the projects whose name is exactly `name`, oldest first.
    ///
    /// Calls `GET /projects` for every page.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] also if Neon could not search all projects: then absence is not proved.
    pub async fn projects_named(&self, name: &str) -> Result<Vec<Project>, Error> {
        let mut found = self.projects_like(name).await?;
        found.retain(|project| project.name == name);
        found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(found)
    }

    /// Returns the projects that have `part` in their name or id.
    ///
    /// Calls `GET /projects` for every page.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] also if Neon could not search all projects: then absence is not proved.
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
                    "neon could not search all projects in time, so the project may still exist";
                return Err(Error::new(ErrorKind::ControlPlane, message));
            }
            // Neon returns a cursor even with the last page, so a short page ends the list.
            let short = page.projects.len() < usize::from(PAGE);
            let last = short || page.cursor.is_none() || page.cursor == wanted.cursor;
            found.extend(page.projects);
            wanted.cursor = page.cursor;
            if last {
                return Ok(found);
            }
        }
    }

    /// Changes a project's name, its limits, and the settings of computes that are created from now on.
    /// [`update_project_endpoint`](Self::update_project_endpoint) changes the existing computes.
    ///
    /// Calls `PATCH /projects/{project_id}` (`updateProject`). A quota is sent whole: it is not documented whether Neon
    /// merges a part of a quota into the old one.
    pub async fn update_project(
        &self,
        project_id: &str,
        update: &UpdateProject,
    ) -> Result<Project, Error> {
        let call = Call::new(&UPDATE, &[project_id]).body(update.body());
        let answer: ProjectAnswer = self.call(call).await?;
        Ok(answer.project)
    }

    /// Deletes a project. Neon can recover it for seven days.
    ///
    /// Calls `DELETE /projects/{project_id}` (`deleteProject`).
    pub async fn delete_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&DELETE, &[project_id])).await?;
        Ok(answer.project)
    }

    /// Recovers a deleted project, within seven days of its deletion.
    ///
    /// Calls `POST /projects/{project_id}/recover` (`recoverProject`). [`ListProjects::recoverable`] lists the projects
    /// that can be recovered.
    pub async fn recover_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self.call(Call::new(&RECOVER, &[project_id])).await?;
        Ok(answer.project)
    }

    /// Transfers 1 to 400 projects to another organization, such as one with another plan: all of them, or none.
    ///
    /// Calls `POST /organizations/{source_org_id}/projects/transfer` (`transferProjectsFromOrgToOrg`).
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the key is not the personal key of a member of both organizations, if the
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
