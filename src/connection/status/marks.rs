//! The marks of a connection that make it special for its pool or its next user.
//!
//! They share one word, so that one look tells that a connection has none of them, as nearly always.

use std::sync::atomic::{
    AtomicU8,
    Ordering::{AcqRel, Acquire},
};

/// One mark, or several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mark(u8);

impl Mark {
    /// Its task has ended.
    pub(super) const ENDED: Self = Self(1);
    /// It must be closed when it comes back, for example because of its age.
    pub(super) const EXPIRED: Self = Self(2);
    /// A hint opened it, and no caller has used it yet.
    pub(super) const HINTED: Self = Self(4);
    /// It is possibly dead, so that the server is pinged on it before it is used.
    pub(super) const SUSPECTED: Self = Self(8);
    /// A caller has asked to cancel a query on it.
    pub(super) const CANCELLED: Self = Self(16);
}

/// The marks that a connection has.
#[derive(Debug, Default)]
pub(super) struct Marks(AtomicU8);

impl Marks {
    #[inline]
    pub(super) fn has(&self, mark: Mark) -> bool {
        self.0.load(Acquire) & mark.0 != 0
    }

    /// Returns whether there is no mark.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Acquire) == 0
    }

    pub(super) fn set(&self, mark: Mark) {
        self.0.fetch_or(mark.0, AcqRel);
    }

    /// Removes `mark`, and returns whether it was there. Of several calls at once, one returns `true`.
    pub(super) fn take(&self, mark: Mark) -> bool {
        self.has(mark) && self.0.fetch_and(!mark.0, AcqRel) & mark.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once_and_others_stay() {
        let marks = Marks::default();
        assert!(marks.is_empty());
        marks.set(Mark::HINTED);
        marks.set(Mark::EXPIRED);
        assert!(marks.has(Mark::HINTED) && !marks.is_empty() && !marks.has(Mark::ENDED));
        assert!(marks.take(Mark::HINTED) && !marks.take(Mark::HINTED));
        assert!(marks.has(Mark::EXPIRED));
    }
}
