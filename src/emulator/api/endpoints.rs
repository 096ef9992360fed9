//! Handlers of the endpoint paths.

use std::time::SystemTime;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Api, Refused, decode};
use super::{answers, bodies::SizeBody};
use crate::emulator::world::{
    operation::{Operation, Step, Work},
    project::{Endpoint, Project},
    start, suspend,
};

pub(super) async fn list(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let project = api.project(&id)?;
    Ok(listed(&project, |_| true))
}

pub(super) async fn list_of_branch(
    State(api): State<Api>,
    Path((id, branch)): Path<(String, String)>,
) -> Answer {
    let (project, branch) = api.branch(&id, &branch)?;
    Ok(listed(&project, |it| it.branch_id == branch.id))
}

fn listed(project: &Project, wanted: impl Fn(&Endpoint) -> bool) -> Json<serde_json::Value> {
    let endpoints = project.endpoints.iter().filter(|it| wanted(it));
    let shown: Vec<_> = endpoints.map(|it| answers::endpoint(project, it)).collect();
    Json(json!({ "endpoints": shown }))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    Path((id, endpoint)): Path<(String, String)>,
) -> Answer {
    let (project, endpoint) = api.endpoint(&id, &endpoint)?;
    Ok(Json(
        json!({ "endpoint": answers::endpoint(&project, &endpoint) }),
    ))
}

impl Api {
    /// Begins operations on an endpoint. Returns the endpoint and the operations.
    fn operate(&self, id: &str, endpoint: &str, steps: Vec<Step>) -> Answer {
        let operations = self.world.operate(id, steps)?;
        self.shown(id, endpoint, &operations)
    }

    fn shown(&self, id: &str, endpoint: &str, operations: &[Operation]) -> Answer {
        let (project, endpoint) = self.endpoint(id, endpoint)?;
        Ok(Json(json!({
            "endpoint": answers::endpoint(&project, &endpoint),
            "operations": answers::operations(id, operations),
        })))
    }
}

pub(super) async fn act(
    State(api): State<Api>,
    Path((id, endpoint, action)): Path<(String, String, String)>,
) -> Answer {
    let (_, it) = api.endpoint(&id, &endpoint)?;
    let steps = match (action.as_str(), it.compute.is_awake()) {
        ("start", true) | ("suspend", false) => Vec::new(),
        ("start" | "restart", false) => vec![start(&it)],
        ("suspend", true) => vec![suspend(&it)],
        ("restart", true) => vec![suspend(&it), start(&it)],
        _ => return Err(Refused::not_found("this path")),
    };
    api.operate(&id, &endpoint, steps)
}

#[derive(Deserialize)]
struct UpdateBody {
    endpoint: Update,
}

#[derive(Deserialize)]
struct Update {
    disabled: Option<bool>,
    #[serde(flatten)]
    size: SizeBody,
}

/// Updates an endpoint. One that is disabled is suspended. An idle one is woken for a moment, to take its new settings.
pub(super) async fn update(
    State(api): State<Api>,
    Path((id, endpoint)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let update = decode::<UpdateBody>(&body)?.endpoint;
    let (_, it) = api.endpoint(&id, &endpoint)?;
    let size = update.size.checked(it.size)?;
    let disabled = update.disabled.unwrap_or(it.disabled);
    let apply = Step::on_endpoint("apply_config", &it.branch_id, &it.id, Work::Nothing);
    let steps = match (disabled, it.compute.is_awake()) {
        (true, true) => vec![suspend(&it)],
        (true, false) => Vec::new(),
        (false, true) => vec![apply],
        (false, false) => vec![start(&it), apply, suspend(&it)],
    };
    let steps = if size == it.size && disabled == it.disabled {
        Vec::new()
    } else {
        steps
    };
    let terms = api.world.terms(size, disabled);
    let operations = api.world.operate_with(&id, steps, |project| {
        let mut endpoints = project.endpoints.iter_mut();
        if let Some(it) = endpoints.find(|it| it.id == endpoint) {
            (it.size, it.disabled) = (size, disabled);
            it.updated_at = SystemTime::now();
            it.compute.set_terms(terms);
        }
    })?;
    api.shown(&id, &endpoint, &operations)
}
