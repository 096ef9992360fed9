//! The look-up of a tenant's endpoint, for an app that has its own tenant table.

use std::{future::Future, pin::Pin};

use crate::model::{endpoint::Endpoint, error::BoxError, tenant::TenantId};

/// Finds the endpoint of a tenant. `None` means that the tenant does not exist.
///
/// A closure is enough:
///
/// ```no_run
/// use tenantry::{BoxError, Endpoint, TenantId, TenantRouter};
///
/// # #[tokio::main] async fn main() -> Result<(), BoxError> {
/// let router = TenantRouter::builder(|tenant: TenantId| async move {
///     let known = tenant.as_str() == "acme";
///     Ok(known.then(|| Endpoint::neon("ep-a-1.aws.neon.tech", "ep-a-1-pooler.aws.neon.tech", "app", "app", "…")))
/// })
/// .build()?;
/// # let _ = router; Ok(()) }
/// ```
pub trait Lookup: Send + Sync + 'static {
    /// Returns the endpoint of `tenant`.
    ///
    /// # Errors
    /// Any failure. Callers get it as the source of an `ErrorKind::Catalog`, so its text must hold no secret.
    ///
    /// # Cancel safety
    /// Called in a task of the router, which no caller can cancel. The call is dropped when its time is over
    /// ([`provision_timeout`](crate::RouterBuilder::provision_timeout) at the longest), or with the router's runtime.
    fn lookup(
        &self,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Option<Endpoint>, BoxError>> + Send;
}

impl<F, Fut> Lookup for F
where
    F: Fn(TenantId) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Endpoint>, BoxError>> + Send,
{
    fn lookup(
        &self,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Option<Endpoint>, BoxError>> + Send {
        self(tenant.clone())
    }
}

/// The future of a catalog's answer, with its type erased.
pub(super) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// [`Lookup`] with its type erased.
pub(crate) trait AnyLookup: Send + Sync {
    fn lookup<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Endpoint>>;
}

impl<L: Lookup> AnyLookup for L {
    fn lookup<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Endpoint>> {
        Box::pin(Lookup::lookup(self, tenant))
    }
}
