//! Handlers of the project paths.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Api, Created, Refused, after, decode};
use super::{
    answers,
    bodies::{CreateBody, Settings, SizeBody, check_name},
};
use crate::emulator::world::project::Project;

/// Most projects on a page.
const LONGEST_PAGE: usize = 400;

pub(super) async fn create(State(api): State<Api>, body: Bytes) -> Created {
    let body: CreateBody = decode(&body)?;
    let project = api.world.create(body.project.checked()?);
    Ok((
        StatusCode::CREATED,
        Json(answers::created_project(&project)),
    ))
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    search: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
    org_id: Option<String>,
    #[serde(default)]
    recoverable: bool,
}

pub(super) async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Answer {
    let limit = query.limit.unwrap_or(10);
    if !(1..=LONGEST_PAGE).contains(&limit) {
        return Err(Refused::invalid("limit is 1 to 400"));
    }
    let wanted = |project: &&Project| {
        let part = query.search.as_deref().unwrap_or_default();
        let org = query.org_id.as_ref();
        let org = org.is_none_or(|org| project.org_id.as_ref() == Some(org));
        let found = project.name.contains(part) || project.id.contains(part);
        let deleted = project.deleted_at.is_some();
        let listed = part.is_empty() || api.world.is_listed(project);
        org && found && listed && deleted == query.recoverable
    };
    let projects = api.world.projects();
    let rest = after(projects.iter().collect(), query.cursor.as_deref(), |it| {
        &it.id
    });
    let page: Vec<_> = rest.into_iter().filter(wanted).take(limit).collect();
    let mut answer = json!({
        "projects": page.iter().map(|it| answers::listed_project(it)).collect::<Vec<_>>(),
        "applications": {}, "integrations": {},
    });
    // Every page that is not empty has a cursor, even the last one.
    if let Some(last) = page.last() {
        answer["pagination"] = json!({ "cursor": last.id });
    }
    Ok(Json(answer))
}

pub(super) async fn get_one(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let project = api.project(&id)?;
    for branch in &project.branches {
        branch.compute.read_meter().await;
    }
    Ok(Json(json!({ "project": answers::project(&project) })))
}

#[derive(Deserialize)]
struct UpdateBody {
    project: Update,
}

#[derive(Deserialize)]
struct Update {
    name: Option<String>,
    settings: Option<Settings>,
    default_endpoint_settings: Option<SizeBody>,
}

/// Updates a project. Endpoint settings apply only to new endpoints. A quota replaces the previous one.
pub(super) async fn update(State(api): State<Api>, Path(id): Path<String>, body: Bytes) -> Answer {
    let Update {
        name,
        settings,
        default_endpoint_settings,
    } = decode::<UpdateBody>(&body)?.project;
    let project = api.project(&id)?;
    name.as_deref().map_or(Ok(()), check_name)?;
    let size = default_endpoint_settings.unwrap_or_default();
    let size = size.checked(project.defaults)?;
    if let Some(quota) = settings.and_then(|settings| settings.quota) {
        project.ledger.set_quota(quota);
    }
    let changed = api.world.change(&id, |project| {
        project.defaults = size;
        if let Some(name) = name {
            project.name = name;
        }
        project.clone()
    });
    let project = changed.ok_or_else(|| Refused::not_found("project"))?;
    Ok(Json(
        json!({ "project": answers::project(&project), "operations": [] }),
    ))
}

pub(super) async fn delete(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let deleted = api.world.delete(&id);
    let project = deleted.ok_or_else(|| Refused::not_found("project"))?;
    Ok(Json(json!({ "project": answers::project(&project) })))
}

pub(super) async fn recover(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let recovered = api.world.recover(&id);
    let project = recovered.ok_or_else(|| Refused::not_found("recoverable project"))?;
    let branches: Vec<_> = project
        .branches
        .iter()
        .map(|it| answers::branch(&project, it))
        .collect();
    Ok(Json(
        json!({ "project": answers::project(&project), "branches": branches }),
    ))
}

#[derive(Deserialize)]
pub(super) struct UriQuery {
    database_name: String,
    role_name: String,
    branch_id: Option<String>,
    endpoint_id: Option<String>,
    #[serde(default)]
    pooled: bool,
}

pub(super) async fn connection_uri(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<UriQuery>,
) -> Answer {
    let project = api.project(&id)?;
    let branch = match &query.branch_id {
        Some(id) => project.branch(id),
        None => project.default_branch(),
    };
    let branch = branch.ok_or_else(|| Refused::not_found("branch"))?;
    let endpoint = match &query.endpoint_id {
        Some(id) => project.endpoint(id),
        None => project.endpoint_of(&branch.id),
    };
    let given = query.branch_id.is_some();
    let endpoint = endpoint.filter(|it| !given || it.branch_id == branch.id);
    let endpoint = endpoint.ok_or_else(|| Refused::not_found("endpoint"))?;
    let contents = endpoint.compute.contents();
    if query.database_name != contents.database {
        return Err(Refused::not_found("database"));
    }
    if query.role_name != contents.role {
        return Err(Refused::not_found("role"));
    }
    Ok(Json(json!({ "uri": project.uri(endpoint, query.pooled) })))
}
