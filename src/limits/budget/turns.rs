//! Who holds how many connections, and who waits for one, in the order of their turns.
//!
//! Nothing here takes longer the more wait, but for a logarithm.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Weak},
};

use tokio::{sync::oneshot, time::Instant};

use super::{Owner, Permit};

/// Tells holders apart.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Key {
    /// Where the holder is in memory: nobody else is there as long as a [`Weak`] to it is kept.
    Holder(usize),
    /// A connection for nobody in particular, by its number.
    Nobody(u64),
}

type Turn = oneshot::Sender<Permit>;

/// The requests that wait, by their places.
type Queue = BTreeMap<u64, Key>;

/// Those who hold connections, and those who wait for one.
#[derive(Default)]
pub(super) struct Turns {
    holdings: HashMap<Key, Holding>,
    /// Holders that wait and have none.
    first: Queue,
    /// Holders that wait for one more. Each that was served goes to the end.
    others: Queue,
    /// Requests that are nobody's. They take turns with the others.
    nobodys: Queue,
    /// The others, by how many they keep.
    kept: BTreeSet<(usize, Key)>,
    waiting: usize,
    /// The last number of a request, or of a place.
    last_number: u64,
}

struct Holding {
    holder: Option<Weak<dyn Owner>>,
    held: usize,
    /// How many of these are being closed for others.
    leaving: usize,
    /// First come, first served.
    line: VecDeque<Request>,
    /// Its place in a queue, while its line is not empty.
    place: Option<u64>,
}

impl Holding {
    fn keeps(&self) -> usize {
        self.held - self.leaving
    }
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
    pub(super) fn wait(&mut self, holder: Option<&Weak<dyn Owner>>, turn: Turn) -> (Key, u64) {
        let number = self.next_number();
        let key = match holder {
            Some(holder) => Key::Holder(holder.as_ptr().addr()),
            None => Key::Nobody(number),
        };
        let holding = self.holdings.entry(key).or_insert_with(|| Holding {
            holder: holder.cloned(),
            held: 0,
            leaving: 0,
            line: VecDeque::new(),
            place: None,
        });
        let since = Instant::now();
        holding.line.push_back(Request {
            number,
            since,
            turn,
        });
        self.waiting += 1;
        self.step_in(key);
        (key, number)
    }

    /// Takes a request back that was not served. Its turn is returned, to be dropped elsewhere.
    pub(super) fn give_up(&mut self, key: Key, number: u64) -> Option<Turn> {
        let holding = self.holdings.get_mut(&key)?;
        let place = holding.line.iter().position(|it| it.number == number)?;
        let request = holding.line.remove(place)?;
        self.waiting -= 1;
        if holding.line.is_empty() {
            self.step_out(key);
        }
        self.forget(key);
        Some(request.turn)
    }

    /// The next request to be served, which is counted as held from now on: of those who have none, or else, if `others`
    /// may be served too, of whoever's turn it is.
    pub(super) fn next(&mut self, others: bool) -> Option<(Key, Turn)> {
        let first = self.first.first_key_value().map(|(_, key)| *key);
        let key = if others {
            self.nobody_in_front(first).or(first).or(self.next_other())
        } else {
            first
        }?;
        self.step_out(key);
        let holding = self.holdings.get_mut(&key)?;
        let request = holding.line.pop_front()?;
        holding.held += 1;
        self.waiting -= 1;
        self.step_in(key);
        Some((key, request.turn))
    }

    /// A request that is nobody's and came before that of `first`. It has none either.
    fn nobody_in_front(&self, first: Option<Key>) -> Option<Key> {
        let (_, nobody) = self.nobodys.first_key_value()?;
        let came = |key| Some(self.front(key)?.number);
        (came(*nobody)? < came(first?)?).then_some(*nobody)
    }

    /// Returns the next of the requests that do not come first.
    fn next_other(&self) -> Option<Key> {
        let queues = [&self.others, &self.nobodys].into_iter();
        let fronts = queues.filter_map(Queue::first_key_value);
        fronts.min().map(|(_, key)| *key)
    }

    /// Takes note that a connection of `key` is being closed for others.
    pub(super) fn leave(&mut self, key: Key) {
        self.recount(key, |holding| holding.leaving += 1);
    }

    /// Takes note that a connection of `key` has ended.
    pub(super) fn release(&mut self, key: Key, was_leaving: bool) {
        self.recount(key, |holding| {
            holding.held -= 1;
            holding.leaving -= usize::from(was_leaving);
        });
        if self.holdings.get(&key).is_some_and(|it| it.held == 0) {
            self.step_out(key); // to the end of those who have none, if it waits
            self.step_in(key);
        }
        self.forget(key);
    }

    /// How many `key` holds that are not being closed for others.
    pub(super) fn keeps(&self, key: Key) -> usize {
        self.holdings.get(&key).map_or(0, Holding::keeps)
    }

    /// The fewest that anybody but `key` holds who waits for one more.
    pub(super) fn fewest_of_others(&self, key: Key) -> Option<usize> {
        if self.nobodys.values().any(|it| *it != key) {
            return Some(0);
        }
        let mut others = self.kept.iter().filter(|(_, it)| *it != key);
        others.next().map(|(fewest, _)| *fewest)
    }

    /// Since when somebody but `key` waits who has none.
    pub(super) fn first_waits_since(&self, key: Key) -> Option<Instant> {
        let first = self.first.values().find(|it| **it != key)?;
        Some(self.front(*first)?.since)
    }

    /// Since when somebody waits for a connection that is nobody's, and has none.
    pub(super) fn nobody_waits_since(&self) -> Option<Instant> {
        let (_, nobody) = self.nobodys.first_key_value()?;
        Some(self.front(*nobody)?.since)
    }

    /// All holders of a connection.
    pub(super) fn holders(&self) -> Vec<Arc<dyn Owner>> {
        self.those(|it| it.keeps() > 0)
    }

    /// All holders that wait for a connection.
    pub(super) fn waiting_holders(&self) -> Vec<Arc<dyn Owner>> {
        self.those(|it| !it.line.is_empty())
    }

    fn those(&self, are: impl Fn(&Holding) -> bool) -> Vec<Arc<dyn Owner>> {
        let holdings = self.holdings.values().filter(|it| are(it));
        let holders = holdings.filter_map(|it| it.holder.as_ref());
        holders.filter_map(Weak::upgrade).collect()
    }

    fn front(&self, key: Key) -> Option<&Request> {
        self.holdings.get(&key)?.line.front()
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Puts `key` at the end of its queue, if it waits and stands in none.
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
            Key::Nobody(_) => &mut self.nobodys,
            Key::Holder(_) if holding.held == 0 => &mut self.first,
            Key::Holder(_) => {
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
        for queue in [&mut self.first, &mut self.others, &mut self.nobodys] {
            queue.remove(&place);
        }
    }

    /// Changes how many `key` holds.
    fn recount(&mut self, key: Key, change: impl FnOnce(&mut Holding)) {
        let Some(holding) = self.holdings.get_mut(&key) else {
            return;
        };
        let is_one = self.kept.remove(&(holding.keeps(), key));
        change(holding);
        if is_one {
            self.kept.insert((holding.keeps(), key));
        }
    }

    /// Forgets who neither holds nor waits.
    fn forget(&mut self, key: Key) {
        let is_gone = |it: &Holding| it.held == 0 && it.line.is_empty();
        if self.holdings.get(&key).is_some_and(is_gone) {
            self.holdings.remove(&key);
        }
    }
}
