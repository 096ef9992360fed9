//! Whose database the code under way is about, for errors that do not say it themselves.
//!
//! A driver's error knows no tenant, and `?` turns it into ours in a place where none is at hand. So what calls the
//! application's code says around it whose that is.

use std::{future::Future, sync::OnceLock};

use tokio::task::futures::TaskLocalFuture;

use crate::tenant::TenantId;

tokio::task_local! {
    /// Not known at first where a request is served: its handler's arguments tell.
    static TENANT: OnceLock<TenantId>;
}

/// Runs `work`, all of which is about `tenant`.
pub(crate) fn of<F: Future>(tenant: &TenantId, work: F) -> Within<F> {
    TENANT.scope(OnceLock::from(tenant.clone()), work)
}

/// The same for what does not wait.
pub(crate) fn of_now<T>(tenant: &TenantId, work: impl FnOnce() -> T) -> T {
    TENANT.sync_scope(OnceLock::from(tenant.clone()), work)
}

/// Runs `work`, which will [note](note) whom it is about.
#[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "for requests"))]
pub(crate) fn unknown<F: Future>(work: F) -> Within<F> {
    TENANT.scope(OnceLock::new(), work)
}

/// Says that what goes on is about `tenant`, unless that was said before.
#[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "for requests"))]
pub(crate) fn note(tenant: &TenantId) {
    let _ = TENANT.try_with(|it| it.set(tenant.clone()));
}

/// The tenant that what goes on is about, if that is known.
pub(crate) fn now() -> Option<TenantId> {
    TENANT.try_with(|it| it.get().cloned()).ok().flatten()
}

/// Work in whose errors the tenant stands.
pub(crate) type Within<F> = TaskLocalFuture<OnceLock<TenantId>, F>;
