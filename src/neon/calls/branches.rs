//! The calls about branches.

use crate::model::error::Error;
use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{Branch, BranchAnswer, BranchesAnswer, CreateBranch, CreatedBranch},
};

static CREATE: Route = Route::post("createProjectBranch", "/projects/{project_id}/branches");
static LIST: Route = Route::get("listProjectBranches", "/projects/{project_id}/branches");
static GET: Route = Route::get(
    "getProjectBranch",
    "/projects/{project_id}/branches/{branch_id}",
);
static DELETE: Route = Route::delete(
    "deleteProjectBranch",
    "/projects/{project_id}/branches/{branch_id}",
);

/// Most branches that the API puts on one page.
const PAGE: &str = "10000";

impl Neon {
    /// Creates a branch with the data of its parent, and with a compute unless `branch` says otherwise.
    ///
    /// Calls `POST /projects/{project_id}/branches` (`createProjectBranch`). The branch can be used when its operations
    /// have ended ([`wait_for_operations`](Self::wait_for_operations)).
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if the project has a branch of that name. If an answer was
    /// lost, [`list_project_branches`](Self::list_project_branches) finds the branch that the call created.
    /// [`ErrorKind::QuotaExhausted`](crate::ErrorKind::QuotaExhausted) if the plan allows no more branches.
    pub async fn create_project_branch(
        &self,
        project_id: &str,
        branch: &CreateBranch,
    ) -> Result<CreatedBranch, Error> {
        let call = Call::new(&CREATE, &[project_id]).body(branch.body());
        self.call(call).await
    }

    /// Returns all branches of a project with their annotations.
    ///
    /// Calls `GET /projects/{project_id}/branches` (`listProjectBranches`) for every page.
    pub async fn list_project_branches(&self, project_id: &str) -> Result<Vec<Branch>, Error> {
        let neon = self.within(&self.progress());
        let mut found = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let call = Call::new(&LIST, &[project_id])
                .query("limit", Some(PAGE.into()))
                .query("cursor", cursor.as_deref().map(Into::into));
            let answer: BranchesAnswer = neon.call(call).await?;
            let (next, page) = answer.split();
            let last = page.is_empty() || next.is_none() || next == cursor;
            found.extend(page);
            cursor = next;
            if last {
                return Ok(found);
            }
        }
    }

    /// Returns a branch with its annotations.
    ///
    /// Calls `GET /projects/{project_id}/branches/{branch_id}` (`getProjectBranch`). Shortly after a restore has
    /// created the branch, Neon can answer 404.
    pub async fn get_project_branch(
        &self,
        project_id: &str,
        branch_id: &str,
    ) -> Result<Branch, Error> {
        let call = Call::new(&GET, &[project_id, branch_id]);
        let answer: BranchAnswer = self.call(call).await?;
        Ok(answer.into())
    }

    /// Deletes a branch and its computes. Returns `None` if the branch was already deleted.
    ///
    /// Calls `DELETE /projects/{project_id}/branches/{branch_id}` (`deleteProjectBranch`).
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) for a root branch, the default branch, and a branch with
    /// children.
    pub async fn delete_project_branch(
        &self,
        project_id: &str,
        branch_id: &str,
    ) -> Result<Option<Branch>, Error> {
        let call = Call::new(&DELETE, &[project_id, branch_id]);
        let answer: Option<BranchAnswer> = self.call(call).await?;
        Ok(answer.map(Branch::from))
    }
}
