//! The connections of each owner, and the waiting requests in the order of their turns.
//!
//! The time to serve a request grows with the logarithm of the number of waiting requests.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Weak},
};

use tokio::{sync::oneshot, time::Instant};

use super::{Owner, Permit};

/// The key of an owner, or of a request without one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Key {
    /// Address of the owner. It is unique as long as a [`Weak`] to the owner is kept.
    Owner(usize),
    /// Number of a request without an owner.
    Unowned(u64),
}

impl Key {
    fn of(owner: &Weak<dyn Owner>) -> Self {
        Self::Owner(owner.as_ptr().addr())
    }
}

/// The channel that takes a permit to its request.
type PermitSender = oneshot::Sender<Permit>;

/// The keys that wait, by their places.
type Queue = BTreeMap<u64, Key>;

/// The owners that hold connections, and the requests that wait for one.
#[derive(Default)]
pub(super) struct Turns {
    holdings: HashMap<Key, Holdings>,
    /// Owners that wait and have no connection.
    first: Queue,
    /// Owners that wait for one more connection. An owner that was served goes to the end.
    others: Queue,
    /// Requests without an owner. They take turns with `others`.
    unowned: Queue,
    /// The owners in `others`, by the number of connections that they keep.
    kept: BTreeSet<(usize, Key)>,
    waiting: usize,
    /// Last number that was given to a request or a place.
    last_number: u64,
}

struct Holdings {
    owner: Option<Weak<dyn Owner>>,
    held: usize,
    /// Number of these that are being closed for other owners.
    leaving: usize,
    /// Waiting requests. First come, first served.
    line: VecDeque<Request>,
    /// Place in a queue, while `line` is not empty.
    place: Option<u64>,
}

impl Holdings {
    fn new(owner: Option<&Weak<dyn Owner>>) -> Self {
        Self {
            owner: owner.cloned(),
            held: 0,
            leaving: 0,
            line: VecDeque::new(),
            place: None,
        }
    }

    fn keeps(&self) -> usize {
        self.held - self.leaving
    }
}

struct Request {
    number: u64,
    since: Instant,
    sender: PermitSender,
}

impl Turns {
    /// Returns the number of waiting requests.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the connections needed to serve all waiting requests: one for each owner without any, and the number of
    /// all others.
    pub(super) fn wanted(&self) -> (usize, usize) {
        (self.first.len(), self.waiting - self.first.len())
    }

    pub(super) fn some_have_none(&self) -> bool {
        !self.first.is_empty()
    }

    /// Adds a request, and returns its key and number.
    pub(super) fn wait(
        &mut self,
        owner: Option<&Weak<dyn Owner>>,
        sender: PermitSender,
    ) -> (Key, u64) {
        let number = self.next_number();
        let key = owner.map_or(Key::Unowned(number), Key::of);
        let holding = self
            .holdings
            .entry(key)
            .or_insert_with(|| Holdings::new(owner));
        let since = Instant::now();
        holding.line.push_back(Request {
            number,
            since,
            sender,
        });
        self.waiting += 1;
        self.step_in(key);
        (key, number)
    }

    /// Counts a connection of `owner` as held that was not waited for. Returns the owner's key.
    pub(super) fn hold(&mut self, owner: &Weak<dyn Owner>) -> Key {
        let key = Key::of(owner);
        self.holdings
            .entry(key)
            .or_insert_with(|| Holdings::new(Some(owner)));
        self.recount(key, |holding| holding.held += 1);
        key
    }

    /// Withdraws a request that was not served. Returns its sender, to be dropped without the lock.
    pub(super) fn give_up(&mut self, key: Key, number: u64) -> Option<PermitSender> {
        let holding = self.holdings.get_mut(&key)?;
        let place = holding.line.iter().position(|it| it.number == number)?;
        let request = holding.line.remove(place)?;
        self.waiting -= 1;
        if holding.line.is_empty() {
            self.step_out(key);
        }
        self.forget(key);
        Some(request.sender)
    }

    /// Removes and returns the next request to be served, and counts it as held. Requests of owners without a
    /// connection come first. The others are served in turn, if `others` is true.
    pub(super) fn next(&mut self, others: bool) -> Option<(Key, PermitSender)> {
        let first = self.first.first_key_value().map(|(_, key)| *key);
        let key = if others {
            self.unowned_in_front(first).or(first).or(self.next_other())
        } else {
            first
        }?;
        self.step_out(key);
        let holding = self.holdings.get_mut(&key)?;
        let request = holding.line.pop_front()?;
        if holding.line.is_empty() {
            holding.line = VecDeque::new(); // most owners wait once, and hold a connection for long
        }
        holding.held += 1;
        self.waiting -= 1;
        self.step_in(key);
        Some((key, request.sender))
    }

    /// Returns the request without an owner that came before that of `first`. It has no connection either.
    fn unowned_in_front(&self, first: Option<Key>) -> Option<Key> {
        let (_, unowned) = self.unowned.first_key_value()?;
        let came = |key| Some(self.front(key)?.number);
        (came(*unowned)? < came(first?)?).then_some(*unowned)
    }

    /// Returns the next of the requests that do not come first.
    fn next_other(&self) -> Option<Key> {
        let queues = [&self.others, &self.unowned].into_iter();
        let fronts = queues.filter_map(Queue::first_key_value);
        fronts.min().map(|(_, key)| *key)
    }

