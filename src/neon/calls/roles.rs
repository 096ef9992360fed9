//! The calls about roles: passwords and connection URIs.

use percent_encoding::percent_decode_str;
use url::Url;

use crate::model::{
    endpoint,
    error::{Error, ErrorKind},
    secret::Secret,
};
use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{ConnectionUriAnswer, DATABASE, Endpoint, PasswordAnswer, ROLE, ResetAnswer},
};

static REVEAL: Route = Route::get(
    "getProjectBranchRolePassword",
    "/projects/{project_id}/branches/{branch_id}/roles/{role_name}/reveal_password",
);
static RESET: Route = Route::post(
    "resetProjectBranchRolePassword",
    "/projects/{project_id}/branches/{branch_id}/roles/{role_name}/reset_password",
);
static URI: Route = Route::get("getConnectionURI", "/projects/{project_id}/connection_uri");

impl Neon {
    /// Returns the password of a role.
    ///
    /// Calls `GET /projects/{project_id}/branches/{branch_id}/roles/{role_name}/reveal_password`
    /// (`getProjectBranchRolePassword`).
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with 412 in the text if the project does not store passwords. Then only a
    /// [reset](Self::reset_project_branch_role_password) returns one.
    pub async fn get_project_branch_role_password(
        &self,
        project_id: &str,
        branch_id: &str,
        role: &str,
    ) -> Result<Secret, Error> {
        let call = Call::new(&REVEAL, &[project_id, branch_id, role]);
        let answer: PasswordAnswer = self.call(call).await?;
        Ok(answer.password)
    }

    /// Gives a role a new password, and returns it.
    ///
    /// Calls `POST /projects/{project_id}/branches/{branch_id}/roles/{role_name}/reset_password`
    /// (`resetProjectBranchRolePassword`). The new password replaces the old one when the operations have ended
    /// ([`wait_for_operations`](Self::wait_for_operations)). Neon wakes the compute for it and cuts its connections.
    ///
    /// # Errors
    /// [`ErrorKind::ControlPlane`] means that it is unknown which password is valid:
    /// [get it](Self::get_project_branch_role_password), or reset it again.
    pub async fn reset_project_branch_role_password(
        &self,
        project_id: &str,
        branch_id: &str,
        role: &str,
    ) -> Result<Secret, Error> {
        let call = Call::new(&RESET, &[project_id, branch_id, role]);
        let answer: ResetAnswer = self.call(call).await?;
        Ok(answer.role.password)
    }

    /// Returns the URI with which a role connects to a database of an endpoint, password included. If `pooled`, the URI
    /// goes through the pooler.
    ///
    /// Calls `GET /projects/{project_id}/connection_uri` (`getConnectionURI`).
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the project does not store passwords.
    pub async fn get_connection_uri(
        &self,
        project_id: &str,
        endpoint_id: &str,
        database: &str,
        role: &str,
        pooled: bool,
    ) -> Result<Secret, Error> {
        let pooled = if pooled { "true" } else { "false" };
        let call = Call::new(&URI, &[project_id])
            .query("endpoint_id", Some(endpoint_id.into()))
            .query("database_name", Some(database.into()))
            .query("role_name", Some(role.into()))
            .query("pooled", Some(pooled.into()));
        let answer: ConnectionUriAnswer = self.call(call).await?;
        Ok(answer.uri)
    }

    /// Returns the address and the credentials of `login` (database and role) at `compute`. The default login is
    /// tenantry's own database and role.
    pub(crate) async fn credentials(
        &self,
        project_id: &str,
        compute: &Endpoint,
        login: Option<(&str, &str)>,
    ) -> Result<endpoint::Endpoint, Error> {
        let (database, role) = login.unwrap_or((DATABASE, ROLE));
        let uri = self
            .get_connection_uri(project_id, &compute.id, database, role, true)
            .await?;
        let unreadable = || {
            Error::new(
                ErrorKind::ControlPlane,
                "neon's connection uri has an unexpected form",
            )
        };
        let uri = Url::parse(uri.expose()).map_err(|_| unreadable())?;
        let password = uri.password().and_then(decoded).ok_or_else(unreadable)?;
        let pooled_host = uri.host_str().ok_or_else(unreadable)?;
        let endpoint =
            endpoint::Endpoint::neon(&compute.host, pooled_host, database, role, password);
        Ok(endpoint.suspend_window(compute.suspend_window()))
    }
}

/// Decodes a percent-encoded part of a URI.
fn decoded(part: &str) -> Option<Secret> {
    percent_decode_str(part)
        .decode_utf8()
        .ok()
        .map(|plain| Secret::new(plain.into_owned()))
}
