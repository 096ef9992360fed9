//! The tenant of a request, as an argument of an axum handler.

use axum::extract::{FromRef, FromRequestParts};
use http::request::Parts;

use super::identify::Identify;
use crate::{
    model::{current_tenant, error::Error},
    router::{TenantRouter, handle::TenantHandle},
};

/// What [`Tenant`] is extracted by: the router, and how a request names its tenant. The application's state, or a part of
/// it (`FromRef`).
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
#[must_use = "it extracts nothing until it is the application's state"]
pub struct Tenants {
    router: TenantRouter,
    identify: Identify,
    creates: bool,
}

impl Tenants {
    /// Finds tenants by `identify`, and their connections by `router`. Creates no database, whatever the router's policy.
    pub fn new(router: TenantRouter, identify: Identify) -> Self {
        Self {
            router,
            identify,
            creates: false,
        }
    }

    /// Lets requests create the database of a tenant that has none, as far as the provisioner's policy says so
    /// ([`Provisioner::decide`](crate::Provisioner::decide),
    /// [`on_first_access`](crate::Provisioner::on_first_access)). By default a request only finds, and finishes what was
    /// begun: an id that `identify` takes from a request was typed by a client, and each would be a project that you pay for.
    pub fn on_first_access(mut self) -> Self {
        self.creates = true;
        self
    }

    /// The router.
    pub fn router(&self) -> &TenantRouter {
        &self.router
    }
}

/// The tenant that a request is for: an axum extractor. Costs no I/O, unless the way it is identified by has to ask.
///
/// It is a handle and not a connection: that would be held through the whole handler, also while it waits for something
/// else. A tenant that does not exist is told by the handle's first use, which is a 404 too; no call of the handle creates
/// it, unless [`Tenants::on_first_access`] is set.
///
/// # Errors
/// 404 if the request names nobody; 400 if what it names is no tenant id, or cannot be read; each as problem+json.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "handlers take it apart")]
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