    /// Notes that a connection of `key` is being closed for other owners.
    pub(super) fn leave(&mut self, key: Key) {
        self.recount(key, |holding| holding.leaving += 1);
    }

    /// Notes that a connection of `key` has ended.
    pub(super) fn release(&mut self, key: Key, was_leaving: bool) {
        self.recount(key, |holding| {
            holding.held -= 1;
            holding.leaving -= usize::from(was_leaving);
        });
        if self.holdings.get(&key).is_some_and(|it| it.held == 0) {
            self.step_out(key); // to the end of `first`, if it waits
            self.step_in(key);
        }
        self.forget(key);
    }

    /// Returns the number of connections of `key` that are not being closed for other owners.
    pub(super) fn keeps(&self, key: Key) -> usize {
        self.holdings.get(&key).map_or(0, Holdings::keeps)
    }

    /// Returns the fewest connections that a waiting owner other than `key` keeps.
    pub(super) fn fewest_of_others(&self, key: Key) -> Option<usize> {
        if self.unowned.values().any(|it| *it != key) {
            return Some(0);
        }
        let mut others = self.kept.iter().filter(|(_, it)| *it != key);
        others.next().map(|(fewest, _)| *fewest)
    }

    /// Returns the start of the wait of the first owner without a connection, other than `key`.
    pub(super) fn first_waits_since(&self, key: Key) -> Option<Instant> {
        let first = self.first.values().find(|it| **it != key)?;
        Some(self.front(*first)?.since)
    }

    /// Returns the start of the wait of the first request without an owner.
    pub(super) fn unowned_waits_since(&self) -> Option<Instant> {
        let (_, unowned) = self.unowned.first_key_value()?;
        Some(self.front(*unowned)?.since)
    }

    /// Returns all owners that hold a connection.
    pub(super) fn owners(&self) -> Vec<Arc<dyn Owner>> {
        self.those(|it| it.keeps() > 0)
    }

    /// Returns all owners that wait for a connection.
    pub(super) fn waiting_owners(&self) -> Vec<Arc<dyn Owner>> {
        self.those(|it| !it.line.is_empty())
    }

    fn those(&self, are: impl Fn(&Holdings) -> bool) -> Vec<Arc<dyn Owner>> {
        let holdings = self.holdings.values().filter(|it| are(it));
        let owners = holdings.filter_map(|it| it.owner.as_ref());
        owners.filter_map(Weak::upgrade).collect()
    }

    fn front(&self, key: Key) -> Option<&Request> {
        self.holdings.get(&key)?.line.front()
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Puts `key` at the end of its queue, if it waits and is in no queue.
    fn step_in(&mut self, key: Key) {
        let number = self.next_number();
        let Some(holding) = self.holdings.get_mut(&key) else {
            return;
        };
        if holding.line.is_empty() || holding.place.is_some() {
            return;
        }
        holding.place = Some(number);
        let queue = match key {
            Key::Unowned(_) => &mut self.unowned,
            Key::Owner(_) if holding.held == 0 => &mut self.first,
            Key::Owner(_) => {
                self.kept.insert((holding.keeps(), key));
                &mut self.others
            }
        };
        queue.insert(number, key);
    }

    /// Takes `key` out of its queue.
    fn step_out(&mut self, key: Key) {
        let Some(holding) = self.holdings.get_mut(&key) else {
            return;
        };
        let Some(place) = holding.place.take() else {
            return;
        };
        self.kept.remove(&(holding.keeps(), key));
        for queue in [&mut self.first, &mut self.others, &mut self.unowned] {
            queue.remove(&place);
        }
    }

    /// Applies `change` to the counts of `key`.
    fn recount(&mut self, key: Key, change: impl FnOnce(&mut Holdings)) {
        let Some(holding) = self.holdings.get_mut(&key) else {
            return;
        };
        let is_one = self.kept.remove(&(holding.keeps(), key));
        change(holding);
        if is_one {
            self.kept.insert((holding.keeps(), key));
        }
    }

    /// Forgets `key` if it neither holds nor waits for a connection.
    fn forget(&mut self, key: Key) {
        let is_gone = |it: &Holdings| it.held == 0 && it.line.is_empty();
        if self.holdings.get(&key).is_some_and(is_gone) {
            self.holdings.remove(&key);
            if self.holdings.len() < self.holdings.capacity() / 4 {
                self.holdings.shrink_to(2 * self.holdings.len()); // after many connections have closed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn owners_cost_nothing_after_their_connections_have_closed_and_no_line_while_they_are_open()
     {
        let mut turns = Turns::default();
        let mut keys = Vec::new();
        for _ in 0..10_000 {
            let (sender, _) = oneshot::channel();
            turns.wait(None, sender);
            let (key, _) = turns.next(true).unwrap();
            keys.push(key);
        }
        assert!(turns.holdings.values().all(|it| it.line.capacity() == 0));
        let left = keys.split_off(keys.len() - 10);
        for key in keys {
            turns.release(key, false);
        }
        assert!(left.iter().all(|key| turns.keeps(*key) == 1));
        assert!(
            turns.holdings.capacity() < 100,
            "{}",
            turns.holdings.capacity()
        );
    }
}
