//! The rate of requests: Neon's limits, and a share of them.

use std::time::Duration;

/// Neon's limit per minute.
pub(in crate::neon) const PER_MINUTE: u32 = 700;
/// Neon's limit for one route per second.
pub(in crate::neon) const PER_SECOND: u32 = 40;
/// Divisor of a minute's requests that gives the burst. Of 700 the burst is 28: with the 11 requests that follow in the
/// same second, it stays below Neon's 40 even if all go to one route.
const AT_ONCE: u32 = 25;

/// The largest numbers of requests that may be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::neon) struct Rate {
    /// Requests in any minute.
    pub(in crate::neon) per_minute: u32,
    /// Requests of one route in any second.
    pub(in crate::neon) per_second: u32,
}

impl Rate {
    /// Returns the part of this rate that one of several processes may use: at least one request.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share is between 0 and 1, so the product is no larger than the whole"
    )]
    pub(in crate::neon) fn share(self, share: f64) -> Self {
        let part = |whole: u32| ((f64::from(whole) * share) as u32).max(1);
        Self {
            per_minute: part(self.per_minute),
            per_second: part(self.per_second),
        }
    }

    pub(super) fn smaller(self, other: Self) -> Self {
        Self {
            per_minute: self.per_minute.min(other.per_minute),
            per_second: self.per_second.min(other.per_second),
        }
    }

    /// Returns the time between two requests at the even pace, which leaves room for the burst in each minute.
    pub(super) fn interval(self) -> Duration {
        let evenly = self.per_minute.saturating_sub(self.at_once()).max(1);
        Duration::from_secs(60) / evenly
    }

    /// Returns the longest time by which a request may be ahead of the even pace.
    pub(super) fn lead(self) -> Duration {
        self.interval() * (self.at_once() - 1)
    }

    fn at_once(self) -> u32 {
        (self.per_minute / AT_ONCE).max(1)
    }
}
