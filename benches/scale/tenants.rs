//! The tenants, and how often each is asked for.

use uuid::Uuid;

use crate::rng::{Rng, Zipf};

/// Tenants, the most popular first, with ids of 36 characters that say nothing of their place.
pub(crate) struct Tenants {
    pub(crate) ids: Vec<String>,
    places: Zipf,
}

impl Tenants {
    /// So many of them.
    pub(crate) fn new(count: usize) -> Self {
        let mut rng = Rng(1);
        let ids = (0..count).map(|_| Uuid::from_u64_pair(rng.next(), rng.next()).to_string());
        Self {
            ids: ids.collect(),
            places: Zipf::new(count),
        }
    }

    /// The places of those asked for, one after another; the same again for the same `seed`.
    pub(crate) fn draws(&self, seed: u64, count: usize) -> Vec<usize> {
        let mut rng = Rng(seed);
        (0..count).map(|_| self.places.draw(&mut rng)).collect()
    }
}
