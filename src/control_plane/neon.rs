//! Neon as a control plane: each tenant's database is a project of its own.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{ControlPlane, Database, Found, Order};
use crate::{
    catalog::Placement,
    model::{
        endpoint::{DEFAULT_SUSPEND_WINDOW, Endpoint, Login},
        error::{Error, ErrorKind, Stage},
        plan::Plan,
        secret::Secret,
    },
    neon::{self, Neon},
    sync::{
        progress::Progress,
        retry::{backoff, retry},
    },
};

/// The beginning of the name of each branch that is a copy.
const COPY: &str = "tenantry-rehearsal-";
/// Longest time to delete a copy that cannot be used.
const CLEAN_UP: Duration = Duration::from_secs(10);
/// Longest wait for the list of regions. Without an answer every region passes, and a wrong one fails at creation.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

impl ControlPlane for Neon {
    async fn check(&self, plan: &Plan, progress: &Progress) -> Result<(), Error> {
        let Some(wanted) = &plan.region else {
            return Ok(());
        };
        let in_time = progress.by(Instant::now() + CHECK_TIMEOUT);
        self.within(&in_time).check_region(wanted).await
    }

    async fn find(&self, name: &str, progress: &Progress) -> Result<Vec<Found>, Error> {
        let projects = self.within(progress).projects_named(name).await?;
        Ok(projects.into_iter().map(found).collect())
    }

    async fn list(&self, prefix: &str, progress: &Progress) -> Result<Vec<Found>, Error> {
        let mut projects = self.within(progress).projects_like(prefix).await?;
        projects.retain(|project| project.name.starts_with(prefix));
        Ok(projects.into_iter().map(found).collect())
    }

    async fn tags(
        &self,
        id: &str,
        progress: &Progress,
    ) -> Result<Option<BTreeMap<String, String>>, Error> {
        let branches = self.within(progress).list_project_branches(id).await;
        let branches = unless_gone(branches)?;
        // All branches are read: another one may have become the default since the tags were written.
        Ok(branches.map(|all| all.into_iter().flat_map(|it| it.annotations).collect()))
    }

    async fn create(&self, order: &Order, progress: &Progress) -> Result<Database, Error> {
        let mut project = neon::CreateProject::new(&order.name);
        project.annotations.clone_from(&order.tags);
        project.plan = order.plan.clone();
        let created = self.within(progress).create_project(&project).await?;
        let whole = |it: &&neon::ConnectionDetails| {
            let at = &it.connection_parameters;
            !at.host.is_empty() && !at.pooler_host.is_empty()
        };
        let Some(details) = created.connection_uris.iter().find(whole) else {
            let message =
                "neon created a project, but its answer does not say how to connect to it";
            return Err(Error::new(ErrorKind::ControlPlane, message));
        };
        let compute = created.endpoints.first();
        let window = compute.map_or(Some(DEFAULT_SUSPEND_WINDOW), neon::Endpoint::suspend_window);
        let at = &details.connection_parameters;
        let endpoint = Endpoint::neon(
            &at.host,
            &at.pooler_host,
            &at.database,
            &at.role,
            at.password.clone(),
        );
        let placement = Placement {
            branch: compute.map(|it| it.branch_id.clone()),
            endpoint: compute.map(|it| it.id.clone()),
            ..placement(&created.project)
        };
        Ok(Database::new(placement, endpoint.suspend_window(window)))
    }

