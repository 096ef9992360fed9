//! Who holds how many connections, and who waits for one, in the order of their turns.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use tokio::{sync::oneshot, time::Instant};

use super::{Holder, Permit};

/// Tells holders apart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Key {
    /// Where the holder is in memory: nobody else is there as long as a [`Weak`] to it is kept.
    Holder(usize),
    /// A connection for nobody in particular, by its number.
    Nobody(u64),
}

type Turn = oneshot::Sender<Permit>;

/// Those who hold connections, and those who wait for one.
#[derive(Default)]
pub(super) struct Turns {
    holdings: HashMap<Key, Holding>,
    /// Holders that wait and have none, in the order in which they came.
    first: VecDeque<Key>,
    /// All others who wait. Whoever was served goes to the end.
    others: VecDeque<Key>,
    waiting: usize,
    last_number: u64,
}

struct Holding {
    holder: Option<Weak<dyn Holder>>,
    held: usize,
    /// How many of these are being closed for others.
    leaving: usize,
    /// First come, first served.
    line: VecDeque<Request>,
}

struct Request {
    number: u64,
    since: Instant,
    turn: Turn,
}

impl Turns {
    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many connections it takes to serve all who wait: one for each who has none, and the others'.
    pub(super) fn wanted(&self) -> (usize, usize) {
        (self.first.len(), self.waiting - self.first.len())
    }

    pub(super) fn some_have_none(&self) -> bool {
        !self.first.is_empty()
    }

    /// Adds a request; returns its key and number.
    pub(super) fn wait(&mut self, holder: Option<&Weak<dyn Holder>>, turn: Turn) -> (Key, u64) {
        self.last_number += 1;
        let number = self.last_number;
        let key = match holder {
            Some(holder) => Key::Holder(holder.as_ptr().addr()),
            None => Key::Nobody(number),
        };
        let holding = self.holdings.entry(key).or_insert_with(|| Holding {
            holder: holder.cloned(),
            held: 0,
            leaving: 0,
            line: VecDeque::new(),
        });
        if holding.line.is_empty() {
            if holding.held == 0 && holder.is_some() {
                self.first.push_back(key);
            } else {
                self.others.push_back(key);
            }
        }
        let since = Instant::now();
        holding.line.push_back(Request {
            number,
            since,
            turn,
        });
        self.waiting += 1;
        (key, number)
    }

    /// Takes a request back that was not served. Its turn is returned, to be dropped elsewhere.
    pub(super) fn give_up(&mut self, key: Key, number: u64) -> Option<Turn> {
        let holding = self.holdings.get_mut(&key)?;
        let place = holding.line.iter().position(|it| it.number == number)?;
        let request = holding.line.remove(place)?;
        self.waiting -= 1;
        if holding.line.is_empty() {
            self.first.retain(|it| *it != key);
            self.others.retain(|it| *it != key);
        }
        self.forget(key);
        Some(request.turn)
    }

    /// The next request to be served, which is counted as held from now on: of those who have none, or else, if `others`
    /// may be served too, of whoever's turn it is.
    pub(super) fn next(&mut self, others: bool) -> Option<(Key, Turn)> {
        let nobody = others.then(|| self.nobody_in_front()).flatten();
        let key = match nobody {
            Some(place) => self.others.remove(place)?,
            None => match self.first.pop_front() {
                Some(first) => first,
                None if others => self.others.pop_front()?,
                None => return None,
            },
        };
        let holding = self.holdings.get_mut(&key)?;
        let request = holding.line.pop_front()?;
        holding.held += 1;
        self.waiting -= 1;
        if !holding.line.is_empty() {
            self.others.push_back(key);
        }
        Some((key, request.turn))
    }

    /// Where a request stands that is nobody's and came before all of those who have none. It has none either.
    fn nobody_in_front(&self) -> Option<usize> {
        let came = |key: &Key| Some(self.holdings.get(key)?.line.front()?.number);
        let nobody = |key: &Key| matches!(key, Key::Nobody(_));
        let place = self.others.iter().position(nobody)?;
        let first = self.first.front().and_then(came);
        first
            .is_some_and(|first| came(&self.others[place]) < Some(first))
            .then_some(place)
    }

    /// Takes note that a connection of `key` is being closed for others.
    pub(super) fn leave(&mut self, key: Key) {
        if let Some(holding) = self.holdings.get_mut(&key) {
            holding.leaving += 1;
        }
    }

    /// Takes note that a connection of `key` has ended.
    pub(super) fn release(&mut self, key: Key, was_leaving: bool) {
        let Some(holding) = self.holdings.get_mut(&key) else {
            return;
        };
        holding.held -= 1;
        holding.leaving -= usize::from(was_leaving);
        if holding.held == 0 && !holding.line.is_empty() && holding.holder.is_some() {
            self.others.retain(|it| *it != key);
            self.first.push_back(key);
        }
        self.forget(key);
    }

    /// How many `key` holds that are not being closed for others.
    pub(super) fn keeps(&self, key: Key) -> usize {
        let holding = self.holdings.get(&key);
        holding.map_or(0, |it| it.held - it.leaving)
    }

    /// The fewest that anybody but `key` holds who waits for one more.
    pub(super) fn fewest_of_others(&self, key: Key) -> Option<usize> {
        let others = self.others.iter().filter(|it| **it != key);
        others.map(|it| self.keeps(*it)).min()
    }

    /// Since when somebody but `key` waits who has none.
    pub(super) fn first_waits_since(&self, key: Key) -> Option<Instant> {
        let first = self.first.iter().find(|it| **it != key)?;
        let request = self.holdings.get(first)?.line.front()?;
        Some(request.since)
    }

    /// Since when somebody waits for a connection that is nobody's, and has none.
    pub(super) fn nobody_waits_since(&self) -> Option<Instant> {
        let nobody = |key: &&Key| matches!(key, Key::Nobody(_));
        let first = self.others.iter().find(nobody)?;
        let request = self.holdings.get(first)?.line.front()?;
        Some(request.since)
    }

    /// All holders of a connection.
    pub(super) fn holders(&self) -> Vec<Arc<dyn Holder>> {
        let holding = self.holdings.values().filter(|it| it.held > it.leaving);
        let holders = holding.filter_map(|it| it.holder.as_ref());
        holders.filter_map(Weak::upgrade).collect()
    }

    /// Forgets who neither holds nor waits.
    fn forget(&mut self, key: Key) {
        let is_gone = |it: &Holding| it.held == 0 && it.line.is_empty();
        if self.holdings.get(&key).is_some_and(is_gone) {
            self.holdings.remove(&key);
        }
    }
}
