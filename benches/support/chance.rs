//! Numbers by chance.

/// `splitmix64`: the same numbers in every run.
pub(crate) struct Chance(pub(crate) u64);

#[allow(dead_code, reason = "not every benchmark draws in every way")]
impl Chance {
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
