//! A tower layer that wakes a tenant as soon as the head of a request names it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::identify::Identify;
use crate::{model::current_tenant, router::TenantRouter};

/// A tower layer that begins to wake a request's tenant before the body is read, the client is authenticated, and the
/// handler runs. The wake overlaps with these steps: a handler that does something else for 300 ms answers after the
/// longer of the two.
///
/// The wake is a [`hint`](TenantRouter::hint), because the client is not authenticated yet. It stays within the budget
/// for needless wakes, is only for tenants that exist, and never costs another tenant a connection.
///
/// The layer also adds the tenant to errors: a driver's error that a handler turns into an [`Error`](crate::Error) by
/// `?` has the tenant that the extractor `Tenant` found.
///
/// In axum, add it with `route_layer`, which runs only for paths that have a route. With `layer` it would also run for
/// the fallback: a crawler's 404 on a tenant's host would wake that tenant. Put the routes that belong to no tenant
/// (`/status`, `/metrics`, `/healthz`) into a `Router` of their own, and merge it outside the layer. Otherwise, a
/// health check on a tenant's host wakes that tenant again and again. Of axum's layers, the one that is added last runs
/// first: add this layer after those that take time.
///
/// ```
/// use axum::{Json, Router, extract::State, routing::get};
/// use tenantry::{Error, Identify, InvalidConfig, Status, Tenant, TenantRouter, Tenants, WarmLayer};
///
/// async fn whoami(Tenant(tenant): Tenant) -> Result<String, Error> {
///     Ok(tenant.get().await?.query_one("SELECT current_database()", &[]).await?.get(0))
/// }
///
/// async fn status(State(router): State<TenantRouter>) -> Json<Status> {
///     Json(router.status())
/// }
///
/// fn app(router: TenantRouter) -> Result<Router, InvalidConfig> {
///     let identify = Identify::subdomain_of("example.com")?;
///     let early = WarmLayer::new(router.clone(), identify.clone());
///     let own = Router::new().route("/status", get(status)).with_state(router.clone());
///     let tenants = Tenants::new(router, identify);
///     Ok(Router::new().route("/whoami", get(whoami)).route_layer(early).with_state(tenants).merge(own))
/// }
/// # let _ = app;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is applied to a service"]
pub struct WarmLayer {
    router: TenantRouter,
    identify: Identify,
}

impl WarmLayer {
    /// Creates a layer that warms the tenants that requests name. Ways of `identify` that need a lookup are not tried,
    /// nor are the ways after them. A request that names a tenant in a way that cannot be read warms none.
    pub fn new(router: TenantRouter, identify: Identify) -> Self {
        Self { router, identify }
    }
}

impl<S> Layer<S> for WarmLayer {
    type Service = Warming<S>;

    fn layer(&self, inner: S) -> Warming<S> {
        let layer = self.clone();
        Warming { inner, layer }
    }
}

/// The service that [`WarmLayer`] creates.
#[derive(Clone, Debug)]
pub struct Warming<S> {
    inner: S,
    layer: WarmLayer,
}

impl<S, B> Service<Request<B>> for Warming<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = WarmingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        if let Some(tenant) = self.layer.identify.by_head(&head) {
            self.layer.router.hint(&tenant);
        }
        let request = Request::from_parts(head, body);
        WarmingFuture {
            inner: current_tenant::scope_unset(self.inner.call(request)),
        }
    }
}

pin_project! {
    /// The future of the service that [`WarmLayer`] creates.
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct WarmingFuture<F> {
        #[pin]
        inner: current_tenant::Scope<F>,
    }
}

impl<F: Future> Future for WarmingFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().inner.poll(context)
    }
}

impl<F> fmt::Debug for WarmingFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WarmingFuture").finish_non_exhaustive()
    }
}
