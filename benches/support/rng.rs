//! Numbers by chance.

/// `splitmix64`: the same numbers in every run.
pub(crate) struct Rng(pub(crate) u64);

#[allow(dead_code, reason = "not every benchmark draws in every way")]
impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    #[allow(clippy::cast_possible_truncation, reason = "a small count")]
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    #[allow(clippy::cast_precision_loss, reason = "a share of one")]
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Places by Zipf's law: the one at place `n` comes one `n`th as often as the first.
#[allow(dead_code, reason = "not every benchmark draws so")]
pub(crate) struct Zipf {
    /// The weight of all places up to each, the first one being 1.
    weights: Vec<f64>,
}

#[allow(dead_code, reason = "not every benchmark draws so")]
impl Zipf {
    #[allow(clippy::cast_precision_loss, reason = "places are small counts")]
    pub(crate) fn new(count: usize) -> Self {
        let weights = (1..=count).scan(0.0, |sum, place| {
            *sum += 1.0 / place as f64;
            Some(*sum)
        });
        Self {
            weights: weights.collect(),
        }
    }

    /// A place, counted from zero.
    pub(crate) fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.share() * self.weights.last().copied().unwrap_or_default();
        let place = self.weights.partition_point(|up_to| *up_to <= at);
        place.min(self.weights.len().saturating_sub(1))
    }
}
