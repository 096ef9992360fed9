//! The two clocks of a machine, compared to see whether it was suspended.
//!
//! On Linux and macOS the monotonic clock stands still while the machine is suspended, and the wall clock goes on. A
//! connection that was used recently by the monotonic clock may then be hours old, and dead.

use std::{
    mem,
    time::{Duration, Instant, SystemTime},
};

/// An instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    wall: SystemTime,
    monotonic: Instant,
}

impl Clocks {
    pub(super) fn read() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
        }
    }

    /// Returns for how long the machine was suspended between `self` and `now`, and sets `self` to `now`. Setting the
    /// wall clock in between falsifies the result.
    pub(super) fn suspended_until(&mut self, now: Self) -> Duration {
        let Self { wall, monotonic } = mem::replace(self, now);
        let passed = now.wall.duration_since(wall).unwrap_or_default();
        passed.saturating_sub(now.monotonic.duration_since(monotonic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns `start` moved by the given seconds on each clock.
    fn later(start: Clocks, wall: i32, monotonic: u32) -> Clocks {
        let by = wall.unsigned_abs() * SECOND;
        let wall = if wall < 0 {
            start.wall - by
        } else {
            start.wall + by
        };
        let monotonic = start.monotonic + monotonic * SECOND;
        Clocks { wall, monotonic }
    }

    #[test]
    fn a_machine_was_suspended_for_as_long_as_only_the_wall_clock_went_on() {
        let start = Clocks::read();
        for (wall, monotonic, suspended) in [(5, 5, 0), (3605, 5, 3600), (5, 3605, 0), (-60, 5, 0)]
        {
            let mut clocks = start;
            let now = later(start, wall, monotonic);
            assert_eq!(clocks.suspended_until(now), suspended * SECOND);
            let after = later(now, 5, 5);
            assert_eq!(clocks.suspended_until(after), Duration::ZERO, "told once");
        }
    }
}
