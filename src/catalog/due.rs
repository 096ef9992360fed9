//! The tenants whose records are to be read again in the background.

use std::{collections::HashSet, mem, sync::Mutex};

use tokio::sync::Notify;

use crate::{retry::lock, tenant::TenantId};

/// More than this are not noted; their next use notes them again.
const MOST: usize = 10_000;

/// Each tenant once, however often it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Due {
    // Held for one insertion, or to take all.
    tenants: Mutex<HashSet<TenantId>>,
    added: Notify,
}

impl Due {
    pub(crate) fn add(&self, tenant: &TenantId) {
        let mut tenants = lock(&self.tenants);
        if tenants.len() < MOST && !tenants.contains(tenant) {
            tenants.insert(tenant.clone());
            self.added.notify_one();
        }
    }

    /// All that are due, at least one.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub(crate) async fn take(&self) -> HashSet<TenantId> {
        loop {
            let due = mem::take(&mut *lock(&self.tenants));
            if !due.is_empty() {
                return due;
            }
            self.added.notified().await;
        }
    }
}
