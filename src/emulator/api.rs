//! The management API: Neon's paths, statuses and bodies for what the router uses.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answers,
    contents::Contents,
    control,
    create::CreateBody,
    world::{Project, World},
};
use crate::secret::Secret;

/// The path below which everything is.
pub(super) const BASE: &str = "/api/v2";
/// Most projects on a page.
const LONGEST_PAGE: usize = 400;

#[derive(Clone)]
struct Api {
    world: Arc<World>,
    key: Secret,
}

/// The API of `world` for bearers of `key`.
pub(super) fn router(world: Arc<World>, key: Secret) -> Router {
    let api = Api { world, key };
    let project = "/projects/{project}";
    let routes = Router::new()
        .route("/projects", post(create_project).get(list_projects))
        .route(project, get(get_project).delete(delete_project))
        .route(&format!("{project}/connection_uri"), get(connection_uri))
        .route(&format!("{project}/branches"), get(list_branches))
        .route(&format!("{project}/branches/{{branch}}"), get(get_branch))
        .route(&format!("{project}/endpoints"), get(list_endpoints))
        .route(
            &format!("{project}/endpoints/{{endpoint}}"),
            get(get_endpoint),
        )
        .route(
            &format!("{project}/endpoints/{{endpoint}}/start"),
            post(start_endpoint),
        )
        .route(
            &format!("{project}/endpoints/{{endpoint}}/suspend"),
            post(suspend_endpoint),
        )
        .route(&format!("{project}/operations"), get(list_operations))
        .route(
            &format!("{project}/operations/{{operation}}"),
            get(get_operation),
        )
        .fallback(|| async { Refused::not_found("this path") })
        .method_not_allowed_fallback(|| async { Refused::not_found("this path") })
        .layer(middleware::from_fn_with_state(api.clone(), faulty))
        .with_state(api.clone());
    Router::new()
        .nest(BASE, routes)
        .nest("/_emulator", control::router(Arc::clone(&api.world)))
        .layer(middleware::from_fn_with_state(api, authorized))
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
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(api.key.expose()) {
        next.run(request).await
    } else {
        Refused(
            StatusCode::UNAUTHORIZED,
            "",
            "supplied credentials do not pass authentication".into(),
        )
        .into_response()
    }
}

/// Lets the request meet the fault that waits for it.
async fn faulty(State(api): State<Api>, request: Request, next: Next) -> Response {
    let named = format!("{} {}", request.method(), request.uri().path());
    match api.world.api_faults.meet(&named) {
        None => next.run(request).await,
        Some(fault) => match fault.instead() {
            Some(answer) => answer,
            None => fault.afterwards(next.run(request).await).await,
        },
    }
}

