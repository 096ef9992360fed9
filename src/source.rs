//! How a router learns where a tenant lives: from the application's own table, or from records that it keeps itself.

use crate::{
    endpoint::Endpoint,
    error::{BoxError, Error, ErrorKind, Stage},
    lookup::AnyLookup,
    provision::{Demand, Provisioning},
    retry::Progress,
    stats::{Stats, count},
    tenant::TenantId,
};

/// How the router learns where a tenant lives.
pub(crate) enum Source {
    /// From the application's own table.
    Lookup(Box<dyn AnyLookup>),
    /// From records that it keeps itself, creating what is missing.
    Provisioning(Box<Provisioning>),
}

/// Where a tenant lives, and how much that is worth.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) endpoint: Endpoint,
    /// Whether it comes from where the truth is, so that asking again would say the same.
    pub(crate) fresh: bool,
    /// Whether its database was created or adopted just now.
    pub(crate) created: bool,
}

impl Source {
    /// Where `tenant` lives, if that is known. Creates nothing.
    pub(crate) async fn lookup(
        &self,
        tenant: &TenantId,
        stats: &Stats,
    ) -> Result<Option<Located>, Error> {
        count(&stats.lookups);
        let (known, fresh) = match self {
            Self::Lookup(lookup) => (lookup.lookup(tenant).await.map_err(lookup_failed), true),
            // Records hold what Neon said once; the truth is there.
            Self::Provisioning(provisioning) => (provisioning.lookup(tenant).await, false),
        };
        let known = known?;
        Ok(known.map(|endpoint| Located {
            endpoint,
            fresh,
            created: false,
        }))
    }

    /// Where `tenant` lives, after creating its database if there is none and that is allowed.
    pub(crate) async fn locate(
        &self,
        tenant: &TenantId,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Located, Error> {
        match (self.lookup(tenant, stats).await?, self) {
            (Some(known), _) => Ok(known),
            (None, Self::Lookup(_)) => Err(unknown()),
            (None, Self::Provisioning(provisioning)) => {
                let endpoint = provisioning
                    .provision(tenant, &Demand::Access, progress, stats)
                    .await?;
                Ok(Located {
                    endpoint,
                    fresh: true,
                    created: true,
                })
            }
        }
    }

    /// Where `tenant` lives now, asked because it cannot be reached at `known`. Creates nothing.
    pub(crate) async fn relocate(
        &self,
        tenant: &TenantId,
        known: &Endpoint,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<Option<Endpoint>, Error> {
        let now = self.lookup(tenant, stats).await?.map(|it| it.endpoint);
        match (now, self) {
            (Some(same), Self::Provisioning(provisioning)) if same == *known => {
                provisioning.refresh(tenant, progress).await
            }
            (None, Self::Lookup(_)) => Err(unknown()),
            (now, _) => Ok(now),
        }
    }
}

fn unknown() -> Error {
    let message = "no such tenant; its entry is missing in the catalog";
    Error::new(ErrorKind::UnknownTenant, message).with_stage(Stage::Lookup)
}

fn lookup_failed(err: BoxError) -> Error {
    Error::new(ErrorKind::Catalog, "looking the tenant up failed")
        .with_stage(Stage::Lookup)
        .with_source(err)
}
