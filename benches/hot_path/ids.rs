//! The tenants of the calls: ids of 36 letters, drawn before anything is measured.

use std::ops::Range;

use crate::rng::{Rng, Zipf};

/// Letters of an id, as of a UUID's.
const LETTERS: usize = 36;

/// Calls that are drawn; they are gone through again and again.
const DRAW_COUNT: usize = 1 << 18;

/// A prime, by which neighbours in rank are no neighbours in memory.
const STRIDE: usize = 7919;

/// The tenants of the calls, one after the other.
///
/// The ids lie in a row, as if each had just been read from a request: what is measured begins with it at hand.
pub(crate) struct DrawnIds {
    tenants: Vec<usize>,
    ids: String,
}

impl DrawnIds {
    /// Each of the first `tenants` equally often.
    pub(crate) fn uniform(tenants: usize) -> Self {
        let mut rng = Rng(1);
        Self::of((0..DRAW_COUNT).map(|_| rng.below(tenants)))
    }

    /// Those among the first `tenants` by Zipf's law with exponent 1: the second of them half as often as the first.
    pub(crate) fn zipf(tenants: usize) -> Self {
        let (places, mut rng) = (Zipf::new(tenants), Rng(2));
        Self::of((0..DRAW_COUNT).map(|_| places.draw(&mut rng) * STRIDE % tenants))
    }

    fn of(tenants: impl Iterator<Item = usize>) -> Self {
        let tenants: Vec<_> = tenants.collect();
        let ids = tenants.iter().map(|tenant| id(*tenant)).collect();
        Self { tenants, ids }
    }

    /// So many calls, those after the first `from`.
    pub(crate) fn calls(&self, from: usize, count: usize) -> impl Iterator<Item = (usize, &str)> {
        let numbers = (from..from + count).map(|n| n % DRAW_COUNT);
        numbers.map(|n| (self.tenants[n], &self.ids[Self::place(n)]))
    }

    const fn place(n: usize) -> Range<usize> {
        n * LETTERS..(n + 1) * LETTERS
    }
}

/// The id of a tenant, in the form of a UUID.
pub(crate) fn id(tenant: usize) -> String {
    let mut rng = Rng(tenant as u64);
    let (a, b) = (rng.next(), rng.next());
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    )
}
