//! The calls about operations, and the wait for their end.

use std::time::Duration;

use crate::neon::{
    client::Neon,
    redact::excerpt,
    request::{Call, Route},
    wire::{Operation, OperationAnswer, OperationsAnswer},
};
use crate::{
    model::error::{Error, ErrorKind},
    sync::retry::retry,
};

static LIST: Route = Route::get("listProjectOperations", "/projects/{project_id}/operations");
static GET: Route = Route::get(
    "getProjectOperation",
    "/projects/{project_id}/operations/{operation_id}",
);

/// Number of operations that are listed: more than one call starts.
const NEWEST: &str = "10";

impl Neon {
    /// Returns the newest ten operations of a project.
    ///
    /// Calls `GET /projects/{project_id}/operations` (`listProjectOperations`).
    pub async fn list_project_operations(&self, project_id: &str) -> Result<Vec<Operation>, Error> {
        let call = Call::new(&LIST, &[project_id]).query("limit", Some(NEWEST.into()));
        let answer: OperationsAnswer = self.call(call).await?;
        Ok(answer.operations)
    }

    /// Returns an operation.
    ///
    /// Calls `GET /projects/{project_id}/operations/{operation_id}` (`getProjectOperation`).
    pub async fn get_project_operation(
        &self,
        project_id: &str,
        operation_id: &str,
    ) -> Result<Operation, Error> {
        let call = Call::new(&GET, &[project_id, operation_id]);
        let answer: OperationAnswer = self.call(call).await?;
        Ok(answer.operation)
    }

    /// Waits until the project's newest ten operations have ended, and returns them. The caller must check whether one
    /// has failed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait_for_operations(&self, project_id: &str) -> Result<Vec<Operation>, Error> {
        let progress = self.progress();
        let neon = self.within(&progress);
        // One request covers all operations of the project. The waits grow slowly, so that the last one wastes little
        // time, and the requests stay far below the API's rate limit.
        let grow = |wait: &Duration| Some((*wait * 3 / 2).min(Duration::from_secs(1)));
        let waits = std::iter::successors(Some(Duration::from_millis(100)), grow);
        retry(&progress, waits, || async {
            let operations = neon.list_project_operations(project_id).await?;
            match operations.iter().find(|operation| operation.is_pending()) {
                Some(pending) => {
                    let action = excerpt(&pending.action);
                    let message =
                        format!("project {project_id}: operation {action} is still running");
                    Err(Error::new(ErrorKind::Locked, message))
                }
                None => Ok(operations),
            }
        })
        .await
    }
}
