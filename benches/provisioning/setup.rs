//! An emulator with slow calls, a catalog, and a router on both.

use std::time::Duration;

use tenantry::{
    BoxError, KeyRing, Neon, Provisioner, TenantRouter,
    catalog::Postgres,
    emulator::{ApiFault, CatalogServer, Emulator},
};

use crate::counting_catalog::CountingCatalog;

/// The time of each call of the API.
pub(crate) const CALL: Duration = Duration::from_millis(100);

pub(crate) struct Setup {
    pub(crate) emulator: Emulator,
    pub(crate) counting_catalog: CountingCatalog,
    pub(crate) router: TenantRouter,
    // The catalog's, as long as the router asks it.
    _catalog: CatalogServer,
}

impl Setup {
    pub(crate) async fn new() -> Result<Self, BoxError> {
        let emulator = Emulator::builder()
            .operation_time(Duration::ZERO)
            .start_on_create(false)
            .api_limits(700, 40)
            .start()
            .await?;
        let milliseconds = u64::try_from(CALL.as_millis())?;
        emulator.fail_api("", ApiFault::Slow { milliseconds }, u32::MAX);
        let catalog = CatalogServer::start().await?;
        let counting_catalog =
            Postgres::builder(catalog.url()).keys(KeyRing::new("bench", [7; 32]));
        let counting_catalog = CountingCatalog::new(counting_catalog.build()?);
        let neon = Neon::builder(emulator.api_key()).base_url(emulator.api_url());
        let provisioner =
            Provisioner::new(counting_catalog.clone(), neon.build()?, "bench").on_first_access();
        let router = TenantRouter::provisioning(provisioner)
            .resolve(emulator.resolver())
            .root_certificate(emulator.root_certificate())
            .build()?;
        Ok(Self {
            emulator,
            counting_catalog,
            router,
            _catalog: catalog,
        })
    }
}
