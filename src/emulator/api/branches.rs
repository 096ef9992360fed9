//! Handlers of the branch paths, and of the role that each branch has.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Api, Created, Refused, after, decode};
use super::{
    answers,
    bodies::{NewBranch, SizeBody, check, check_annotations, check_name},
};
use crate::emulator::{
    names::new_password,
    world::{
        self,
        operation::{Step, Work},
        project::{Branch, Project},
    },
};
use crate::model::secret::Secret;

#[derive(Default, Deserialize)]
#[serde(default)]
struct CreateBody {
    branch: CreateBranch,
    endpoints: Vec<CreateEndpoint>,
    annotation_value: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CreateBranch {
    parent_id: Option<String>,
    name: Option<String>,
    init_source: Option<String>,
    parent_lsn: Option<String>,
    parent_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct CreateEndpoint {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    size: SizeBody,
}

/// Creates a branch. It has no endpoint unless the request asks for one.
pub(super) async fn create(State(api): State<Api>, Path(id): Path<String>, body: Bytes) -> Created {
    let body: CreateBody = if body.is_empty() {
        CreateBody::default()
    } else {
        decode(&body)?
    };
    let project = api.project(&id)?;
    let asked = &body.branch;
    let parent = match asked.parent_id.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => project.branch(id),
        None => project.default_branch(),
    };
    let parent = parent.ok_or_else(|| Refused::not_found("parent branch"))?;
    let wanted = body.checked(&project)?;
    let (branch, endpoint, operations) = api.world.create_branch(&project, parent, &wanted)?;
    let project = api.project(&id)?;
    Ok((
        StatusCode::CREATED,
        Json(answers::created_branch(
            &project,
            &branch,
            endpoint.as_ref(),
            &operations,
        )),
    ))
}

impl CreateBody {
    fn checked(&self, project: &Project) -> Result<NewBranch, Refused> {
        let asked = &self.branch;
        let head = asked.parent_lsn.is_none() && asked.parent_timestamp.is_none();
        check(head, "the emulator branches off the present only")?;
        let source = asked.init_source.as_deref().unwrap_or("parent-data");
        check(
            source == "parent-data",
            "the emulator's only init_source is parent-data",
        )?;
        asked.name.as_deref().map_or(Ok(()), check_name)?;
        check_annotations(&self.annotation_value)?;
        let taken = |name: &String| project.branches.iter().any(|it| it.name == *name);
        if asked.name.as_ref().is_some_and(taken) {
            let text = "branch already exists";
            return Err(Refused(
                StatusCode::CONFLICT,
                "BRANCH_ALREADY_EXISTS",
                text.into(),
            ));
        }
        check(
            self.endpoints.len() <= 1,
            "a branch has one read_write endpoint",
        )?;
        let mut endpoint = None;
        for asked in &self.endpoints {
            check(
                asked.kind == "read_write",
                "the emulator's endpoints are read_write",
            )?;
            endpoint = Some(asked.size.checked(project.defaults)?);
        }
        Ok(NewBranch {
            name: asked.name.clone(),
            annotations: self.annotation_value.clone(),
            endpoint,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    search: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Lists branches in order of creation, and ignores `sort_by`.
pub(super) async fn list(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer {
    let project = api.project(&id)?;
    let limit = query.limit.unwrap_or(10_000);
    if !(1..=10_000).contains(&limit) {
        return Err(Refused::invalid("limit is 1 to 10000"));
    }
    let part = query.search.as_deref().unwrap_or_default();
    let found = |it: &&Branch| it.name.contains(part) || it.id.contains(part);
    let all: Vec<_> = project.branches.iter().filter(found).collect();
    let rest = after(all, query.cursor.as_deref(), |it| &it.id);
    let more = rest.len() > limit;
    let page: Vec<_> = rest.into_iter().take(limit).collect();
    let branches: Vec<_> = page
        .iter()
        .map(|it| answers::branch(&project, it))
        .collect();
    let mut answer = json!({ "branches": branches, "annotations": answers::annotations(&page) });
    if let Some(last) = page.last().filter(|_| more) {
        answer["pagination"] =
            json!({ "next": last.id, "sort_by": "created_at", "sort_order": "asc" });
    }
    Ok(Json(answer))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    Path((id, branch)): Path<(String, String)>,
) -> Answer {
    let (project, branch) = api.branch(&id, &branch)?;
    branch.compute.read_meter().await;
    let mut answer = json!({ "branch": answers::branch(&project, &branch) });
    if !branch.annotations.is_empty() {
        answer["annotation"] = answers::annotation(&branch);
    }
    Ok(Json(answer))
}

/// Deletes a branch. Answers 204 if it does not exist.
pub(super) async fn delete(
    State(api): State<Api>,
    Path((id, branch)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let project = api.project(&id)?;
    let Some(branch) = project.branch(&branch) else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let is_parent = |it: &Branch| it.parent_id.as_ref() == Some(&branch.id);
    if branch.default || project.branches.iter().any(is_parent) {
        let text = "the default branch, and a branch with children, cannot be deleted";
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let mut steps = Vec::new();
    steps.extend(project.endpoint_of(&branch.id).map(world::suspend));
    let work = Work::Delete(Arc::clone(&branch.compute));
    steps.push(Step::on_branch("delete_timeline", &branch.id, work));
    let operations = api.world.operate_with(&id, steps, |project| {
        project.branches.retain(|it| it.id != branch.id);
        project.endpoints.retain(|it| it.branch_id != branch.id);
    })?;
    let answer = json!({
        "branch": answers::branch(&project, branch),
        "operations": answers::operations(&id, &operations),
    });
    Ok(Json(answer).into_response())
}

impl Api {
    /// Returns the branch if it has that role.
    fn role(&self, project: &str, branch: &str, role: &str) -> Result<Branch, Refused> {
        let (_, branch) = self.branch(project, branch)?;
        if branch.compute.contents().role == role {
            Ok(branch)
        } else {
            Err(Refused::not_found("role"))
        }
    }
}

pub(super) async fn reveal_password(
    State(api): State<Api>,
    Path((id, branch, role)): Path<(String, String, String)>,
) -> Answer {
    let branch = api.role(&id, &branch, &role)?;
    let password = branch.compute.contents().password;
    Ok(Json(json!({ "password": password.expose() })))
}

/// Resets a role's password. The old password is valid until the operations have ended, the new one from then on.
pub(super) async fn reset_password(
    State(api): State<Api>,
    Path((id, branch, role)): Path<(String, String, String)>,
) -> Answer {
    let branch = api.role(&id, &branch, &role)?;
    let password: Secret = new_password();
    let contents = branch.compute.contents().with_password(password.clone());
    let mut steps = Vec::new();
    let project = api.project(&id)?;
    if !branch.compute.is_awake() {
        steps.extend(project.endpoint_of(&branch.id).map(world::start));
    }
    let work = Work::ResetPassword(Arc::clone(&branch.compute), password);
    steps.push(Step::on_branch("apply_config", &branch.id, work));
    let operations = api.world.operate(&id, steps)?;
    Ok(Json(json!({
        "role": answers::role(&branch, &contents), "operations": answers::operations(&id, &operations),
    })))
}
