//! What tenantry asks of whoever creates databases.
//!
//! A seam, so that something else than Neon can be put there. The trait knows no project and no branch: those are
//! Neon's own nouns, and only the implementation for [`Neon`] at the end turns them into ours.

use std::{collections::BTreeMap, future::Future, pin::Pin};

use crate::{
    endpoint::{DEFAULT_SUSPEND_WINDOW, Endpoint},
    error::{Error, ErrorKind},
    neon::{self, Neon},
    plan::Plan,
    retry::Progress,
};

/// Creates databases and finds them again.
///
/// Every method works until `progress.deadline()` at the longest, repeats by itself what can safely be repeated, and
/// notes failures that it retries with [`Progress::note`].
pub trait ControlPlane: Send + Sync + 'static {
    /// All databases whose name is exactly `name`, oldest first. An error if it is not certain that they are all.
    fn find(
        &self,
        name: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Vec<Found>, Error>> + Send;

    /// Creates a database, and never two for one call.
    ///
    /// An error of a [transient](ErrorKind::is_transient) kind means that it is unknown whether one was created: it is
    /// then looked for, and none is created again until it must have turned up. An error of any other kind means that
    /// none was, so that the next access orders one again. [`ErrorKind::Timeout`] is such a kind: it is for time that ran
    /// out before anything could be ordered, or after nothing but refusals.
    fn create(
        &self,
        order: &Order,
        progress: &Progress,
    ) -> impl Future<Output = Result<Created, Error>> + Send;

    /// Waits until the database takes connections.
    fn ready(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Where the database lives, credential included.
    fn endpoint(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Endpoint, Error>> + Send;
}

/// A database to be created.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Order {
    /// Its name, which nobody else uses.
    pub name: String,
    /// What to write on it, so that it is known again.
    pub tags: BTreeMap<String, String>,
    /// What it gets.
    pub plan: Plan,
}

impl Order {
    pub(crate) fn new(name: String, tags: BTreeMap<String, String>, plan: Plan) -> Self {
        Self { name, tags, plan }
    }
}

/// A database that was just created.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Created {
    /// The control plane's own id of it.
    pub id: String,
    /// Where it lives.
    pub endpoint: Endpoint,
}

impl Created {
    /// For implementors.
    pub fn new(id: impl Into<String>, endpoint: Endpoint) -> Self {
        Self {
            id: id.into(),
            endpoint,
        }
    }
}

/// A database that was found by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// The control plane's own id of it.
    pub id: String,
    /// What is written on it.
    pub tags: BTreeMap<String, String>,
}

impl Found {
    /// For implementors.
    pub fn new(id: impl Into<String>, tags: BTreeMap<String, String>) -> Self {
        Self {
            id: id.into(),
            tags,
        }
    }
}

/// Neon: a tenant's database is a project of its own.
impl ControlPlane for Neon {
    async fn find(&self, name: &str, progress: &Progress) -> Result<Vec<Found>, Error> {
        let neon = self.within(progress);
        let mut found = Vec::new();
        for project in neon.projects_named(name).await? {
            // Of all branches: the default one may have changed since.
            let branches = neon.list_project_branches(&project.id).await?;
            let tags = branches
                .into_iter()
                .flat_map(|branch| branch.annotations)
                .collect();
            found.push(Found::new(project.id, tags));
        }
        Ok(found)
    }

    async fn create(&self, order: &Order, progress: &Progress) -> Result<Created, Error> {
        let mut project = neon::CreateProject::new(&order.name);
        project.annotations.clone_from(&order.tags);
        project.plan = order.plan.clone();
        let created = self.within(progress).create_project(&project).await?;
        let whole = |it: &&neon::ConnectionDetails| {
            let at = &it.connection_parameters;
            !at.host.is_empty() && !at.pooler_host.is_empty()
        };
        let Some(details) = created.connection_uris.iter().find(whole) else {
            let message = "neon created a project and did not say how to connect to it";
            return Err(Error::new(ErrorKind::ControlPlane, message));
        };
        let window = created
            .endpoints
            .first()
            .map_or(Some(DEFAULT_SUSPEND_WINDOW), neon::Endpoint::suspend_window);
        let at = &details.connection_parameters;
        let endpoint = Endpoint::neon(
            &at.host,
            &at.pooler_host,
            &at.database,
            &at.role,
            at.password.clone(),
        );
        Ok(Created::new(
            created.project.id,
            endpoint.suspend_window(window),
        ))
    }

    async fn ready(&self, id: &str, progress: &Progress) -> Result<(), Error> {
        let operations = self.within(progress).wait_for_operations(id).await?;
        // The project's own: a branch that somebody made of it later has `create_branch`.
        let essential = |operation: &&neon::Operation| operation.action == "create_timeline";
        match operations
            .iter()
            .filter(essential)
            .find(|operation| operation.has_failed())
        {
            None => Ok(()),
            Some(failed) => {
                let why = failed.error.as_deref().unwrap_or("no reason given");
                let why = neon::repeatable(why);
                let message = format!(
                    "neon failed to create project {id}: {} failed: {why}",
                    failed.action
                );
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }

    async fn endpoint(&self, id: &str, progress: &Progress) -> Result<Endpoint, Error> {
        let neon = self.within(progress);
        let branch = default_branch(&neon, id).await?;
        let endpoints = neon.list_project_endpoints(id).await?;
        let serves = |endpoint: &&neon::Endpoint| {
            endpoint.branch_id == branch.id && endpoint.kind == "read_write"
        };
        let compute = endpoints.iter().find(serves).ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                format!("neon project {id} has no compute that takes writes; add one"),
            )
        })?;
        neon.credentials(id, compute).await
    }
}

async fn default_branch(neon: &Neon, project_id: &str) -> Result<neon::Branch, Error> {
    let branches = neon.list_project_branches(project_id).await?;
    branches
        .into_iter()
        .find(|branch| branch.default)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                format!("neon project {project_id} has no default branch"),
            )
        })
}

type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// [`ControlPlane`] with its type erased.
pub(crate) trait AnyControlPlane: Send + Sync {
    fn find<'a>(&'a self, name: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>>;
    fn create<'a>(&'a self, order: &'a Order, progress: &'a Progress) -> Reply<'a, Created>;
    fn ready<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()>;
    fn endpoint<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, Endpoint>;
}

impl<C: ControlPlane> AnyControlPlane for C {
    fn find<'a>(&'a self, name: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>> {
        Box::pin(ControlPlane::find(self, name, progress))
    }

    fn create<'a>(&'a self, order: &'a Order, progress: &'a Progress) -> Reply<'a, Created> {
        Box::pin(ControlPlane::create(self, order, progress))
    }

    fn ready<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::ready(self, id, progress))
    }

    fn endpoint<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, Endpoint> {
        Box::pin(ControlPlane::endpoint(self, id, progress))
    }
}
