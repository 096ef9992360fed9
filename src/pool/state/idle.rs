//! The idle connections of a pool.

/// The idle connections of a pool. Last in, first out, so that a quiet tenant's surplus grows old.
pub(super) struct Idle<T> {
    /// The one that came last, or none if it was taken. It lies here and not in memory of its own, because most pools
    /// have no other.
    last: Option<T>,
    /// Those that came earlier, the oldest first.
    earlier: Vec<T>,
}

impl<T> Idle<T> {
    pub(super) fn new() -> Self {
        let (last, earlier) = (None, Vec::new());
        Self { last, earlier }
    }

    pub(super) fn len(&self) -> usize {
        self.earlier.len() + usize::from(self.last.is_some())
    }

    /// Returns the one that would be taken next.
    #[inline]
    pub(super) fn newest(&self) -> Option<&T> {
        self.last.as_ref().or_else(|| self.earlier.last())
    }

    /// Returns the one that has been idle for longest.
    pub(super) fn oldest(&self) -> Option<&T> {
        self.earlier.first().or(self.last.as_ref())
    }

    #[inline]
    pub(super) fn push(&mut self, connection: T) {
        if self.last.is_none() {
            self.last = Some(connection);
        } else {
            self.push_beside(connection);
        }
    }

    /// Adds one beside another one that is kept in place.
    fn push_beside(&mut self, connection: T) {
        if self.earlier.len() == self.earlier.capacity() {
            // Doubles from one on. A `Vec` would begin with four, and few tenants need them.
            self.earlier.reserve_exact(self.earlier.len().max(1));
        }
        self.earlier.extend(self.last.replace(connection));
    }

    /// Removes and returns the newest one.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        self.last.take().or_else(|| self.earlier.pop())
    }

    /// Removes and returns the oldest one.
    pub(super) fn pop_oldest(&mut self) -> Option<T> {
        if self.earlier.is_empty() {
            return self.last.take();
        }
        Some(self.earlier.remove(0))
    }

    /// Removes and returns those for which `is_one` is true, the oldest first.
    pub(super) fn take(&mut self, is_one: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken: Vec<_> = self.earlier.extract_if(.., |it| is_one(it)).collect();
        taken.extend(self.last.take_if(|it| is_one(it)));
        taken
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.earlier.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_and_goes_the_newest_is_taken_first() {
        let mut idle = Idle::new();
        let mut model = Vec::new();
        let mut chance: u32 = 1;
        for number in 0..10_000_u32 {
            chance ^= chance << 13;
            chance ^= chance >> 17;
            chance ^= chance << 5;
            match chance % 8 {
                0..4 => {
                    idle.push(number);
                    model.push(number);
                }
                4 | 5 => assert_eq!(idle.pop(), model.pop()),
                6 => assert_eq!(
                    idle.pop_oldest(),
                    (!model.is_empty()).then(|| model.remove(0))
                ),
                _ => {
                    let is_one = |it: &u32| it % 3 == chance / 8 % 3;
                    let taken: Vec<_> = model.extract_if(.., |it| is_one(it)).collect();
                    assert_eq!(idle.take(is_one), taken);
                }
            }
            assert_eq!(idle.len(), model.len());
            assert_eq!(idle.newest(), model.last());
            assert_eq!(idle.oldest(), model.first());
        }
    }

    #[test]
    fn one_alone_needs_no_memory_of_its_own() {
        let mut idle = Idle::new();
        idle.push(1);
        assert_eq!(idle.pop(), Some(1));
        idle.push(2);
        assert_eq!(idle.earlier.capacity(), 0);
    }
}