/// Anything but a success: status, code and text.
pub(super) struct Refused(StatusCode, &'static str, String);

impl Refused {
    fn not_found(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, "", format!("{what} not found"))
    }

    pub(super) fn invalid(why: &str) -> Self {
        Self(
            StatusCode::BAD_REQUEST,
            "",
            format!("invalid request: {why}"),
        )
    }

    fn locked() -> Self {
        let text = "project already has running conflicting operations, scheduling of new ones is prohibited";
        Self(StatusCode::LOCKED, "", text.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let request_id = uuid::Uuid::new_v4().to_string();
        let body = json!({ "request_id": request_id, "code": self.1, "message": self.2 });
        (self.0, [("x-neon-ret-request-id", request_id)], Json(body)).into_response()
    }
}

type Answer = Result<Json<Value>, Refused>;

async fn create_project(
    State(api): State<Api>,
    body: axum::body::Bytes,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let body: CreateBody = serde_json::from_slice(&body)
        .map_err(|err| Refused::invalid(&format!("decode application/json: {err}")))?;
    let project = api.world.create(body.project.checked()?);
    Ok((StatusCode::CREATED, Json(answers::created(&project))))
}

#[derive(Deserialize)]
struct ListQuery {
    search: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
    org_id: Option<String>,
}

async fn list_projects(State(api): State<Api>, Query(query): Query<ListQuery>) -> Answer {
    let limit = query.limit.unwrap_or(10);
    if !(1..=LONGEST_PAGE).contains(&limit) {
        return Err(Refused::invalid("limit is 1 to 400"));
    }
    let wanted = |project: &&Project| {
        let part = query.search.as_deref().unwrap_or_default();
        let org = query
            .org_id
            .as_ref()
            .is_none_or(|org| project.wanted.org_id.as_ref() == Some(org));
        let found = project.name.contains(part) || project.id.contains(part);
        org && found && (part.is_empty() || api.world.is_listed(project))
    };
    let projects = api.world.projects();
    let after = query.cursor.as_deref();
    let start = after
        .and_then(|cursor| projects.iter().position(|it| it.id == cursor))
        .map_or(0, |place| place + 1);
    let page: Vec<_> = projects
        .iter()
        .skip(start)
        .filter(wanted)
        .take(limit)
        .collect();
    let mut answer = json!({
        "projects": page.iter().map(|it| answers::listed(it)).collect::<Vec<_>>(),
        "applications": {}, "integrations": {},
    });
    // A cursor comes with every page that is not empty, also with the last.
    if let Some(last) = page.last() {
        answer["pagination"] = json!({ "cursor": last.id });
    }
    Ok(Json(answer))
}

impl Api {
    fn project(&self, id: &str) -> Result<Project, Refused> {
        self.world
            .project(id)
            .ok_or_else(|| Refused::not_found("project"))
    }

    /// A project whose endpoint has that id.
    fn endpoint(&self, project: &str, endpoint: &str) -> Result<Project, Refused> {
        let project = self.project(project)?;
        if project.endpoint_id == endpoint {
            Ok(project)
        } else {
            Err(Refused::not_found("endpoint"))
        }
    }

    fn operate(&self, project: &str, endpoint: &str, action: Option<&'static str>) -> Answer {
        let project = self.endpoint(project, endpoint)?;
        if project.is_locked() {
            return Err(Refused::locked());
        }
        let begun = match action {
            Some(action) => self
                .world
                .operate(&project.id, &[action])
                .ok_or_else(Refused::locked)?,
            None => Vec::new(),
        };
        let project = self.project(&project.id)?;
        let operations: Vec<_> = begun
            .iter()
            .map(|it| answers::operation(&project, it))
            .collect();
        Ok(Json(
            json!({ "endpoint": answers::endpoint(&project), "operations": operations }),
        ))
    }
}

async fn get_project(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    Ok(Json(
        json!({ "project": answers::project(&api.project(&id)?) }),
    ))
}

async fn delete_project(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let project = api
        .world
        .delete(&id)
        .ok_or_else(|| Refused::not_found("project"))?;
    Ok(Json(json!({ "project": answers::project(&project) })))
}

#[derive(Deserialize)]
struct UriQuery {
    database_name: String,
    role_name: String,
    branch_id: Option<String>,
    endpoint_id: Option<String>,
    #[serde(default)]
    pooled: bool,
}

async fn connection_uri(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<UriQuery>,
) -> Answer {
    let project = api.project(&id)?;
    let Contents { database, role, .. } = &project.wanted.contents;
    let other = |given: Option<&String>, own: &String| given.is_some_and(|given| given != own);
    if other(query.branch_id.as_ref(), &project.branch_id) {
        return Err(Refused::not_found("branch"));
    }
    if other(query.endpoint_id.as_ref(), &project.endpoint_id) {
        return Err(Refused::not_found("endpoint"));
    }
    if query.database_name != *database {
        return Err(Refused::not_found("database"));
    }
    if query.role_name != *role {
        return Err(Refused::not_found("role"));
    }
    Ok(Json(json!({ "uri": project.uri(query.pooled) })))
}

async fn list_branches(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let project = api.project(&id)?;
    let (branches, annotations) = ([answers::branch(&project)], answers::annotations(&project));
    Ok(Json(
        json!({ "branches": branches, "annotations": annotations }),
    ))
}

async fn get_branch(State(api): State<Api>, Path((id, branch)): Path<(String, String)>) -> Answer {
    let project = api.project(&id)?;
    if project.branch_id != branch {
        return Err(Refused::not_found("branch"));
    }
    Ok(Json(
        json!({ "branch": answers::branch(&project), "annotation": answers::annotation(&project) }),
    ))
}

async fn list_endpoints(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    Ok(Json(
        json!({ "endpoints": [answers::endpoint(&api.project(&id)?)] }),
    ))
}

async fn get_endpoint(
    State(api): State<Api>,
    Path((id, endpoint)): Path<(String, String)>,
) -> Answer {
    Ok(Json(
        json!({ "endpoint": answers::endpoint(&api.endpoint(&id, &endpoint)?) }),
    ))
}

async fn start_endpoint(
    State(api): State<Api>,
    Path((id, endpoint)): Path<(String, String)>,
) -> Answer {
    let awake = api.endpoint(&id, &endpoint)?.compute.is_awake();
    api.operate(&id, &endpoint, (!awake).then_some("start_compute"))
}

async fn suspend_endpoint(
    State(api): State<Api>,
    Path((id, endpoint)): Path<(String, String)>,
) -> Answer {
    let awake = api.endpoint(&id, &endpoint)?.compute.is_awake();
    api.operate(&id, &endpoint, awake.then_some("suspend_compute"))
}

#[derive(Deserialize)]
struct OperationsQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn list_operations(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<OperationsQuery>,
) -> Answer {
    let project = api.project(&id)?;
    let newest_first: Vec<_> = project.operations.iter().rev().collect();
    let after = query.cursor.as_deref();
    let start = after
        .and_then(|cursor| newest_first.iter().position(|it| it.id == cursor))
        .map_or(0, |place| place + 1);
    let page: Vec<_> = newest_first
        .into_iter()
        .skip(start)
        .take(query.limit.unwrap_or(100))
        .collect();
    let mut answer = json!({ "operations": page.iter().map(|it| answers::operation(&project, it)).collect::<Vec<_>>() });
    if let Some(last) = page.last() {
        answer["pagination"] = json!({ "cursor": last.id });
    }
    Ok(Json(answer))
}

async fn get_operation(
    State(api): State<Api>,
    Path((id, operation)): Path<(String, String)>,
) -> Answer {
    let project = api.project(&id)?;
    let found = project.operations.iter().find(|it| it.id == operation);
    let found = found.ok_or_else(|| Refused::not_found("operation"))?;
    Ok(Json(
        json!({ "operation": answers::operation(&project, found) }),
    ))
}
