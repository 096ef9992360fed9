//! Values by their keys, in the order of their last use.

use std::{
    hash::{BuildHasher, RandomState},
    mem,
};

use hashbrown::HashTable;

/// Number of no node.
const NONE: u32 = u32::MAX;

/// A value that contains its own key.
pub(crate) trait Keyed {
    /// Returns the key, which never changes.
    fn key(&self) -> &[u8];
}

/// Values by their keys, in the order of their last use. Every operation takes constant time. Not bounded: the owner
/// takes out the [oldest](Self::pop_oldest) value.
///
/// Costs eight bytes a value for the order, and five for each place in the table, of which at most seven in eight are
/// taken.
#[derive(Debug)]
pub(crate) struct Lru<T> {
    /// Without gaps: the last node takes the place of a removed one.
    nodes: Vec<Node<T>>,
    /// The numbers of the nodes, by their keys.
    table: HashTable<u32>,
    hasher: RandomState,
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    /// Number of the node that was used next; `NONE` for the newest.
    newer: u32,
    /// Number of the node that was used before; `NONE` for the oldest.
    older: u32,
}

impl<T: Keyed> Lru<T> {
    pub(crate) fn new(hasher: RandomState) -> Self {
        Self {
            nodes: Vec::new(),
            table: HashTable::new(),
            hasher,
            newest: NONE,
            oldest: NONE,
        }
    }

    /// Returns all values, in no order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().map(|node| &node.value)
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the value of `key`. It stays where it is in the order.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<&T> {
        let at = self.find(key)?;
        Some(&self.nodes[at as usize].value)
    }

    /// Returns the value of `key`, which is the newest then. Its key must not be changed.
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&mut T> {
        let at = self.find(key)?;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        Some(&mut self.nodes[at as usize].value)
    }

    /// Stores `value` as the newest. Returns the earlier value of its key.
    pub(crate) fn insert(&mut self, value: T) -> Option<T> {
        if let Some(present) = self.get(value.key()) {
            return Some(mem::replace(present, value));
        }
        let at = u32::try_from(self.nodes.len()).expect("fewer values than u32 can count");
        let hash = self.hasher.hash_one(value.key());
        let (newer, older) = (NONE, NONE);
        self.nodes.push(Node {
            value,
            newer,
            older,
        });
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        let rehash = |at: &u32| hasher.hash_one(nodes[*at as usize].value.key());
        self.table.insert_unique(hash, at, rehash);
        self.link_newest(at);
        None
    }

    /// Takes out the value of `key`.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<T> {
        let at = self.find(key)?;
        Some(self.take(at))
    }

    /// Takes out the value that was not used for the longest time.
    pub(crate) fn pop_oldest(&mut self) -> Option<T> {
        (self.oldest != NONE).then(|| self.take(self.oldest))
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let is_it = |at: &u32| self.nodes[*at as usize].value.key() == key;
        self.table.find(hash, is_it).copied()
    }

    fn take(&mut self, at: u32) -> T {
        self.unlink(at);
        let last = u32::try_from(self.nodes.len() - 1).expect("fewer values than u32 can count");
        self.forget(at);
        if at != last {
            self.renumber(last, at);
        }
        self.nodes.swap_remove(at as usize).value
    }

    /// Removes the number of a node from the table.
    fn forget(&mut self, at: u32) {
        let hash = self.hasher.hash_one(self.nodes[at as usize].value.key());
        if let Ok(entry) = self.table.find_entry(hash, |it| *it == at) {
            entry.remove();
        }
    }

    /// Prepares node `from` for its move to number `to`.
    fn renumber(&mut self, from: u32, to: u32) {
        let node = &self.nodes[from as usize];
        let (newer, older) = (node.newer, node.older);
        let hash = self.hasher.hash_one(node.value.key());
        if let Some(number) = self.table.find_mut(hash, |it| *it == from) {
            *number = to;
        }
        *self.older_of(newer) = to;
        *self.newer_of(older) = to;
    }

    fn unlink(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let (newer, older) = (node.newer, node.older);
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    fn link_newest(&mut self, at: u32) {
        let before = mem::replace(&mut self.newest, at);
        *self.newer_of(before) = at;
        let node = &mut self.nodes[at as usize];
        (node.newer, node.older) = (NONE, before);
    }

    /// Returns the link from node `at` to the older one; that of no node is the newest.
    fn older_of(&mut self, at: u32) -> &mut u32 {
        match at {
            NONE => &mut self.newest,
            at => &mut self.nodes[at as usize].older,
        }
    }

    /// Returns the link from node `at` to the newer one; that of no node is the oldest.
    fn newer_of(&mut self, at: u32) -> &mut u32 {
        match at {
            NONE => &mut self.oldest,
            at => &mut self.nodes[at as usize].newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    impl Keyed for (u8, u32) {
        fn key(&self) -> &[u8] {
            std::slice::from_ref(&self.0)
        }
    }

    /// Does the same to a queue, the oldest in front, and compares after each step.
    #[test]
    fn it_does_what_a_queue_would() {
        fastrand::seed(18);
        let mut lru = Lru::new(RandomState::new());
        let mut queue = VecDeque::<(u8, u32)>::new();
        for step in 0..20_000 {
            let key = fastrand::u8(..50);
            let place = queue.iter().position(|it| it.0 == key);
            match fastrand::u8(..6) {
                0 | 1 => {
                    let earlier = place.and_then(|at| queue.remove(at));
                    queue.push_back((key, step));
                    assert_eq!(lru.insert((key, step)), earlier);
                }
                2 => {
                    let found = place.and_then(|at| queue.remove(at));
                    queue.extend(found);
                    assert_eq!(lru.get(&[key]).copied(), found);
                }
                3 => {
                    let found = place.map(|at| queue[at]);
                    assert_eq!(lru.peek(&[key]).copied(), found);
                }
                4 => {
                    let removed = place.and_then(|at| queue.remove(at));
                    assert_eq!(lru.remove(&[key]), removed);
                }
                _ => assert_eq!(lru.pop_oldest(), queue.pop_front()),
            }
            assert_eq!(lru.len(), queue.len());
        }
        while let Some(oldest) = lru.pop_oldest() {
            assert_eq!(Some(oldest), queue.pop_front());
        }
        assert!(queue.is_empty());
    }
}
