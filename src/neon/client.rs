//! One method for each call of the API.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use percent_encoding::percent_decode_str;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::{
    builder::NeonBuilder,
    limiter::Limiter,
    refusal::Refusal,
    wire::{
        Annotation, Branch, BranchesAnswer, ConnectionUriAnswer, CreateProject, CreatedProject,
        DATABASE, Endpoint, EndpointAnswer, EndpointsAnswer, Operation, OperationAnswer,
        OperationsAnswer, Project, ProjectAnswer, ProjectsPage, ROLE,
    },
};
use crate::{
    endpoint,
    error::{Error, ErrorKind, Stage},
    retry::{Progress, backoff, retry},
    secret::Secret,
};

/// Most projects on one page; the API takes no more.
const PAGE: usize = 400;

/// A client of Neon's management API.
///
/// Every call ends by its deadline. A call that was refused for now (423, 429, 503) is repeated until then, and so is a
/// call that changes nothing after any fault of the transport; a call that changes something and whose outcome is
/// unknown is never repeated. Calls wait for their turn under Neon's rate limit, clones of a client together.
///
/// ```no_run
/// use tenantry::Neon;
///
/// # #[tokio::main] async fn main() -> Result<(), tenantry::BoxError> {
/// let neon = Neon::builder(std::env::var("NEON_API_KEY")?).org_id("org-cool-dew-123").build()?;
/// for project in neon.projects_named("production-acme-0123").await? {
///     println!("{} was created {}", project.id, project.created_at);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Neon {
    inner: Arc<Inner>,
    /// The work that calls belong to, if they do not stand for themselves.
    progress: Option<Progress>,
}

pub(super) struct Inner {
    pub(super) http: reqwest::Client,
    pub(super) base: Url,
    pub(super) key: Secret,
    pub(super) org_id: Option<String>,
    pub(super) request_timeout: Duration,
    pub(super) call_timeout: Duration,
    pub(super) limiter: Limiter,
}

