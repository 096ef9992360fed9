//! The bodies of the API's answers, in Neon's shapes.

use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use serde_json::{Map, Value, json};

use crate::emulator::{
    compute::contents::Contents,
    world::{
        operation::{Operation, Status},
        project::{Branch, Endpoint, Project},
    },
};

/// The timestamp that Neon writes in place of a missing one.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
const PROVISIONER: &str = "k8s-neonvm";
/// Id of the only billing period.
const PERIOD: &str = "79ec829f-1828-4006-ac82-9f1828a0067d";
const OWNER: &str = "92cdd2ee-a6d8-4647-868f-124531123b03";
/// Time for which a deleted project can be recovered.
const RECOVERABLE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

fn time(at: SystemTime) -> String {
    format_rfc3339_seconds(at).to_string()
}

/// Returns the answer to the creation of a project.
pub(in crate::emulator) fn created_project(project: &Project) -> Value {
    let mut value = json!({
        "project": self::project(project), "connection_uris": [], "roles": [], "databases": [],
        "operations": operations(&project.id, &project.operations), "endpoints": [],
    });
    if let Some(branch) = project.default_branch() {
        let endpoint = project.endpoint_of(&branch.id);
        merge(&mut value, born(project, branch, endpoint));
    }
    value
}

/// Returns the answer to the creation of a branch.
pub(in crate::emulator) fn created_branch(
    project: &Project,
    branch: &Branch,
    endpoint: Option<&Endpoint>,
    begun: &[Operation],
) -> Value {
    let mut value = born(project, branch, endpoint);
    merge(
        &mut value,
        json!({ "operations": operations(&project.id, begun) }),
    );
    value
}

/// Returns the parts of an answer that describe a new branch.
fn born(project: &Project, branch: &Branch, endpoint: Option<&Endpoint>) -> Value {
    let contents = branch.compute.contents();
    let Contents { database, role, .. } = &contents;
    let at = time(branch.created_at);
    let uris = endpoint.map(|it| connection(project, it, &contents));
    json!({
        "branch": self::branch(project, branch),
        "endpoints": endpoint.map(|it| self::endpoint(project, it)).into_iter().collect::<Vec<_>>(),
        "connection_uris": uris.into_iter().collect::<Vec<_>>(),
        "roles": [self::role(branch, &contents)],
        "databases": [{
            "id": 1, "branch_id": branch.id, "name": database, "owner_name": role, "created_at": at, "updated_at": at,
        }],
    })
}

fn connection(project: &Project, endpoint: &Endpoint, contents: &Contents) -> Value {
    json!({
        "connection_uri": project.uri(endpoint, false),
        "connection_parameters": {
            "database": contents.database, "password": contents.password.expose(), "role": contents.role,
            "host": project.host(endpoint), "pooler_host": project.pooler_host(endpoint),
        },
    })
}

/// Returns a role with its password.
pub(in crate::emulator) fn role(branch: &Branch, contents: &Contents) -> Value {
    let at = time(branch.created_at);
    json!({
        "branch_id": branch.id, "name": contents.role, "password": contents.password.expose(), "protected": false,
        "created_at": at, "updated_at": at,
    })
}

pub(in crate::emulator) fn project(project: &Project) -> Value {
    let mut value = common(project);
    let used = project.ledger.used();
    let counters = json!({
        "data_storage_bytes_hour": 0, "data_transfer_bytes": used.data_transfer_bytes,
        "written_data_bytes": used.written_data_bytes, "compute_time_seconds": used.compute_time_seconds,
        "active_time_seconds": used.active_time_seconds, "consumption_period_start": NO_TIME,
        "consumption_period_end": NO_TIME, "history_retention_seconds": 86400,
    });
    merge(&mut value, counters);
    value
}

/// Returns a project as it appears in a list.
pub(in crate::emulator) fn listed_project(project: &Project) -> Value {
    let mut value = common(project);
    let active = project.ledger.used().active_time_seconds;
    merge(&mut value, json!({ "active_time": active }));
    if let Some(at) = project.deleted_at {
        let until = time(at + RECOVERABLE);
        merge(
            &mut value,
            json!({ "deleted_at": time(at), "recoverable_until": until }),
        );
    }
    value
}

fn common(project: &Project) -> Value {
    let mut value = json!({
        "id": project.id, "name": project.name, "platform_id": "aws", "region_id": project.region,
        "provisioner": PROVISIONER, "pg_version": project.pg_version, "proxy_host": project.proxy_host(),
        "cpu_used_sec": 0, "branch_logical_size_limit": 512, "branch_logical_size_limit_bytes": 536_870_912,
        "store_passwords": true, "creation_source": "console", "created_at": time(project.created_at),
        "updated_at": time(project.updated_at), "owner_id": OWNER,
        "default_endpoint_settings": {
            "autoscaling_limit_min_cu": project.defaults.units.0, "autoscaling_limit_max_cu": project.defaults.units.1,
            "suspend_timeout_seconds": project.defaults.suspend_timeout_seconds,
        },
        "settings": {
            "allowed_ips": { "ips": [], "protected_branches_only": false }, "quota": project.ledger.quota(),
            "enable_logical_replication": false, "block_public_connections": false, "block_vpc_connections": false,
        },
    });
    if let Some(org_id) = &project.org_id {
        value["org_id"] = json!(org_id);
    }
    value
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
}

