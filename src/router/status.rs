//! The status of a router, and its busiest and failing tenants.

use super::{Inner, TenantRouter};
use crate::{model::tenant::TenantId, telemetry::status::Status};

impl TenantRouter {
    /// Returns what the router holds now and has done so far. It sends nothing to any tenant's database. It looks at
    /// each pool, which takes a few microseconds per hundred pools.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Returns the tenants that asked for a connection most often lately, at most `most` of them, the busiest first,
    /// each with its calls per minute. Only calls that got a connection count; the next sweep adds them, within 5
    /// seconds.
    pub fn busiest(&self, most: usize) -> Vec<(TenantId, f64)> {
        self.inner.shared.stats.busiest.rates().into_most(most)
    }

    /// Returns the tenants whose calls failed most often lately, at most `most` of them, the worst first, each with its
    /// failures per minute. Only tenants that have a database are listed: other ids come from outside, and made-up ids
    /// must not fill the list.
    pub fn failing(&self, most: usize) -> Vec<(TenantId, f64)> {
        self.inner.shared.stats.failing.rates().into_most(most)
    }
}

impl Inner {
    pub(crate) fn status(&self) -> Status {
        let Self {
            pools,
            flights,
            shared,
            ..
        } = self;
        let (gets_warm, idle) = pools.reused_and_idle();
        let mut status = Status {
            pools: pools.len(),
            connections: shared.connections.len() as u64,
            idle: idle as u64,
            max_connections: shared.dialer.budget.limit() as u64,
            attempts: shared.attempts.len() as u64,
            budget_used: shared.dialer.budget.used() as u64,
            budget_waiting: shared.dialer.budget.waiting() as u64,
            waiting: shared.waiting.len() as u64,
            flights: flights.len() as u64,
            gets_warm,
            ..shared.stats.snapshot()
        };
        self.campaigns.fill(&mut status);
        if let Some(catalog) = shared.source.catalog() {
            catalog.stats.fill(&mut status);
        }
        status
    }
}

#[cfg(feature = "metrics")]
pub(super) use recording::start;

/// Copies the router's counters to the metrics.
#[cfg(feature = "metrics")]
mod recording {
    use std::{
        sync::{Arc, Weak},
        time::Duration,
    };

    use tokio::time::sleep;

    use super::{Inner, TenantRouter};
    use crate::{
        pool::shared::Shared,
        sync::{lock, supervise::supervise},
    };

    /// Interval at which the metrics are updated.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Name under which the metrics show all tenants that have no name of their own there. A tenant with this id is not
    /// shown by name.
    const OTHERS: &str = "_other";

    impl TenantRouter {
        /// Updates the metrics, which also happens every 5 seconds. Call this before they are read, if they are read on
        /// request. They go to the recorder that was installed when the router was built.
        pub fn record_metrics(&self) {
            self.inner.record();
        }
    }

    /// Starts the task that updates the metrics until the router is gone.
    pub(crate) fn start(inner: &Arc<Inner>) {
        let (shared, inner) = (Arc::clone(&inner.shared), Arc::downgrade(inner));
        let runtime = shared.runtime.clone();
        // Supervised, because the recorder is the application's code and may panic.
        runtime.spawn(supervise("metrics", move || {
            run(Arc::clone(&shared), Weak::clone(&inner))
        }));
    }

    async fn run(shared: Arc<Shared>, inner: Weak<Inner>) {
        loop {
            tokio::select! {
                () = shared.life.terminated() => return,
                () = sleep(INTERVAL) => {}
            }
            match inner.upgrade() {
                Some(inner) => inner.record(),
                None => return,
            }
        }
    }

    impl Inner {
        pub(crate) fn record(&self) {
            let shared = &self.shared;
            shared.stats.meters.record(&self.status());
            let most = shared.config.tenants_in_metrics;
            if most == 0 {
                return;
            }
            let (gets, errors) = (shared.stats.busiest.rates(), shared.stats.failing.rates());
            // In turns, so that neither list displaces the other.
            let (by_gets, by_errors) = (gets.most(most), errors.most(most));
            let mut wanted = Vec::new();
            for place in 0..most {
                for tenant in [by_gets.get(place), by_errors.get(place)]
                    .into_iter()
                    .flatten()
                {
                    if tenant.as_str() != OTHERS && !wanted.contains(tenant) {
                        wanted.push(tenant.clone());
                    }
                }
            }
            let mut shown = lock(&shared.shown);
            let (now, gone) = shown.choose(&wanted);
            for tenant in &gone {
                shared.stats.meters.tenant(tenant.as_str(), 0.0, 0.0);
            }
            let (mut other_gets, mut other_errors) = (gets.total, errors.total);
            for tenant in now {
                let (gets, errors) = (gets.of(tenant), errors.of(tenant));
                shared.stats.meters.tenant(tenant.as_str(), gets, errors);
                other_gets -= gets;
                other_errors -= errors;
            }
            let others = (other_gets.max(0.0), other_errors.max(0.0));
            shared.stats.meters.tenant(OTHERS, others.0, others.1);
        }
    }
}
