//! The tenant of a request, as an argument of an axum handler.

use axum::extract::{FromRef, FromRequestParts};
use http::request::Parts;

use super::identify::Identify;
use crate::{
    model::{current_tenant, error::Error},
    router::{TenantRouter, handle::TenantHandle},
};

/// The state from which [`Tenant`] is extracted: the router, and the way in which a request names its tenant. It is the
/// application's state, or a part of it (`FromRef`).
///
/// ```
/// use axum::{Router, routing::get};
/// use tenantry::{Error, Identify, InvalidConfig, Tenant, Tenants, TenantRouter};
///
/// async fn count(Tenant(tenant): Tenant) -> Result<String, Error> {
///     let client = tenant.get().await?; // taken when it is needed, and dropped as soon as it is not
///     let row = client.query_one("SELECT count(*) FROM notes", &[]).await?;
///     Ok(row.get::<_, i64>(0).to_string())
/// }
///
/// fn app(router: TenantRouter) -> Result<Router, InvalidConfig> {
///     let tenants = Tenants::new(router, Identify::subdomain_of("example.com")?);
///     Ok(Router::new().route("/count", get(count)).with_state(tenants))
/// }
/// # let _ = app;
/// ```
#[derive(Clone, Debug)]
#[must_use = "this does nothing until it is the application's state"]
pub struct Tenants {
    router: TenantRouter,
    identify: Identify,
    creates: bool,
}

impl Tenants {
    /// Creates the state that finds tenants by `identify`, and their connections by `router`. Requests create no
    /// database, regardless of the router's policy.
    pub fn new(router: TenantRouter, identify: Identify) -> Self {
        Self {
            router,
            identify,
            creates: false,
        }
    }

    /// Lets requests create the database of a tenant that has none, if the provisioner's policy allows it
    /// ([`Provisioner::decide`](crate::Provisioner::decide),
    /// [`on_first_access`](crate::Provisioner::on_first_access)). By default, a request only finds a database, and
    /// finishes a creation that was begun: clients choose the ids in requests, and each new id would be a project that
    /// you pay for.
    pub fn on_first_access(mut self) -> Self {
        self.creates = true;
        self
    }

    /// Returns the router.
    pub fn router(&self) -> &TenantRouter {
        &self.router
    }
}

/// The tenant of a request: an axum extractor. It does no I/O, unless the identification needs a lookup
/// ([`Identify::resolve_with`]).
///
/// It holds a handle, not a connection: the handler would hold a connection until its end, even while it waits for
/// something else. If the tenant does not exist, the first use of the handle fails, which is a 404 too. No call of the
/// handle creates the tenant, unless [`Tenants::on_first_access`] is set.
///
/// # Errors
/// 404 if the request names no tenant; 400 if the name is not a tenant id or cannot be read. Both are problem+json.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "handlers destructure it")]
pub struct Tenant(pub TenantHandle);

impl<S> FromRequestParts<S> for Tenant
where
    Tenants: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Error> {
        let tenants = Tenants::from_ref(state);
        let tenant = tenants.identify.identify(head).await?;
        let handle = tenants.router.handle(&tenant)?;
        current_tenant::set(handle.tenant());
        Ok(Self(if tenants.creates {
            handle
        } else {
            handle.creating_nothing()
        }))
    }
}
