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

/// Most branches on one page; the API takes no more.
const PAGE: &str = "10000";

impl Neon {
    /// `POST /projects/{project_id}/branches` (`createProjectBranch`): a branch with the data of its parent, and with a
    /// compute unless the order says otherwise.
    ///
    /// It can be used when its operations have ended ([`wait_for_operations`](Self::wait_for_operations)).
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if the project has a branch of that name: what a lost answer
    /// has left is found in [`list_project_branches`](Self::list_project_branches).
    /// [`ErrorKind::QuotaExhausted`](crate::ErrorKind::QuotaExhausted) if the plan allows no more branches.
    pub async fn create_project_branch(
        &self,
        project_id: &str,
        branch: &CreateBranch,
    ) -> Result<CreatedBranch, Error> {
        let call = Call::new(&CREATE, &[project_id]).body(branch.body());
        self.call(call).await
    }

    /// `GET /projects/{project_id}/branches` (`listProjectBranches`), every page of it: the branches, each with its
    /// annotations.
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

    /// `GET /projects/{project_id}/branches/{branch_id}` (`getProjectBranch`): a branch with its annotations.
    ///
    /// Neon can answer 404 for a moment after a restore has made the branch.
    pub async fn get_project_branch(
        &self,
        project_id: &str,
        branch_id: &str,
    ) -> Result<Branch, Error> {
        let call = Call::new(&GET, &[project_id, branch_id]);
        let answer: BranchAnswer = self.call(call).await?;
        Ok(answer.into())
    }

    /// `DELETE /projects/{project_id}/branches/{branch_id}` (`deleteProjectBranch`): deletes a branch and its computes.
    /// `None` if it was gone already.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) for a root branch, the default branch, and one with children.
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
