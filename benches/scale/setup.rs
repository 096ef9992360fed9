//! A router that knows so many tenants.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tenantry::{BoxError, Endpoint, Provisioner, RouterBuilder, TenantRouter};
use tokio::time::{Instant, sleep};

use crate::{
    backend::Backend,
    catalog::{self, UnsharedCatalog, UnusedControlPlane},
    memory::AllocationCounter,
    support::resident,
    tenants::Tenants,
};

/// Preloads that are measured.
const PRELOADS: usize = 3;
/// Long enough for a connection to be used again in this run, whatever the other routers take until then: closing and
/// verifying what lies idle is not what is measured.
const LONG: Duration = Duration::from_secs(3600);
/// Enough for the tasks of a router that was closed to end.
const SETTLE: Duration = Duration::from_millis(100);

pub(crate) struct Setup {
    pub(crate) tenants: Tenants,
    pub(crate) backend: Backend,
    pub(crate) router: TenantRouter,
    /// All tenants as the least that any code needs to find one.
    pub(crate) map: HashMap<String, Arc<Endpoint>>,
    pub(crate) preload: Preload,
}

/// The time and the memory that it took to know all tenants.
pub(crate) struct Preload {
    pub(crate) took: Duration,
    /// Bytes of live allocations, and resident ones.
    pub(crate) heap: i64,
    pub(crate) resident: i64,
}

impl Setup {
    pub(crate) async fn new(
        known: usize,
        settings: impl Fn(RouterBuilder) -> RouterBuilder,
    ) -> Result<Self, BoxError> {
        let tenants = Tenants::new(known);
        let catalog = UnsharedCatalog::of(&tenants.ids).await?;
        let backend = Backend::default();
        let build = || {
            let provisioner = Provisioner::new(catalog.clone(), UnusedControlPlane, "bench");
            let builder = TenantRouter::provisioning(provisioner);
            let builder = builder.idle_after(LONG).verify_after(LONG);
            settings(backend.configure(builder)).build()
        };
        let router = build()?;
        let (heap, resident_before) = (AllocationCounter::new(), resident("self")?);
        let first = preload(&router, known).await?;
        let (heap, resident) = (heap.bytes_live(), resident("self")? - resident_before);
        let mut took = vec![first];
        while took.len() < PRELOADS {
            let another = build()?;
            took.push(preload(&another, known).await?);
            another.close().await;
            drop(another);
            sleep(SETTLE).await; // its tasks end, and what it knew is freed
        }
        took.sort();
        let listed = tenants.ids.iter().cloned();
        let map = listed.map(|id| (id.clone(), Arc::new(catalog::endpoint(&id))));
        Ok(Self {
            backend,
            router,
            map: map.collect(),
            preload: Preload {
                took: took[PRELOADS / 2],
                heap,
                resident,
            },
            tenants,
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "bytes of this machine's memory")]
impl Setup {
    pub(crate) fn known(&self) -> f64 {
        self.tenants.ids.len() as f64
    }

    /// Bytes of live allocations per tenant that is known.
    pub(crate) fn heap(&self) -> f64 {
        self.preload.heap as f64 / self.known()
    }

    /// Bytes in memory per tenant that is known. With few of them it was there before.
    pub(crate) fn resident(&self) -> f64 {
        self.preload.resident as f64 / self.known()
    }
}

impl Preload {
    pub(crate) fn ms(&self) -> f64 {
        self.took.as_secs_f64() * 1e3
    }
}

async fn preload(router: &TenantRouter, known: usize) -> Result<Duration, BoxError> {
    let start = Instant::now();
    let remembered = router.preload().await?;
    let took = start.elapsed();
    if remembered != known as u64 {
        return Err(format!("{remembered} of {known} tenants are remembered").into());
    }
    Ok(took)
}
