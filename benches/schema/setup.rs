//! An emulator, a catalog, and routers on both.

use std::time::Duration;

use tenantry::{
    BoxError, Fleet, KeyRing, Neon, Provisioner, Schema, TenantRouter,
    catalog::Postgres,
    emulator::{CatalogServer, Emulator},
};

/// The time of a wake besides Postgres's own start.
const WAKE: Duration = Duration::from_millis(350);

pub(crate) struct Setup {
    pub(crate) emulator: Emulator,
    catalog: CatalogServer,
}

impl Setup {
    /// A setup whose databases sleep after `window` without use.
    pub(crate) async fn new(window: Duration) -> Result<Self, BoxError> {
        let emulator = Emulator::builder()
            .operation_time(Duration::ZERO)
            .start_on_create(false)
            .wake_delay(WAKE)
            .suspend_after(window)
            .start()
            .await?;
        let catalog = CatalogServer::start().await?;
        Ok(Self { emulator, catalog })
    }

    pub(crate) fn neon(&self) -> Result<Neon, BoxError> {
        let neon = Neon::builder(self.emulator.api_key()).base_url(self.emulator.api_url());
        Ok(neon.requests_per_minute(100_000).build()?)
    }

    pub(crate) fn router(&self, schema: Schema) -> Result<TenantRouter, BoxError> {
        let catalog = Postgres::builder(self.catalog.url()).keys(KeyRing::new("bench", [7; 32]));
        let provisioner =
            Provisioner::new(catalog.build()?, self.neon()?, "bench").on_first_access();
        let router = TenantRouter::provisioning(provisioner)
            .schema(schema)
            .resolve(self.emulator.resolver())
            .root_certificate(self.emulator.root_certificate());
        Ok(router.build()?)
    }
}

pub(crate) fn fleet(router: &TenantRouter) -> Result<Fleet, BoxError> {
    Ok(router.fleet().ok_or("the router does not provision")?)
}
