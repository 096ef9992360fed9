//! Handlers of the operation paths.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::Deserialize;
use serde_json::json;

use super::answers;
use super::{Answer, Api, Refused, after};

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer {
    let project = api.project(&id)?;
    let newest_first: Vec<_> = project.operations.iter().rev().collect();
    let rest = after(newest_first, query.cursor.as_deref(), |it| &it.id);
    let page = rest.into_iter().take(query.limit.unwrap_or(100));
    let page: Vec<_> = page.cloned().collect();
    let mut answer = json!({ "operations": answers::operations(&id, &page) });
    if let Some(last) = page.last() {
        answer["pagination"] = json!({ "cursor": last.id });
    }
    Ok(Json(answer))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    Path((id, operation)): Path<(String, String)>,
) -> Answer {
    let project = api.project(&id)?;
    let found = project.operations.iter().find(|it| it.id == operation);
    let found = found.ok_or_else(|| Refused::not_found("operation"))?;
    Ok(Json(json!({ "operation": answers::operation(&id, found) })))
}
