//! The emulator's own paths below `/_emulator`: they show the witnesses and set faults. They require the API's key.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::ApiFault;
use crate::emulator::{
    compute::{Compute, stop::Stop},
    fault::Fault,
    proxy::Proxy,
    witness::Witness,
    world::{World, usage::Usage},
};

/// Returns the router of these paths, without the prefix.
pub(in crate::emulator) fn router(world: Arc<World>, proxy: Arc<Proxy>) -> Router {
    let endpoint = "/endpoints/{endpoint}";
    Router::new()
        .route("/api_faults", post(add_api_fault).delete(clear_api_faults))
        .route("/search_lag_ms/{lag}", post(set_search_lag))
        .route("/endpoints", get(list))
        .route(
            &format!("{endpoint}/fault"),
            post(set_fault).delete(clear_fault),
        )
        .route(
            &format!("{endpoint}/wake_delay_ms/{{delay}}"),
            post(set_wake_delay),
        )
        .route(&format!("{endpoint}/suspend/{{how}}"), post(suspend))
        .route(&format!("{endpoint}/move"), post(move_endpoint))
        .route(
            &format!("{endpoint}/rotate_password"),
            post(rotate_password),
        )
        .route(&format!("{endpoint}/{{action}}"), post(act))
        .route("/projects/{project}/usage", post(add_usage))
        .with_state(world)
        .route("/restart_proxy", post(|| async move { proxy.restart() }))
}

type Endpoint = Result<Arc<Compute>, (StatusCode, &'static str)>;

fn find(world: &World, id: &str) -> Endpoint {
    world
        .compute(id)
        .ok_or((StatusCode::NOT_FOUND, "no such endpoint\n"))
}

async fn list(State(world): State<Arc<World>>) -> Json<Value> {
    Json(world.witnesses().iter().map(shown).collect())
}

fn shown(it: &Witness) -> Value {
    json!({
        "endpoint_id": it.endpoint_id, "host": it.host, "project_id": it.project_id, "project_name": it.project_name,
        "is_awake": it.is_awake, "wakes": it.wakes.len(), "suspends": it.suspends.len(),
        "auth_attempts": it.auth_attempts.len(), "sessions": it.sessions.len(), "open_sessions": it.open_sessions,
    })
}

async fn set_fault(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    Json(fault): Json<Fault>,
) -> Result<(), (StatusCode, &'static str)> {
    find(&world, &id)?.faults.set(Some(fault));
    Ok(())
}

async fn clear_fault(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> Result<(), (StatusCode, &'static str)> {
    find(&world, &id)?.faults.set(None);
    Ok(())
}

async fn set_wake_delay(
    State(world): State<Arc<World>>,
    Path((id, delay)): Path<(String, u64)>,
) -> Result<(), (StatusCode, &'static str)> {
    find(&world, &id)?.set_wake_delay(Duration::from_millis(delay));
    Ok(())
}

async fn act(
    State(world): State<Arc<World>>,
    Path((id, action)): Path<(String, String)>,
) -> Result<(), (StatusCode, &'static str)> {
    let compute = find(&world, &id)?;
    match action.as_str() {
        "suspend" => drop(compute.suspend(Stop::Neon).await),
        "freeze" => compute.freeze(),
        "thaw" => compute.thaw(),
        "crash" => compute.crash(),
        "kill_pooler" => compute.kill_pooler().await,
        _ => {
            return Err((
                StatusCode::NOT_FOUND,
                "suspend, freeze, thaw, crash, kill_pooler\n",
            ));
        }
    }
    Ok(())
}

type Missing = (StatusCode, &'static str);

async fn suspend(
    State(world): State<Arc<World>>,
    Path((id, how)): Path<(String, Stop)>,
) -> Result<(), Missing> {
    find(&world, &id)?.suspend(how).await;
    Ok(())
}

async fn move_endpoint(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Missing> {
    let moved = world.move_endpoint(&id);
    let (compute, id) = moved.ok_or((StatusCode::NOT_FOUND, "no such endpoint\n"))?;
    compute.suspend(Stop::Neon).await;
    Ok(Json(json!({ "endpoint_id": id })))
}

async fn rotate_password(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Missing> {
    let rotated = world.rotate_password(&id).await;
    let password = rotated.ok_or((StatusCode::NOT_FOUND, "no such endpoint\n"))?;
    Ok(Json(json!({ "password": password.expose() })))
}

async fn add_usage(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    Json(usage): Json<Usage>,
) -> Result<(), Missing> {
    let project = world.project(&id);
    let project = project.ok_or((StatusCode::NOT_FOUND, "no such project\n"))?;
    project.ledger.add(usage);
    Ok(())
}

#[derive(Deserialize)]
struct AddApiFault {
    route: String,
    fault: ApiFault,
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

async fn add_api_fault(State(world): State<Arc<World>>, Json(add): Json<AddApiFault>) {
    world.api_faults.add(add.route, add.fault, add.times);
}

async fn clear_api_faults(State(world): State<Arc<World>>) {
    world.api_faults.clear();
}

async fn set_search_lag(State(world): State<Arc<World>>, Path(lag): Path<u64>) {
    world.set_search_lag(Duration::from_millis(lag));
}
