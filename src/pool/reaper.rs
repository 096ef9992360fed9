//! Closing what has lain idle or been open for long enough.
//!
//! The sweep sends nothing but goodbyes, so it keeps no database awake. It closes idle connections while their compute
//! is still up: those that are left when it falls asleep all die together, and the next caller meets a dead socket.

#[allow(
    clippy::disallowed_types,
    reason = "tokio's clock can be paused, which is no suspension"
)]
mod clocks;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{Pool, cache::Pools, lease::Connection, shared::Shared};
use crate::{
    model::{
        config::Config,
        endpoint::{DEFAULT_SUSPEND_WINDOW, Endpoint},
    },
    sync::{retry::lock, supervise::supervise},
    telemetry::stats::count,
};

use clocks::Clocks;

/// Share of the suspend window after which an idle connection is closed, in fifths.
const FIFTHS_OF_WINDOW: u32 = 4;
/// How many sweeps there are in the shortest time after which anything is closed.
const SWEEPS: u32 = 10;
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const LONGEST_TICK: Duration = Duration::from_secs(5);
/// A sweep that is later than this means that the runtime was not driven.
const OVERDUE: Duration = Duration::from_secs(1);
/// Shortest suspension of the machine that makes its connections suspect.
const SUSPENDED: Duration = Duration::from_secs(3);

/// How often the sweep runs: often enough for the shortest suspend window of the tenants that have a pool.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The shortest time after which the settings have anything closed.
    usual: Duration,
    // Held for a few instructions.
    shortest: Mutex<Shortest>,
    shortened: Notify,
    began: Instant,
    /// Whole seconds from `began` after which the next sweep counts as overdue.
    overdue: AtomicU64,
}

/// The shortest time after which anything is closed.
#[derive(Debug)]
struct Shortest {
    now: Duration,
    /// Of what was seen since the last sweep: its pool may not be among those that are swept yet.
    seen: Duration,
}

impl Pace {
    pub(crate) fn new(config: &Config) -> Self {
        let usual = config
            .idle_after
            .min(config.max_lifetime)
            .min(config.warn_held_after);
        Self {
            usual,
            shortest: Mutex::new(Shortest {
                now: usual,
                seen: usual,
            }),
            shortened: Notify::new(),
            began: Instant::now(),
            overdue: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether the runtime was not driven for a while, so that sockets may have ended without their tasks knowing.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        now.duration_since(self.began).as_secs() > self.overdue.load(Relaxed)
    }

    /// Notes that the next sweep comes in `tick`.
    fn note_next(&self, tick: Duration) {
        let overdue = self.began.elapsed() + tick + OVERDUE;
        self.overdue.store(overdue.as_secs(), Relaxed);
    }

    /// Takes note that connections to `endpoint` will be closed in time.
    pub(crate) fn keep_up_with(&self, endpoint: &Endpoint, config: &Config) {
        let limit = idle_limit(endpoint, config);
        let mut shortest = lock(&self.shortest);
        shortest.seen = shortest.seen.min(limit);
        if limit < shortest.now {
            shortest.now = limit;
            self.shortened.notify_one();
        }
    }

    /// Goes by `limits`, those of all pools there are, and by what was seen since it was last set.
    fn set(&self, limits: impl Iterator<Item = Duration>) {
        let present = limits.min().unwrap_or(self.usual);
        let mut shortest = lock(&self.shortest);
        shortest.now = present.min(shortest.seen);
        shortest.seen = self.usual;
    }

    fn tick(&self) -> Duration {
        let shortest = lock(&self.shortest).now;
        (shortest / SWEEPS).clamp(SHORTEST_TICK, LONGEST_TICK)
    }
}

/// Idle time after which a connection to `endpoint` is closed: before its compute sleeps, never at that moment.
fn idle_limit(endpoint: &Endpoint, config: &Config) -> Duration {
    let window = match endpoint.suspend_window {
        Some(Duration::ZERO) => DEFAULT_SUSPEND_WINDOW, // as Neon's API has it
        window => window.unwrap_or(Duration::MAX),
    };
    config.idle_after.min(window / 5 * FIFTHS_OF_WINDOW)
}

/// Sweeps, and makes room in the budget, until the router is gone.
pub(crate) async fn start(pools: Weak<Pools>) {
    supervise("sweep", || run(Weak::clone(&pools))).await;
}

async fn run(pools: Weak<Pools>) {
    let Some(shared) = pools.upgrade().map(|pools| Arc::clone(pools.shared())) else {
        return;
    };
    tokio::select! {
        biased;
        () = shared.life.ended() => {}
        () = sweep(pools, &shared) => {}
        never = shared.dialer.budget.keep_room() => match never {},
    }
}

async fn sweep(pools: Weak<Pools>, shared: &Shared) {
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

/// Asks every connection before it is used, if the machine was suspended since the last look.
fn look_for_a_suspend(clocks: &mut Clocks, pools: &[Arc<Pool>]) {
    let suspended = clocks.suspended_until(Clocks::read());
    if suspended >= SUSPENDED {
        tracing::info!(
            ?suspended,
            "the machine was suspended; every connection is asked before it is used"
        );
        for pool in pools {
            pool.suspect_silent_for(Duration::ZERO);
        }
    }
}

impl Pool {
    /// Closes what will be due before the next sweep, and warns of what is held for too long.
    fn sweep(&self, tick: Duration) {
        let config = &self.shared.config;
        let mut state = self.state();
        let idle_limit = idle_limit(&state.endpoint, config).saturating_sub(tick);
        for watch in &state.open {
            watch.expire_after(config.max_lifetime.saturating_sub(tick));
        }
        let is_due = |it: &Connection| it.watch.silent_for() >= idle_limit || it.watch.is_expired();
        let due = state.take_idle(is_due);
        let held: Vec<_> = state
            .open
            .iter()
            .filter_map(|watch| watch.held_beyond(config.warn_held_after))
            .collect();
        let news = state.news_of_use();
        drop(state);
        if news > 0 {
            self.shared.stats.busiest.add(&self.tenant, f64::from(news));
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
                "a connection is held for long; an open transaction keeps the database awake and billed"
            );
        }
    }
}
