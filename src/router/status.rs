//! What an operator sees: the router's status, and who keeps it busy.

use super::{Inner, TenantRouter};
use crate::{model::tenant::TenantId, telemetry::status::Status};

impl TenantRouter {
    /// What the router holds now and has done so far. Asks no tenant anything. Costs a look at each pool, so a few
    /// microseconds per hundred of them.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// The tenants that asked for a connection most often lately, at most `most` of them, with how often they do so in a minute;
    /// the busiest first. Calls that got a connection are counted, by the next sweep, within 5 seconds.
    pub fn busiest(&self, most: usize) -> Vec<(TenantId, f64)> {
        self.inner.shared.stats.busiest.rates().into_most(most)
    }

    /// The tenants whose calls failed most often lately, at most `most` of them, with how many do so in a minute; the worst
    /// first. Only of tenants that have a database: other ids come from outside, and whoever makes them up must not fill the list.
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
        if let Some(catalog) = shared.source.catalog() {
            catalog.stats.fill(&mut status);
        }
        status
    }
}

#[cfg(feature = "metrics")]
pub(crate) use recording::start;

/// Telling the metrics what is counted elsewhere.
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

    /// How often the metrics are brought up to date by themselves.
    const INTERVAL: Duration = Duration::from_secs(5);
    /// As whom all those tenants are shown that are not shown by name. No tenant of that id is shown by name.
    const OTHERS: &str = "_other";

    impl TenantRouter {
        /// Brings the metrics up to date, which is done every 5 seconds anyway: to be called before they are read, where they
        /// are read by request. They go to the recorder that was installed when the router was built.
        pub fn record_metrics(&self) {
            self.inner.record();
        }
    }

    /// Brings the metrics up to date from time to time, until the router is gone.
    pub(crate) fn start(inner: &Arc<Inner>) {
        let (shared, inner) = (Arc::clone(&inner.shared), Arc::downgrade(inner));
        let runtime = shared.runtime.clone();
        // What records is the application's.
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
            // In turns, so that neither list keeps out the other.
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
