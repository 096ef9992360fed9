//! The management API: Neon's paths, statuses and bodies.

pub(in crate::emulator) mod answers;
pub(in crate::emulator) mod bodies;
mod branches;
pub(in crate::emulator) mod control;
mod endpoints;
pub(in crate::emulator) mod fault;
pub(in crate::emulator) mod limit;
mod operations;
mod organizations;
mod projects;
pub(in crate::emulator) mod requests;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header::AUTHORIZATION},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::world::{
    Hindrance, World,
    project::{Branch, Endpoint, Project},
};
use crate::model::secret::Secret;

/// The path prefix of the whole API.
pub(super) const BASE: &str = "/api/v2";

/// The header that carries Neon's id of a request.
const REQUEST_ID: &str = "x-neon-ret-request-id";

#[derive(Clone)]
struct Api {
    world: Arc<World>,
    key: Secret,
}

/// Returns the API of `world` for requests that carry `key`, and the emulator's own paths.
pub(super) fn router(world: Arc<World>, key: Secret, proxy: Arc<super::proxy::Proxy>) -> Router {
    let control = control::router(Arc::clone(&world), proxy);
    let api = Api { world, key };
    let mut routes = Router::new();
    for (path, methods) in paths() {
        routes = routes.route(path, methods);
    }
    let routes = routes
        .fallback(|| async { Refused::not_found("this path") })
        .method_not_allowed_fallback(|| async { Refused::not_found("this path") })
        .layer(middleware::from_fn_with_state(api.clone(), faulty))
        .with_state(api.clone());
    Router::new()
        .nest(BASE, routes)
        .nest("/_emulator", control)
        .layer(middleware::from_fn_with_state(api, authorized))
}

/// Returns every path with its methods.
fn paths() -> impl IntoIterator<Item = (&'static str, MethodRouter<Api>)> {
    let project = get(projects::get_one)
        .patch(projects::update)
        .delete(projects::delete);
    let branch = get(branches::get_one).delete(branches::delete);
    let endpoint = get(endpoints::get_one).patch(endpoints::update);
    [
        ("/regions", get(organizations::regions)),
        ("/projects", post(projects::create).get(projects::list)),
        ("/projects/{project}", project),
        ("/projects/{project}/recover", post(projects::recover)),
        (
            "/projects/{project}/connection_uri",
            get(projects::connection_uri),
        ),
        (
            "/projects/{project}/branches",
            post(branches::create).get(branches::list),
        ),
        ("/projects/{project}/branches/{branch}", branch),
        (
            "/projects/{project}/branches/{branch}/endpoints",
            get(endpoints::list_of_branch),
        ),
        (
            "/projects/{project}/branches/{branch}/roles/{role}/reveal_password",
            get(branches::reveal_password),
        ),
        (
            "/projects/{project}/branches/{branch}/roles/{role}/reset_password",
            post(branches::reset_password),
        ),
        ("/projects/{project}/endpoints", get(endpoints::list)),
        ("/projects/{project}/endpoints/{endpoint}", endpoint),
        (
            "/projects/{project}/endpoints/{endpoint}/{action}",
            post(endpoints::act),
        ),
        ("/projects/{project}/operations", get(operations::list)),
        (
            "/projects/{project}/operations/{operation}",
            get(operations::get_one),
        ),
        (
            "/organizations/{organization}/projects/transfer",
            post(organizations::transfer),
        ),
        (
            "/consumption_history/v2/projects",
            get(organizations::consumption),
        ),
    ]
}

async fn authorized(
    State(api): State<Api>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let answer = if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(api.key.expose())
    {
        next.run(request).await
    } else {
        let text = "supplied credentials do not pass authentication";
        Refused::new(StatusCode::UNAUTHORIZED, text).into_response()
    };
    identified(answer)
}

/// Adds a request id, which every answer of Neon's has.
fn identified(mut answer: Response) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    if let (false, Ok(id)) = (answer.headers().contains_key(REQUEST_ID), id.parse()) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// Counts the request, applies the rate limits if there are any, and then the fault that waits for it.
async fn faulty(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = route(&method, &path);
    api.world.requests.count(&route);
    let limit = api.world.api_limit.as_ref();
    if limit.is_some_and(|limit| !limit.passes(route)) {
        return Refused::new(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded").into_response();
    }
    match api.world.api_faults.meet(&format!("{method} {path}")) {
        None => next.run(request).await,
        Some(fault) => match fault.instead() {
            Some(answer) => answer,
            None => fault.afterwards(next.run(request).await).await,
        },
    }
}

/// Returns the route of a request, such as `GET /projects/{id}/endpoints` for any project. Every other part of a path
/// is an id.
fn route(method: &Method, path: &str) -> String {
    let parts = path.split('/').enumerate();
    let named: Vec<_> = parts
        .map(|(place, part)| {
            if place % 2 == 0 && place > 0 {
                "{id}"
            } else {
                part
            }
        })
        .collect();
    format!("{method} {}", named.join("/"))
}

/// An error answer: status, code and text.
pub(super) struct Refused(StatusCode, &'static str, String);

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, "", text.into())
    }

    fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} not found"))
    }

    pub(super) fn invalid(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("invalid request: {why}"))
    }
}

impl From<Hindrance> for Refused {
    fn from(hindrance: Hindrance) -> Self {
        match hindrance {
            Hindrance::Missing => Self::not_found("project"),
            Hindrance::Locked => Self::new(
                StatusCode::LOCKED,
                "project already has running conflicting operations, scheduling of new ones is prohibited",
            ),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let request_id = uuid::Uuid::new_v4().to_string();
        let body = json!({ "request_id": request_id, "code": self.1, "message": self.2 });
        (self.0, [(REQUEST_ID, request_id)], Json(body)).into_response()
    }
}

type Answer = Result<Json<Value>, Refused>;
type Created = Result<(StatusCode, Json<Value>), Refused>;

impl Api {
    fn project(&self, id: &str) -> Result<Project, Refused> {
        self.world
            .project(id)
            .ok_or_else(|| Refused::not_found("project"))
    }

    fn branch(&self, project: &str, branch: &str) -> Result<(Project, Branch), Refused> {
        let project = self.project(project)?;
        let found = project.branch(branch).cloned();
        let branch = found.ok_or_else(|| Refused::not_found("branch"))?;
        Ok((project, branch))
    }

    fn endpoint(&self, project: &str, endpoint: &str) -> Result<(Project, Endpoint), Refused> {
        let project = self.project(project)?;
        let found = project.endpoint(endpoint).cloned();
        let endpoint = found.ok_or_else(|| Refused::not_found("endpoint"))?;
        Ok((project, endpoint))
    }
}

/// Decodes the body of a request.
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|err| Refused::invalid(&format!("decode application/json: {err}")))
}

/// Returns the items after the one that `cursor` names, or all items if there is none.
fn after<T>(all: Vec<T>, cursor: Option<&str>, id: impl Fn(&T) -> &str) -> Vec<T> {
    let place = cursor.and_then(|cursor| all.iter().position(|it| id(it) == cursor));
    all.into_iter()
        .skip(place.map_or(0, |place| place + 1))
        .collect()
}
