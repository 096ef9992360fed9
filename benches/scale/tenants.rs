//! Who the tenants are, and how often each is asked for.

use uuid::Uuid;

use crate::chance::Chance;

/// Tenants, the most popular first, with ids of 36 characters that say nothing of their place.
pub(crate) struct Tenants {
    pub(crate) ids: Vec<String>,
    /// How popular all tenants up to each place are together, the first one being 1.
    popularity: Vec<f64>,
}

impl Tenants {
    /// So many of them, of whom the one at place `n` is asked for one `n`th as often as the first (Zipf, exponent 1).
    #[allow(clippy::cast_precision_loss, reason = "places are small counts")]
    pub(crate) fn new(count: usize) -> Self {
        let mut chance = Chance(1);
        let ids = (0..count).map(|_| Uuid::from_u64_pair(chance.next(), chance.next()).to_string());
        let shares = (1..=count).scan(0.0, |sum, place| {
            *sum += 1.0 / place as f64;
            Some(*sum)
        });
        Self {
            ids: ids.collect(),
            popularity: shares.collect(),
        }
    }

    /// The places of those asked for, one after another; the same again for the same `seed`.
    pub(crate) fn draws(&self, seed: u64, count: usize) -> Vec<usize> {
        let mut chance = Chance(seed);
        let all = self.popularity.last().copied().unwrap_or_default();
        let draw = |_| {
            let at = chance.share() * all;
            let place = self.popularity.partition_point(|up_to| *up_to <= at);
            place.min(self.ids.len() - 1)
        };
        (0..count).map(draw).collect()
    }
}
