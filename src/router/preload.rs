//! Reads the catalog ahead of the first use of its tenants.

use super::TenantRouter;
use crate::{model::error::Error, provision::source::Source};

/// Records per call of the catalog.
const PAGE: usize = 1000;

impl TenantRouter {
    /// Reads from the catalog where all tenants live. Their first use then needs no call of the catalog, and works
    /// while the catalog is down. Returns the number of tenants remembered, at most
    /// [`known_tenants`](crate::RouterBuilder::known_tenants). Call this after start-up, if at all. It wakes no
    /// database.
    ///
    /// Right after the start, the call first waits until the router has asked the catalog for changes, for the time of
    /// one call at most. A tenant that changes during the call is not remembered; its first use reads the catalog. A
    /// tenant whose [password is read from the control plane](crate::Provisioner::passwords_from_control_plane) is not
    /// remembered either, as that would take a call for each. On a router with an application's own `Lookup`, this does
    /// nothing and returns 0.
    ///
    /// # Errors
    /// `ErrorKind::Catalog` if the catalog fails, and `ErrorKind::Closed`. Tenants that were read before the error stay
    /// remembered. Each page of 1000 records has [`catalog_timeout`](crate::RouterBuilder::catalog_timeout).
    ///
    /// # Cancel safety
    /// Dropping the future keeps the tenants that were read.
    pub async fn preload(&self) -> Result<u64, Error> {
        let shared = &self.inner.shared;
        let Source::Provisioning(provisioning) = &shared.source else {
            return Ok(0);
        };
        tokio::select! {
            biased;
            () = shared.life.terminated() => return Err(Error::closed()),
            // Otherwise it would make all that is read here stale.
            () = provisioning.catalog.first_changes() => {}
        }
        let (mut after, mut remembered) = (None, 0);
        while remembered < provisioning.catalog.most_known() {
            let page = tokio::select! {
                biased;
                () = shared.life.terminated() => return Err(Error::closed()),
                page = provisioning.preload(after.as_ref(), PAGE) => page,
            };
            let (more, last) = page?;
            remembered += more;
            if last.is_none() {
                break;
            }
            after = last;
            tracing::debug!(remembered, "preload");
        }
        Ok(remembered)
    }
}
