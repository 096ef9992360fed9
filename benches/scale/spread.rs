//! Many times of the same thing, as a few numbers.

use std::time::Duration;

/// The share of the times that is in the mean. The rest is what the machine did at the same time, or work of the cache
/// that came due: far longer, and now in one round and then in the other.
const IN_MEAN: f64 = 0.95;

/// In nanoseconds.
pub(crate) struct Spread {
    /// Of all but the longest twentieth.
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Spread {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count of samples is a small count"
    )]
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let place = |share: f64| (times.len() as f64 * share) as usize;
        let at = |share| times.get(place(share)).map_or(f64::NAN, nanoseconds);
        let most = &times[..place(IN_MEAN)];
        Self {
            mean: most.iter().map(nanoseconds).sum::<f64>() / most.len() as f64,
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

fn nanoseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// The one in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
