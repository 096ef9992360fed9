//! An application's own table of tenants, which changes while it is read.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tenantry::{BoxError, Endpoint, RouterBuilder, TenantId, TenantRouter};
use tokio::time::sleep;

use super::Backend;

/// Where every tenant lives: at one host, in the database named after it. What is read is as of the beginning of a
/// look-up.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<Row>>);

#[derive(Default)]
struct Row {
    host: Option<&'static str>,
    takes: Duration,
    asked: u64,
}

impl Table {
    pub(crate) fn at(host: &'static str) -> Self {
        let table = Self::default();
        table.set(host);
        table
    }

    pub(crate) fn set(&self, host: impl Into<Option<&'static str>>) {
        self.0.lock().unwrap().host = host.into();
    }

    /// Says how long a look-up takes.
    pub(crate) fn takes(&self, time: Duration) {
        self.0.lock().unwrap().takes = time;
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        self.0.lock().unwrap().asked
    }

    /// A router that asks it, pointed to `backend`.
    pub(crate) fn router(&self, backend: &Backend) -> RouterBuilder {
        let table = self.clone();
        backend.at(TenantRouter::builder(move |_: TenantId| {
            let table = table.clone();
            async move { table.look_up().await }
        }))
    }

    async fn look_up(&self) -> Result<Option<Endpoint>, BoxError> {
        let (host, takes) = {
            let mut row = self.0.lock().unwrap();
            row.asked += 1;
            (row.host, row.takes)
        };
        sleep(takes).await;
        Ok(host.map(|host| Endpoint::postgres(host, host, "app", "secret").without_tls()))
    }
}
