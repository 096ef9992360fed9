//! The calls about compute endpoints.

use crate::model::error::Error;
use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{Endpoint, EndpointAnswer, EndpointsAnswer, UpdateEndpoint},
};

static LIST: Route = Route::get("listProjectEndpoints", "/projects/{project_id}/endpoints");
static GET: Route = Route::get(
    "getProjectEndpoint",
    "/projects/{project_id}/endpoints/{endpoint_id}",
);
static UPDATE: Route = Route::patch(
    "updateProjectEndpoint",
    "/projects/{project_id}/endpoints/{endpoint_id}",
);
static START: Route = Route::post(
    "startProjectEndpoint",
    "/projects/{project_id}/endpoints/{endpoint_id}/start",
);
static SUSPEND: Route = Route::post(
    "suspendProjectEndpoint",
    "/projects/{project_id}/endpoints/{endpoint_id}/suspend",
);
static RESTART: Route = Route::post(
    "restartProjectEndpoint",
    "/projects/{project_id}/endpoints/{endpoint_id}/restart",
);

impl Neon {
    /// Returns the endpoints of all branches of a project. Wakes none of them.
    ///
    /// Calls `GET /projects/{project_id}/endpoints` (`listProjectEndpoints`).
    pub async fn list_project_endpoints(&self, project_id: &str) -> Result<Vec<Endpoint>, Error> {
        let answer: EndpointsAnswer = self.call(Call::new(&LIST, &[project_id])).await?;
        Ok(answer.endpoints)
    }

    /// Returns an endpoint. Does not wake it.
    ///
    /// Calls `GET /projects/{project_id}/endpoints/{endpoint_id}` (`getProjectEndpoint`).
    pub async fn get_project_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let call = Call::new(&GET, &[project_id, endpoint_id]);
        self.endpoint(call).await
    }

    /// Changes the size and the sleep of an endpoint, or disables it.
    ///
    /// Calls `PATCH /projects/{project_id}/endpoints/{endpoint_id}` (`updateProjectEndpoint`). The change is in effect
    /// when the operations have ended ([`wait_for_operations`](Self::wait_for_operations)). Neon wakes a sleeping
    /// compute for the change, and lets it sleep again.
    pub async fn update_project_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
        update: &UpdateEndpoint,
    ) -> Result<Endpoint, Error> {
        let path = [project_id, endpoint_id];
        let call = Call::new(&UPDATE, &path).body(update.body());
        self.endpoint(call).await
    }

    /// Wakes an endpoint. A connection to it does the same.
    ///
    /// Calls `POST /projects/{project_id}/endpoints/{endpoint_id}/start` (`startProjectEndpoint`). The endpoint is
    /// awake when the operations have ended ([`wait_for_operations`](Self::wait_for_operations)).
    ///
    /// # Errors
    /// [`ErrorKind::QuotaExhausted`](crate::ErrorKind::QuotaExhausted) if a quota keeps the endpoint asleep.
    pub async fn start_project_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let call = Call::new(&START, &[project_id, endpoint_id]);
        self.endpoint(call).await
    }

    /// Suspends an endpoint and cuts its connections.
    ///
    /// Calls `POST /projects/{project_id}/endpoints/{endpoint_id}/suspend` (`suspendProjectEndpoint`). The endpoint is
    /// asleep when the operations have ended ([`wait_for_operations`](Self::wait_for_operations)).
    pub async fn suspend_project_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let call = Call::new(&SUSPEND, &[project_id, endpoint_id]);
        self.endpoint(call).await
    }

    /// Restarts an endpoint and cuts its connections.
    ///
    /// Calls `POST /projects/{project_id}/endpoints/{endpoint_id}/restart` (`restartProjectEndpoint`). The endpoint is
    /// awake again when the operations have ended ([`wait_for_operations`](Self::wait_for_operations)).
    pub async fn restart_project_endpoint(
        &self,
        project_id: &str,
        endpoint_id: &str,
    ) -> Result<Endpoint, Error> {
        let call = Call::new(&RESTART, &[project_id, endpoint_id]);
        self.endpoint(call).await
    }

    async fn endpoint(&self, call: Call<'_>) -> Result<Endpoint, Error> {
        let answer: EndpointAnswer = self.call(call).await?;
        Ok(answer.endpoint)
    }
}
