//! The clock of a router: numbers, which are cheaper to compare than instants.

use std::time::Duration;

use tokio::time::Instant;

/// The time since a router was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
}

/// A reading of the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    /// The nanoseconds until then by the clock of the router.
    pub(crate) nanos: u64,
}

impl Moment {
    /// Returns the whole milliseconds until then by the clock of the router.
    #[inline]
    pub(crate) fn millis(self) -> u64 {
        self.nanos / 1_000_000
    }

    /// Returns the time since `earlier`, by the same clock.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

impl Clock {
    pub(crate) fn start() -> Self {
        let began = Instant::now();
        Self { began }
    }

    /// Reads the clock.
    #[inline]
    pub(crate) fn now(self) -> Moment {
        let instant = Instant::now();
        let nanos = self.nanos_at(instant);
        Moment { instant, nanos }
    }

    /// Returns the nanoseconds until `instant`, which are enough for centuries; 0 if the clock was started later.
    #[inline]
    fn nanos_at(self, instant: Instant) -> u64 {
        let age = instant.saturating_duration_since(self.began);
        age.as_secs() * 1_000_000_000 + u64::from(age.subsec_nanos())
    }

    /// Returns the instant after that time.
    pub(crate) fn instant(self, after: Duration) -> Instant {
        self.began + after
    }
}

/// Returns `time` in whole milliseconds, as far as they fit into the number.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_its_start() {
        let before = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        let clock = Clock::start();
        assert_eq!(clock.nanos_at(before), 0);
        let later = Instant::now() + Duration::from_micros(1_002_003_999);
        assert_eq!(clock.nanos_at(later), 1_002_003_999_000);
        assert_eq!(clock.instant(Duration::from_micros(1_002_003_999)), later);
        assert_eq!(millis(Duration::MAX), u64::MAX);
        let (now, nanos) = (clock.now(), 1_002_003_999_000);
        let moment = Moment {
            instant: later,
            nanos,
        };
        assert_eq!(
            (now.nanos, now.millis(), moment.millis()),
            (0, 0, 1_002_003)
        );
        assert_eq!(moment.since(now), later.duration_since(now.instant));
        assert_eq!(now.since(moment), Duration::ZERO);
    }
}
