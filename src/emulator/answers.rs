//! The bodies of the API's answers, in Neon's shapes.

use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use serde_json::{Map, Value, json};

use super::{
    contents::Contents,
    world::{Operation, Project, Status},
};

/// The time that Neon writes where it means none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
const PROVISIONER: &str = "k8s-neonvm";
const OWNER: &str = "92cdd2ee-a6d8-4647-868f-124531123b03";

fn time(at: SystemTime) -> String {
    format_rfc3339_seconds(at).to_string()
}

/// The answer to a creation.
pub(super) fn created(project: &Project) -> Value {
    let Contents {
        database,
        role,
        password,
        ..
    } = &project.wanted.contents;
    let parameters = json!({
        "database": database, "password": password.expose(), "role": role,
        "host": project.host(), "pooler_host": project.pooler_host(),
    });
    let at = time(project.created_at);
    json!({
        "project": self::project(project),
        "connection_uris": [{ "connection_uri": project.uri(false), "connection_parameters": parameters }],
        "roles": [{
            "branch_id": project.branch_id, "name": role, "password": password.expose(), "protected": false,
            "created_at": at, "updated_at": at,
        }],
        "databases": [{
            "id": 1, "branch_id": project.branch_id, "name": database, "owner_name": role,
            "created_at": at, "updated_at": at,
        }],
        "operations": project.operations.iter().map(|it| operation(project, it)).collect::<Vec<_>>(),
        "branch": branch(project),
        "endpoints": [endpoint(project)],
    })
}

pub(super) fn project(project: &Project) -> Value {
    let mut value = common(project);
    let counters = json!({
        "data_storage_bytes_hour": 0, "data_transfer_bytes": 0, "written_data_bytes": 0, "compute_time_seconds": 0,
        "active_time_seconds": 0, "consumption_period_start": NO_TIME, "consumption_period_end": NO_TIME,
        "history_retention_seconds": 86400,
    });
    merge(&mut value, counters);
    value
}

/// A project as it stands in a list.
pub(super) fn listed(project: &Project) -> Value {
    let mut value = common(project);
    merge(&mut value, json!({ "active_time": 0 }));
    value
}

fn common(project: &Project) -> Value {
    let wanted = &project.wanted;
    let at = time(project.created_at);
    let mut value = json!({
        "id": project.id, "name": project.name, "platform_id": "aws", "region_id": wanted.region,
        "provisioner": PROVISIONER, "pg_version": wanted.pg_version, "proxy_host": project.proxy_host(),
        "cpu_used_sec": 0, "branch_logical_size_limit": 512, "branch_logical_size_limit_bytes": 536_870_912,
        "store_passwords": true, "creation_source": "console", "created_at": at, "updated_at": at, "owner_id": OWNER,
        "default_endpoint_settings": {
            "autoscaling_limit_min_cu": wanted.compute_units.0, "autoscaling_limit_max_cu": wanted.compute_units.1,
            "suspend_timeout_seconds": wanted.suspend_timeout_seconds,
        },
        "settings": {
            "allowed_ips": { "ips": [], "protected_branches_only": false },
            "enable_logical_replication": false, "block_public_connections": false, "block_vpc_connections": false,
        },
    });
    if let Some(quota) = &wanted.quota {
        value["settings"]["quota"] = quota.clone();
    }
    if let Some(org_id) = &wanted.org_id {
        value["org_id"] = json!(org_id);
    }
    value
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
}

pub(super) fn branch(project: &Project) -> Value {
    let at = time(project.created_at);
    let creating = pending(project, "create_timeline");
    let mut value = json!({
        "id": project.branch_id, "project_id": project.id, "name": project.wanted.branch_name,
        "current_state": if creating { "init" } else { "ready" }, "state_changed_at": at, "creation_source": "console",
        "primary": true, "default": true, "protected": false, "cpu_used_sec": 0, "compute_time_seconds": 0,
        "active_time_seconds": 0, "written_data_bytes": 0, "data_transfer_bytes": 0, "created_at": at, "updated_at": at,
    });
    if creating {
        value["pending_state"] = json!("ready");
    }
    value
}

/// The annotations of all branches, by branch.
pub(super) fn annotations(project: &Project) -> Value {
    let mut all = Map::new();
    if !project.wanted.annotations.is_empty() {
        all.insert(project.branch_id.clone(), annotation(project));
    }
    Value::Object(all)
}

pub(super) fn annotation(project: &Project) -> Value {
    let at = time(project.created_at);
    json!({
        "object": { "type": "console/branch", "id": project.branch_id }, "value": project.wanted.annotations,
        "created_at": at, "updated_at": at,
    })
}

pub(super) fn endpoint(project: &Project) -> Value {
    let wanted = &project.wanted;
    let at = time(project.created_at);
    let awake = project.compute.is_awake();
    let ever = !project.compute.log.entries().wakes.is_empty();
    let state = if awake {
        "active"
    } else if ever {
        "idle"
    } else {
        "init"
    };
    let mut value = json!({
        "host": project.host(), "id": project.endpoint_id, "project_id": project.id, "branch_id": project.branch_id,
        "autoscaling_limit_min_cu": wanted.compute_units.0, "autoscaling_limit_max_cu": wanted.compute_units.1,
        "region_id": wanted.region, "type": "read_write", "current_state": state, "settings": {},
        "pooler_enabled": false, "pooler_mode": "transaction", "disabled": false, "passwordless_access": true,
        "creation_source": "console", "created_at": at, "updated_at": at, "proxy_host": project.proxy_host(),
        "suspend_timeout_seconds": wanted.suspend_timeout_seconds, "provisioner": PROVISIONER,
    });
    if pending(project, "start_compute") {
        value["pending_state"] = json!("active");
    } else if pending(project, "suspend_compute") {
        value["pending_state"] = json!("idle");
    }
    value
}

fn pending(project: &Project, action: &str) -> bool {
    let goes_on = |it: &Operation| matches!(it.status, Status::Scheduling | Status::Running);
    project
        .operations
        .iter()
        .any(|it| it.action == action && goes_on(it))
}

pub(super) fn operation(project: &Project, operation: &Operation) -> Value {
    let status = match operation.status {
        Status::Scheduling => "scheduling",
        Status::Running => "running",
        Status::Finished => "finished",
        Status::Failed => "failed",
    };
    let took = operation
        .updated_at
        .duration_since(operation.created_at)
        .unwrap_or_default();
    let mut value = json!({
        "id": operation.id, "project_id": project.id, "branch_id": project.branch_id, "action": operation.action,
        "status": status, "failures_count": 0, "created_at": time(operation.created_at),
        "updated_at": time(operation.updated_at), "total_duration_ms": u64::try_from(took.as_millis()).unwrap_or(0),
    });
    if operation.action.ends_with("_compute") {
        value["endpoint_id"] = json!(project.endpoint_id);
    }
    value
}
