//! The sweep, which closes connections that have been idle or open for long enough.
//!
//! The sweep sends nothing but the end of a session, so it keeps no database awake. It closes idle connections while
//! their compute is still up: when a compute suspends, its connections all die together, and the next caller would get
//! a dead socket.

#[allow(
    clippy::disallowed_types,
    reason = "tokio's clock can be paused, which is no suspension"
)]
mod clocks;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::sleep;

use self::clocks::Clocks;
use super::{Pool, cache::PoolCache, idle_limit::idle_limit, shared::Shared};
use crate::{connection::Connection, sync::supervise::supervise, telemetry::stats::count};

/// Shortest suspension of the machine that makes its connections suspect.
const SUSPENDED: Duration = Duration::from_secs(3);

/// Sweeps, and makes room in the budget, until the router is gone.
pub(crate) async fn start(pools: Weak<PoolCache>) {
    supervise("sweep", || run(Weak::clone(&pools))).await;
}

async fn run(pools: Weak<PoolCache>) {
    let Some(shared) = pools.upgrade().map(|pools| Arc::clone(pools.shared())) else {
        return;
    };
    tokio::select! {
        biased;
        () = shared.life.terminated() => {}
        () = sweep(pools, &shared) => {}
        never = shared.dialer.budget.keep_room() => match never {},
    }
}

async fn sweep(pools: Weak<PoolCache>, shared: &Shared) {
    let mut clocks = Clocks::read();
    loop {
        let tick = shared.pace.tick();
        shared.pace.note_next(tick);
        tokio::select! {
            () = shared.pace.shortened.notified() => continue,
            () = sleep(tick) => {}
        }
        let Some(pools) = pools.upgrade() else {
            return;
        };
        let (pools, config) = (pools.all(), &shared.config);
        look_for_a_suspend(&mut clocks, &pools);
        let limits = pools.iter().map(|it| idle_limit(&it.endpoint(), config));
        shared.pace.set(limits);
        let next = shared.pace.tick();
        for pool in &pools {
            pool.sweep(next);
        }
        drop(pools);
        shared.dialer.budget.restore_reserve();
    }
}

/// Marks every connection as suspect if the machine was suspended since the last sweep.
fn look_for_a_suspend(clocks: &mut Clocks, pools: &[Arc<Pool>]) {
    let suspended = clocks.suspended_until(Clocks::read());
    if suspended >= SUSPENDED {
        tracing::info!(
            ?suspended,
            "the machine was suspended; every connection is checked before its next use"
        );
        for pool in pools {
            pool.suspect_silent_for(Duration::ZERO);
        }
    }
}

impl Pool {
    /// Closes connections that become due before the next sweep, and warns about connections that are held for too
    /// long.
    fn sweep(&self, tick: Duration) {
        let config = &self.shared.config;
        let mut state = self.state();
        let idle_limit = idle_limit(&state.endpoint, config).saturating_sub(tick);
        for status in &state.open {
            status.expire_after(config.max_lifetime.saturating_sub(tick));
        }
        let is_due =
            |it: &Connection| it.status.silent_for() >= idle_limit || it.status.is_expired();
        let due = state.take_idle(is_due);
        let held: Vec<_> = state
            .open
            .iter()
            .filter_map(|status| status.held_beyond(config.warn_held_after))
            .collect();
        let uses = state.take_use_delta();
        drop(state);
        if uses > 0 {
            self.shared.stats.busiest.add(&self.tenant, f64::from(uses));
        }
        for connection in due {
            count(&self.shared.stats.closed_idle);
            connection.close();
        }
        for (held, in_transaction) in held {
            count(&self.shared.stats.held_too_long);
            tracing::warn!(
                tenant = self.tenant.as_str(),
                ?held,
                in_transaction,
                "a connection is held for a long time; an open transaction keeps the database awake and billed"
            );
        }
    }
}
