//! Waking a tenant as soon as the head of a request names it: a tower layer.

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

/// Begins to wake a request's tenant before its body is read, before it is authenticated, and before the handler runs. What
/// these take is then not added to the wake: a handler that does something else for 300 ms answers after the longer of the
/// two.
///
/// It is a [`hint`](TenantRouter::hint), because nobody is authenticated yet: within the budget for needless wakes, for
/// tenants that exist, and never at the cost of another's connection.
///
/// It also lets errors know whose request it was: a driver's error that a handler turns into an [`Error`](crate::Error) by
/// `?` has the tenant that the extractor `Tenant` found.
///
/// In axum it belongs into `route_layer`, which runs for paths that have a route. With `layer` it would also run for the
/// fallback: a crawler's 404 on a tenant's host would wake that tenant. What is no tenant's (`/status`, `/metrics`,
/// `/healthz`) goes into a `Router` of its own, merged outside the layer, or a health check that comes by a tenant's host
/// wakes it again and again. Of axum's layers the one that is added last runs first: add this after those that take time.
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
#[must_use = "a layer does nothing until a service has it"]
pub struct WarmLayer {
    router: TenantRouter,
    identify: Identify,
}

impl WarmLayer {
    /// Warms the tenants that requests name. Ways of `identify` that have to ask are not tried, nor those after them; a
    /// request that names a tenant in a way that cannot be read warms none.
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

/// The service that [`WarmLayer`] makes.
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
    /// The answer of the service that [`WarmLayer`] makes.
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
