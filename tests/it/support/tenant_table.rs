//! An application's own table of tenants, which changes while it is read.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{BoxError, Endpoint, RouterBuilder, TenantId, TenantRouter};
use tokio::time::sleep;

use super::Backend;

/// A table of tenants that all live at one host, in the database named after it. A look-up returns what the table held
/// when it began.
#[derive(Clone, Default)]
pub(crate) struct TenantTable(Arc<Mutex<Row>>);

#[derive(Default)]
struct Row {
    host: Option<&'static str>,
    delay: Duration,
    lookups: u64,
}

impl TenantTable {
    pub(crate) fn with_host(host: &'static str) -> Self {
        let table = Self::default();
        table.set(host);
        table
    }

    pub(crate) fn set(&self, host: impl Into<Option<&'static str>>) {
        self.0.lock().unwrap().host = host.into();
    }

    /// Says how long a look-up takes.
    pub(crate) fn set_delay(&self, time: Duration) {
        self.0.lock().unwrap().delay = time;
    }

    /// Returns how often it was asked.
    pub(crate) fn lookups(&self) -> u64 {
        self.0.lock().unwrap().lookups
    }

    /// A router that asks it, pointed to `backend`.
    pub(crate) fn router(&self, backend: &Backend) -> RouterBuilder {
        let table = self.clone();
        backend.configure(TenantRouter::builder(move |_: TenantId| {
            let table = table.clone();
            async move { table.look_up().await }
        }))
    }

    async fn look_up(&self) -> Result<Option<Endpoint>, BoxError> {
        let (host, delay) = {
            let mut row = self.0.lock().unwrap();
            row.lookups += 1;
            (row.host, row.delay)
        };
        sleep(delay).await;
        Ok(host.map(|host| Endpoint::postgres(host, host, "app", "secret").without_tls()))
    }
}