impl Neon {
    pub(super) fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
            progress: None,
        }
    }

    /// A client that sends `api_key`.
    pub fn builder(api_key: impl Into<Secret>) -> NeonBuilder {
        NeonBuilder::new(api_key.into())
    }

    /// This client, with the deadline of a larger piece of work in place of its own.
    #[must_use]
    pub fn within(&self, progress: &Progress) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            progress: Some(progress.clone()),
        }
    }

    /// `POST /projects`.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] means that it is unknown whether the project was created.
    pub async fn create_project(&self, project: &CreateProject) -> Result<CreatedProject, Error> {
        let body = project.body(self.inner.org_id.as_deref());
        self.call(Method::POST, &["projects"], &[], Some(&body))
            .await
    }

    /// `GET /projects/{project_id}`.
    pub async fn get_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self
            .call(Method::GET, &["projects", project_id], &[], None)
            .await?;
        Ok(answer.project)
    }

    /// `GET /projects`, every page of it: the projects whose name is exactly `name`, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] also if Neon could not look at all projects: then absence is not proved.
    pub async fn projects_named(&self, name: &str) -> Result<Vec<Project>, Error> {
        let progress = self.progress();
        let neon = self.within(&progress);
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(5));
        let mut found = retry(&progress, waits, || neon.search(name)).await?;
        found.retain(|project| project.name == name); // the search matches parts of names, and ids
        found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(found)
    }

    async fn search(&self, name: &str) -> Result<Vec<Project>, Error> {
        let mut found = Vec::new();
        let (mut cursor, limit) = (None, PAGE.to_string());
        loop {
            let mut query = vec![("search", name), ("limit", limit.as_str())];
            query.extend(self.inner.org_id.as_deref().map(|org| ("org_id", org)));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: ProjectsPage = self.call(Method::GET, &["projects"], &query, None).await?;
            if !page.unavailable_project_ids.is_empty() {
                let message =
                    "neon could not search all projects in time, so absence is not proved";
                return Err(Error::new(ErrorKind::ControlPlane, message));
            }
            // A cursor comes even with the last page: a short page is what ends the list.
            let last = page.projects.len() < PAGE;
            found.extend(page.projects);
            cursor = page.pagination.and_then(|pagination| pagination.cursor);
            if last || cursor.is_none() {
                return Ok(found);
            }
        }
    }

    /// `DELETE /projects/{project_id}`. Neon can recover it for seven days.
    pub async fn delete_project(&self, project_id: &str) -> Result<Project, Error> {
        let answer: ProjectAnswer = self
            .call(Method::DELETE, &["projects", project_id], &[], None)
            .await?;
        Ok(answer.project)
    }

    /// `GET /projects/{project_id}/connection_uri`: the URI of a role at a database of an endpoint, password included.
    pub async fn connection_uri(
        &self,
        project_id: &str,
        endpoint_id: &str,
        database: &str,
        role: &str,
        pooled: bool,
    ) -> Result<Secret, Error> {
        let pooled = if pooled { "true" } else { "false" };
        let query = [
            ("endpoint_id", endpoint_id),
            ("database_name", database),
            ("role_name", role),
            ("pooled", pooled),
        ];
        let path = ["projects", project_id, "connection_uri"];
        let answer: ConnectionUriAnswer = self.call(Method::GET, &path, &query, None).await?;
        Ok(answer.uri)
    }

    /// Where tenantry's own role logs in at `compute`, password included.
    pub(crate) async fn credentials(
        &self,
        project_id: &str,
        compute: &Endpoint,
    ) -> Result<endpoint::Endpoint, Error> {
        let uri = self
            .connection_uri(project_id, &compute.id, DATABASE, ROLE, true)
            .await?;
        let unreadable = || {
            Error::new(
                ErrorKind::ControlPlane,
                "neon's connection uri is not as described",
            )
        };
        let uri = Url::parse(uri.expose()).map_err(|_| unreadable())?;
        let password = uri.password().and_then(decoded).ok_or_else(unreadable)?;
        let pooled_host = uri.host_str().ok_or_else(unreadable)?;
        let endpoint =
            endpoint::Endpoint::neon(&compute.host, pooled_host, DATABASE, ROLE, password);
        Ok(endpoint.suspend_window(compute.suspend_window()))
    }

    /// `GET /projects/{project_id}/branches`: the branches, each with its annotations.
    pub async fn list_branches(&self, project_id: &str) -> Result<Vec<Branch>, Error> {
        let path = ["projects", project_id, "branches"];
        let BranchesAnswer {
            branches,
            mut annotations,
        } = self
            .call(Method::GET, &path, &[("limit", "10000")], None)
            .await?;
        let annotated = branches.into_iter().map(|branch| {
            let noted = annotations
                .remove(&branch.id)
                .map(|Annotation { value }| value);
            Branch {
                annotations: noted.unwrap_or_else(BTreeMap::new),
                ..branch
            }
        });
        Ok(annotated.collect())
    }

    /// `GET /projects/{project_id}/endpoints`.
    pub async fn list_endpoints(&self, project_id: &str) -> Result<Vec<Endpoint>, Error> {
        let answer: EndpointsAnswer = self
            .call(
                Method::GET,
                &["projects", project_id, "endpoints"],
                &[],
                None,
            )
            .await?;
        Ok(answer.endpoints)
    }

    /// `GET /projects/{project_id}/endpoints/{endpoint_id}`. Does not wake it.
    pub async fn get_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let path = ["projects", project_id, "endpoints", endpoint_id];
        let answer: EndpointAnswer = self.call(Method::GET, &path, &[], None).await?;
        Ok(answer.endpoint)
    }

    /// `POST /projects/{project_id}/endpoints/{endpoint_id}/start`. It is awake when the operations have ended.
    pub async fn start_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let path = ["projects", project_id, "endpoints", endpoint_id, "start"];
        let answer: EndpointAnswer = self.call(Method::POST, &path, &[], None).await?;
        Ok(answer.endpoint)
    }

    /// `POST /projects/{project_id}/endpoints/{endpoint_id}/suspend`. It is asleep when the operations have ended.
    pub async fn suspend_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let path = ["projects", project_id, "endpoints", endpoint_id, "suspend"];
        let answer: EndpointAnswer = self.call(Method::POST, &path, &[], None).await?;
        Ok(answer.endpoint)
    }

    /// `GET /projects/{project_id}/operations`: the newest ten.
    pub async fn list_operations(&self, project_id: &str) -> Result<Vec<Operation>, Error> {
        let path = ["projects", project_id, "operations"];
        let answer: OperationsAnswer = self
            .call(Method::GET, &path, &[("limit", "10")], None)
            .await?;
        Ok(answer.operations)
    }

    /// `GET /projects/{project_id}/operations/{operation_id}`.
    pub async fn get_operation(
        &self,
        project_id: &str,
        operation_id: &str,
    ) -> Result<Operation, Error> {
        let path = ["projects", project_id, "operations", operation_id];
        let answer: OperationAnswer = self.call(Method::GET, &path, &[], None).await?;
        Ok(answer.operation)
    }

    /// Waits until none of the project's newest operations goes on, and returns them.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn wait_for_operations(&self, project_id: &str) -> Result<Vec<Operation>, Error> {
        let progress = self.progress();
        let neon = self.within(&progress);
        // One request covers all operations of the project. The waits grow slowly, so that little time is lost at the
        // end, and stay far below the API's rate limit.
        let grow = |wait: &Duration| Some((*wait * 3 / 2).min(Duration::from_secs(1)));
        let waits = std::iter::successors(Some(Duration::from_millis(100)), grow);
        retry(&progress, waits, || async {
            let operations = neon.list_operations(project_id).await?;
            match operations.iter().find(|operation| operation.is_pending()) {
                Some(pending) => {
                    let message =
                        format!("project {project_id}: operation {} goes on", pending.action);
                    Err(Error::new(ErrorKind::Locked, message))
                }
                None => Ok(operations),
            }
        })
        .await
    }

    /// Sends a call until it succeeds, is refused, or must not be repeated.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<T, Error> {
        let url = self.url(path)?;
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(10));
        let (method, url, progress) = (&method, &url, &self.progress());
        let answer = retry(progress, waits, || async move {
            self.inner.limiter.pass(progress).await?;
            let limit = self.inner.request_timeout.min(progress.remaining());
            match self.send(method, url, query, body, limit).await {
                Ok(answer) => Ok(Ok(answer)),
                Err(refusal) if refusal.may_repeat(method) => Err(refusal.error),
                Err(refusal) => Ok(Err(refusal.error)),
            }
        });
        answer.await?
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: &Method,
        url: &Url,
        query: &[(&str, &str)],
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<T, Refusal> {
        let Inner { http, key, .. } = &*self.inner;
        let mut request = http
            .request(method.clone(), url.clone())
            .bearer_auth(key.expose())
            .timeout(limit);
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(Refusal::transport)?;
        let status = response.status();
        tracing::debug!(%method, path = url.path(), status = status.as_u16(), "neon api");
        if !status.is_success() {
            return Err(Refusal::answer(response).await);
        }
        let body = response.bytes().await.map_err(Refusal::transport)?;
        serde_json::from_slice(&body).map_err(|err| Refusal::unreadable(status, &err))
    }

    /// The URL of a path whose every part is what Neon's ids look like: an empty or strange one would call something
    /// else.
    fn url(&self, path: &[&str]) -> Result<Url, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if let Some(odd) = path
            .iter()
            .find(|part| part.is_empty() || part.len() > 60 || !part.bytes().all(plain))
        {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("{odd:?} is not an id of neon's"),
            ));
        }
        let mut url = self.inner.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        Ok(url)
    }

    fn progress(&self) -> Progress {
        self.progress
            .clone()
            .unwrap_or_else(|| Progress::new(Stage::Provision, self.inner.call_timeout))
    }
}

/// A part of a URI as it was before it was written into one.
fn decoded(part: &str) -> Option<Secret> {
    percent_decode_str(part)
        .decode_utf8()
        .ok()
        .map(|plain| Secret::new(plain.into_owned()))
}

impl fmt::Debug for Neon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neon")
            .field("host", &self.inner.base.host_str())
            .finish_non_exhaustive()
    }
}