    async fn ready(&self, id: &str, progress: &Progress) -> Result<(), Error> {
        let operations = self.within(progress).wait_for_operations(id).await?;
        // Only the creation of the project counts: a branch that was added later has the action `create_branch`.
        let essential = |operation: &&neon::Operation| operation.action == "create_timeline";
        match operations
            .iter()
            .filter(essential)
            .find(|operation| operation.has_failed())
        {
            None => Ok(()),
            Some(failed) => {
                let why = failed.error.as_deref().unwrap_or("no reason given");
                let why = neon::excerpt(why);
                let message = format!(
                    "neon failed to create project {id}: {} failed: {why}",
                    failed.action
                );
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }

    async fn database(
        &self,
        id: &str,
        login: Option<&Login>,
        progress: &Progress,
    ) -> Result<Option<Database>, Error> {
        let neon = self.within(progress);
        let Some(branches) = unless_gone(neon.list_project_branches(id).await)? else {
            return Ok(None);
        };
        let default = branches.into_iter().find(|branch| branch.default);
        let branch = default.ok_or_else(|| {
            let message = format!("neon project {id} has no default branch");
            Error::new(ErrorKind::Refused, message)
        })?;
        let endpoints = neon.list_project_endpoints(id).await?;
        let serves = |endpoint: &&neon::Endpoint| {
            endpoint.branch_id == branch.id && endpoint.kind == "read_write"
        };
        let compute = endpoints.iter().find(serves).ok_or_else(|| {
            let message = format!("neon project {id} has no compute that accepts writes; add one");
            Error::new(ErrorKind::Refused, message)
        })?;
        let login = login.map(|it| (it.database.as_str(), it.role.as_str()));
        let endpoint = neon.credentials(id, compute, login).await?;
        let placement = Placement {
            org: self.org_id().map(Into::into),
            branch: Some(branch.id),
            endpoint: Some(compute.id.clone()),
            region: Some(compute.region_id.clone()).filter(|region| !region.is_empty()),
            ..Placement::new(id)
        };
        Ok(Some(Database::new(placement, endpoint)))
    }

    async fn password(
        &self,
        placement: &Placement,
        login: &Login,
        progress: &Progress,
    ) -> Result<Option<Secret>, Error> {
        let (neon, project) = (self.within(progress), &placement.project);
        let Some(branch) = &placement.branch else {
            let found = ControlPlane::database(self, project, Some(login), progress).await?;
            return Ok(found.map(|it| it.endpoint.password));
        };
        let password = neon.get_project_branch_role_password(project, branch, &login.role);
        unless_gone(password.await)
    }

    async fn suspend(&self, placement: &Placement, progress: &Progress) -> Result<(), Error> {
        let (neon, project) = (self.within(progress), &placement.project);
        let Some(endpoint) = &placement.endpoint else {
            return Ok(());
        };
        let suspended = neon.suspend_project_endpoint(project, endpoint).await;
        if unless_gone(suspended)?.is_some() {
            unless_gone(neon.wait_for_operations(project).await)?;
        }
        Ok(())
    }

    async fn copy(
        &self,
        original: &Placement,
        login: &Login,
        lifetime: Duration,
        progress: &Progress,
    ) -> Result<Option<Database>, Error> {
        let (neon, project) = (self.within(progress), &original.project);
        let name = format!("{COPY}{}", uuid::Uuid::new_v4());
        let mut branch = neon::CreateBranch::new(name);
        branch.parent_id.clone_from(&original.branch);
        branch.expires_at = Some(SystemTime::now() + lifetime);
        let created = neon.create_project_branch(project, &branch).await;
        let Some(created) = unless_gone(created)? else {
            return Ok(None);
        };
        let placement = Placement {
            branch: Some(created.branch.id),
            endpoint: created.endpoints.first().map(|it| it.id.clone()),
            ..original.clone()
        };
        let reached = async {
            neon.wait_for_operations(project).await?;
            let compute = created.endpoints.first().ok_or_else(|| {
                let message = "neon created a branch without a compute";
                Error::new(ErrorKind::ControlPlane, message)
            })?;
            let login = Some((login.database.as_str(), login.role.as_str()));
            neon.credentials(project, compute, login).await
        };
        match reached.await {
            Ok(endpoint) => Ok(Some(Database::new(placement, endpoint))),
            Err(err) => {
                // Nobody knows of the branch but this call. If it stays, it deletes itself after `lifetime`.
                let in_time = Progress::new(Stage::Provision, CLEAN_UP);
                let _ = self.delete_copy(&placement, &in_time).await;
                Err(err)
            }
        }
    }

    async fn delete_copy(&self, copy: &Placement, progress: &Progress) -> Result<(), Error> {
        let (neon, project) = (self.within(progress), &copy.project);
        let Some(id) = &copy.branch else {
            return Ok(());
        };
        let Some(branch) = unless_gone(neon.get_project_branch(project, id).await)? else {
            return Ok(());
        };
        if branch.default || !branch.name.starts_with(COPY) {
            let message = "a branch is not deleted, because it is no copy of tenantry's";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        neon.delete_project_branch(project, id).await.map(drop)
    }

    async fn delete(&self, id: &str, progress: &Progress) -> Result<(), Error> {
        let neon = self.within(progress);
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(5));
        // A deletion is safe to repeat: a deleted project does not come back under its id by itself.
        retry(progress, waits, || async {
            if unless_gone(neon.delete_project(id).await)?.is_none() {
                return Ok(());
            }
            if unless_gone(neon.get_project(id).await)?.is_none() {
                return Ok(());
            }
            let message = format!("neon has deleted project {id}, but its api still returns it");
            Err(Error::new(ErrorKind::ControlPlane, message))
        })
        .await
    }

    async fn recover(&self, id: &str, progress: &Progress) -> Result<(), Error> {
        let neon = self.within(progress);
        if unless_gone(neon.get_project(id).await)?.is_some() {
            return Ok(());
        }
        match neon.recover_project(id).await {
            Err(err) if err.kind() == ErrorKind::ControlPlane => {
                progress.note(&err);
                // The recovery may have taken effect in spite of the error.
                let there = unless_gone(neon.get_project(id).await)?;
                there.map(drop).ok_or(err)
            }
            recovered => recovered.map(drop),
        }
    }
}

fn found(project: neon::Project) -> Found {
    let created_at = humantime::parse_rfc3339_weak(&project.created_at).ok();
    Found::new(project.id, project.name, created_at)
}

fn placement(project: &neon::Project) -> Placement {
    Placement {
        org: project.org_id.clone(),
        region: Some(project.region_id.clone()).filter(|region| !region.is_empty()),
        ..Placement::new(&project.id)
    }
}

/// Returns the answer, with `None` in place of a `NotFound` error.
fn unless_gone<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
