//! What all pools of a router share.

use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{idle_limit::Pace, refusals::Refusals};
use crate::{
    connection::dial::Dialer,
    limits::{callers::CallerLimit, hints::HintBudget},
    model::{config::Config, tenant::TenantId},
    provision::source::Source,
    sync::shutdown::Shutdown,
    telemetry::{stats::Stats, top::Shown},
};

/// Refusals outlive the pools they come from, so there is room for more of them.
const REFUSALS_PER_POOL: u64 = 10;

/// What all pools of a router share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) source: Source,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) refusals: Refusals,
    pub(crate) hints: Arc<HintBudget>,
    pub(crate) waiting: Arc<CallerLimit<TenantId>>,
    pub(crate) pace: Pace,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    // Which tenants metrics show by name. Held while they are told.
    pub(crate) shown: Mutex<Shown<TenantId>>,
    pub(crate) stats: Stats,
    pub(crate) life: Arc<Shutdown>,
    pub(crate) runtime: Handle,
    /// The task of every open connection.
    pub(crate) connections: TaskTracker,
    /// What the fleet is at.
    pub(crate) jobs: TaskTracker,
    /// The task of every attempt to open one.
    pub(crate) attempts: TaskTracker,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        source: Source,
        dialer: Arc<Dialer>,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            refusals: Refusals::new(config.max_pools.saturating_mul(REFUSALS_PER_POOL)),
            hints: HintBudget::new(config.hints_per_minute),
            waiting: CallerLimit::new(config.waiting_per_tenant, config.waiting_callers),
            pace: Pace::new(&config),
            shown: Mutex::new(Shown::new(config.tenants_in_metrics)),
            source,
            dialer,
            stats: Stats::new(&config.name),
            life: Arc::default(),
            runtime,
            connections: TaskTracker::new(),
            attempts: TaskTracker::new(),
            jobs: TaskTracker::new(),
            config,
        })
    }
}
