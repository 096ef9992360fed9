//! Reading the catalog before anybody asks.

use super::TenantRouter;
use crate::{model::error::Error, provision::source::Source};

/// Records that are read at once.
const PAGE: usize = 1000;

impl TenantRouter {
    /// Reads from the catalog where all tenants live, so that their first use asks nobody, and so that they are served
    /// also if the catalog is down by then. Returns how many tenants are remembered by it, at most
    /// [`known_tenants`](crate::RouterBuilder::known_tenants). To be called after start-up, if at all; wakes nobody.
    ///
    /// None is remembered that changes meanwhile; its first use asks for it. Does nothing and returns 0 on a router with
    /// an application's own `Lookup`, and where [passwords are read from the control
    /// plane](crate::Provisioner::passwords_from_control_plane), as that would take a call for each.
    ///
    /// # Errors
    /// `ErrorKind::Catalog` if the catalog fails, and `ErrorKind::Closed`; what was read by then is kept. Each page of
    /// 1000 has [`catalog_timeout`](crate::RouterBuilder::catalog_timeout).
    ///
    /// # Cancel safety
    /// Dropping the future keeps what was read.
    pub async fn preload(&self) -> Result<u64, Error> {
        let shared = &self.inner.shared;
        let Source::Provisioning(provisioning) = &shared.source else {
            return Ok(0);
        };
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
