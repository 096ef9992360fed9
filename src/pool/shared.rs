//! The state that all pools of a router share.

use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{idle_limit::Pace, refusals::Refusals};
use crate::{
    connection::dial::Dialer,
    limits::{callers::CallerLimit, hints::HintBudget},
    model::{config::Config, tenant::TenantId},
    provision::source::Source,
    sync::{
        clock::{Clock, millis},
        shutdown::Shutdown,
    },
    telemetry::{stats::Stats, top::Shown},
};

/// Room for refusals per pool: they outlive the pools that they come from.
const REFUSALS_PER_POOL: u64 = 10;

/// The state that all pools of a router share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) source: Source,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) refusals: Refusals,
    pub(crate) hints: Arc<HintBudget>,
    pub(crate) waiting: CallerLimit<TenantId>,
    /// The interval of the sweep. A late sweep shows that the runtime was not driven.
    pub(super) pace: Pace,
    pub(crate) clock: Clock,
    /// Milliseconds of silence after which an idle connection is pinged before it is used.
    pub(crate) verify_after: u64,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    // The tenants that metrics show by name. Locked while metrics are emitted.
    pub(crate) shown: Mutex<Shown<TenantId>>,
    pub(crate) stats: Stats,
    pub(crate) life: Arc<Shutdown>,
    pub(crate) runtime: Handle,
    /// Tasks of the open connections.
    pub(crate) connections: TaskTracker,
    /// Jobs of the fleet in progress.
    pub(crate) jobs: TaskTracker,
    /// Tasks of the attempts to open a connection.
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
            pace: Pace::new(&config, dialer.clock),
            clock: dialer.clock,
            verify_after: millis(config.verify_after),
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
