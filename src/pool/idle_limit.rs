//! The idle limit of connections, and the interval of the sweep that enforces it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    model::{
        config::Config,
        endpoint::{DEFAULT_SUSPEND_WINDOW, Endpoint},
    },
    sync::{
        clock::{Clock, millis},
        lock,
    },
};

/// Share of the suspend window after which an idle connection is closed, in fifths.
const FIFTHS_OF_WINDOW: u32 = 4;

/// Number of sweeps within the shortest limit.
const SWEEPS: u32 = 10;

const SHORTEST_TICK: Duration = Duration::from_millis(50);

const LONGEST_TICK: Duration = Duration::from_secs(5);

/// Delay of a sweep that shows that the runtime was not driven.
const OVERDUE: Duration = Duration::from_secs(1);

/// The interval of the sweep: short enough for the shortest suspend window of the tenants that have a pool.
#[derive(Debug)]
pub(super) struct Pace {
    /// Shortest limit in the settings.
    usual: Duration,
    // Locked for a few instructions.
    shortest: Mutex<Shortest>,
    pub(super) shortened: Notify,
    clock: Clock,
    /// Milliseconds by `clock` after which the next sweep counts as overdue.
    overdue: AtomicU64,
}

/// The shortest time after which any connection is closed.
#[derive(Debug)]
struct Shortest {
    now: Duration,
    /// Shortest limit of the endpoints seen since the last sweep, whose pools may not be swept yet.
    seen: Duration,
}

impl Pace {
    pub(super) fn new(config: &Config, clock: Clock) -> Self {
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
            clock,
            overdue: AtomicU64::new(u64::MAX),
        }
    }

    /// Returns whether the runtime was not driven for a while, so that sockets may have ended without their tasks
    /// knowing. `now`: milliseconds by the clock of the router.
    #[inline]
    pub(super) fn is_sweep_overdue(&self, now: u64) -> bool {
        now > self.overdue.load(Relaxed)
    }

    /// Records that the next sweep is due in `tick`.
    pub(super) fn note_next(&self, tick: Duration) {
        let now = self.clock.now().millis();
        self.overdue.store(now + millis(tick + OVERDUE), Relaxed);
    }

    /// Shortens the interval if the idle limit of `endpoint` requires it.
    pub(super) fn shorten_to(&self, endpoint: &Endpoint, config: &Config) {
        let limit = idle_limit(endpoint, config);
        let mut shortest = lock(&self.shortest);
        shortest.seen = shortest.seen.min(limit);
        if limit < shortest.now {
            shortest.now = limit;
            self.shortened.notify_one();
        }
    }

    /// Sets the shortest limit from `limits`, those of all pools, and from the endpoints seen since the last call.
    pub(super) fn set(&self, limits: impl Iterator<Item = Duration>) {
        let present = limits.min().unwrap_or(self.usual);
        let mut shortest = lock(&self.shortest);
        shortest.now = present.min(shortest.seen);
        shortest.seen = self.usual;
    }

    pub(super) fn tick(&self) -> Duration {
        let shortest = lock(&self.shortest).now;
        (shortest / SWEEPS).clamp(SHORTEST_TICK, LONGEST_TICK)
    }
}

/// Returns the idle time after which a connection to `endpoint` is closed: before its compute sleeps, never at that
/// moment.
pub(super) fn idle_limit(endpoint: &Endpoint, config: &Config) -> Duration {
    let window = match endpoint.suspend_window {
        Some(Duration::ZERO) => DEFAULT_SUSPEND_WINDOW, // the meaning of zero in Neon's API
        window => window.unwrap_or(Duration::MAX),
    };
    config.idle_after.min(window / 5 * FIFTHS_OF_WINDOW)
}