pub(in crate::emulator) fn branch(project: &Project, branch: &Branch) -> Value {
    let at = time(branch.created_at);
    let creates = |it: &Operation| ["create_timeline", "create_branch"].contains(&it.action);
    let is_new = |it: &Operation| it.goes_on() && it.branch_id.as_ref() == Some(&branch.id);
    let creating = project
        .operations
        .iter()
        .any(|it| creates(it) && is_new(it));
    let used = branch.compute.meter.used();
    let mut value = json!({
        "id": branch.id, "project_id": project.id, "name": branch.name,
        "current_state": if creating { "init" } else { "ready" }, "state_changed_at": at, "creation_source": "console",
        "primary": branch.default, "default": branch.default, "protected": false, "cpu_used_sec": 0,
        "compute_time_seconds": used.compute_time_seconds, "active_time_seconds": used.active_time_seconds,
        "written_data_bytes": used.written_data_bytes, "data_transfer_bytes": used.data_transfer_bytes,
        "logical_size": branch.compute.meter.stored(), "created_at": at, "updated_at": at,
    });
    if creating {
        value["pending_state"] = json!("ready");
    }
    if let Some(parent_id) = &branch.parent_id {
        value["parent_id"] = json!(parent_id);
    }
    value
}

/// Returns the annotations of the branches that have any, by branch id.
pub(in crate::emulator) fn annotations(branches: &[&Branch]) -> Value {
    let noted = branches.iter().filter(|it| !it.annotations.is_empty());
    let all: Map<_, _> = noted.map(|it| (it.id.clone(), annotation(it))).collect();
    Value::Object(all)
}

pub(in crate::emulator) fn annotation(branch: &Branch) -> Value {
    let at = time(branch.created_at);
    json!({
        "object": { "type": "console/branch", "id": branch.id }, "value": branch.annotations,
        "created_at": at, "updated_at": at,
    })
}

pub(in crate::emulator) fn endpoint(project: &Project, endpoint: &Endpoint) -> Value {
    let Endpoint { size, compute, .. } = endpoint;
    let ever = !compute.log.entries().wakes.is_empty();
    let state = match (compute.is_awake(), ever) {
        (true, _) => "active",
        (false, true) => "idle",
        (false, false) => "init",
    };
    let mut value = json!({
        "host": project.host(endpoint), "id": endpoint.id, "project_id": project.id, "branch_id": endpoint.branch_id,
        "autoscaling_limit_min_cu": size.units.0, "autoscaling_limit_max_cu": size.units.1,
        "region_id": project.region, "type": "read_write", "current_state": state, "settings": {},
        "pooler_enabled": false, "pooler_mode": "transaction", "disabled": endpoint.disabled,
        "passwordless_access": true, "creation_source": "console", "created_at": time(endpoint.created_at),
        "updated_at": time(endpoint.updated_at), "proxy_host": project.proxy_host(),
        "suspend_timeout_seconds": size.suspend_timeout_seconds, "provisioner": PROVISIONER,
    });
    let is_its = |it: &Operation| it.goes_on() && it.endpoint_id.as_ref() == Some(&endpoint.id);
    // The last pending operation decides the state.
    let pending = project.operations.iter().rev().filter(|it| is_its(it));
    let becomes = pending.into_iter().find_map(|it| match it.action {
        "start_compute" => Some("active"),
        "suspend_compute" => Some("idle"),
        _ => None,
    });
    if let Some(becomes) = becomes {
        value["pending_state"] = json!(becomes);
    }
    value
}

pub(in crate::emulator) fn operations(project_id: &str, operations: &[Operation]) -> Vec<Value> {
    let all = operations.iter();
    all.map(|it| operation(project_id, it)).collect()
}

pub(in crate::emulator) fn operation(project_id: &str, operation: &Operation) -> Value {
    let status = match operation.status {
        Status::Scheduling => "scheduling",
        Status::Running => "running",
        Status::Finished => "finished",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    };
    let took = operation
        .updated_at
        .duration_since(operation.created_at)
        .unwrap_or_default();
    let mut value = json!({
        "id": operation.id, "project_id": project_id, "action": operation.action, "status": status,
        "failures_count": u8::from(operation.error.is_some()), "created_at": time(operation.created_at),
        "updated_at": time(operation.updated_at), "total_duration_ms": u64::try_from(took.as_millis()).unwrap_or(0),
    });
    let optional = [
        ("branch_id", &operation.branch_id),
        ("endpoint_id", &operation.endpoint_id),
        ("error", &operation.error),
    ];
    for (field, known) in optional {
        if let Some(known) = known {
            value[field] = json!(known);
        }
    }
    value
}

/// Returns the usage of a project, in the `present` timeframe if there is one.
pub(in crate::emulator) fn consumption(
    project: &Project,
    present: Option<(SystemTime, SystemTime)>,
    metrics: &[String],
) -> Value {
    let used = project.ledger.used();
    let stored = |root: bool| -> u64 {
        let branches = project.branches.iter();
        let kind = branches.filter(|it| it.parent_id.is_none() == root);
        kind.map(|it| it.compute.meter.stored()).sum()
    };
    let value = |name: &str| match name {
        "compute_unit_seconds" => used.compute_time_seconds,
        "root_branch_bytes_month" => stored(true),
        "child_branch_bytes_month" => stored(false),
        "public_network_transfer_bytes" => used.data_transfer_bytes,
        _ => 0,
    };
    let metrics: Vec<_> = metrics
        .iter()
        .map(|name| json!({ "metric_name": name, "value": value(name) }))
        .collect();
    let frames: Vec<_> = present
        .iter()
        .map(|(from, to)| {
            json!({ "timeframe_start": time(*from), "timeframe_end": time(*to), "metrics": metrics })
        })
        .collect();
    json!({
        "project_id": project.id,
        "periods": [{
            "period_id": PERIOD, "period_plan": "launch", "period_start": time(project.created_at), "consumption": frames,
        }],
    })
}
