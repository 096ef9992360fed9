//! The tenant that the running code works for, for errors that do not name it themselves.
//!
//! A driver's error has no tenant, and `?` converts it to tenantry's error in code that has none at hand. So tenantry
//! sets the tenant around its calls of the application's code.

use std::{future::Future, sync::OnceLock};

use tokio::task::futures::TaskLocalFuture;

use super::tenant::TenantId;

tokio::task_local! {
    /// The tenant of the scope. For a request it is unset at first, and an argument of the handler sets it.
    static TENANT: OnceLock<TenantId>;
}

/// Runs `work` for `tenant`.
pub(crate) fn scope<F: Future>(tenant: &TenantId, work: F) -> Scope<F> {
    TENANT.scope(OnceLock::from(tenant.clone()), work)
}

/// Calls `work` for `tenant`.
pub(crate) fn sync_scope<T>(tenant: &TenantId, work: impl FnOnce() -> T) -> T {
    TENANT.sync_scope(OnceLock::from(tenant.clone()), work)
}

/// Runs `work`, which may [set](set) the tenant.
#[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "for requests"))]
pub(crate) fn scope_unset<F: Future>(work: F) -> Scope<F> {
    TENANT.scope(OnceLock::new(), work)
}

/// Sets the tenant of the scope, unless it is set.
#[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "for requests"))]
pub(crate) fn set(tenant: &TenantId) {
    let _ = TENANT.try_with(|it| it.set(tenant.clone()));
}

/// Returns the tenant of the scope, if it is set.
pub(super) fn get() -> Option<TenantId> {
    TENANT.try_with(|it| it.get().cloned()).ok().flatten()
}

/// A future that runs in a scope.
pub(crate) type Scope<F> = TaskLocalFuture<OnceLock<TenantId>, F>;
