//! The most frequent keys, of more keys than can be listed.
//!
//! Counts decay, by half in about 42 seconds. So a count reads as "per minute", and a key that stops is forgotten. The
//! number of counted keys is limited: at the limit, keys that came once make room for keys that come again and again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

use crate::sync::lock;

/// Time in which a count decays to 1/e of its value. As it is one minute, a steady count equals the rate per minute.
const FADING: Duration = Duration::from_secs(60);
/// Most keys that are counted at the same time.
const ROOM: usize = 1000;
/// Count below which a key is dropped.
const LEAST: f64 = 0.05;
/// Count below which a key is dropped when there is no more room. A key that came twice lately is above it.
const ENOUGH: f64 = 1.5;
/// Shortest time between two passes over all counts.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time in which at most as many shown keys change as are shown at once.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Counts by key.
pub(crate) struct Top<K> {
    // Held for a look-up, and now and then for a pass over all counts.
    counts: Mutex<Counts<K>>,
}

struct Counts<K> {
    of: HashMap<K, f64>,
    total: f64,
    faded: Instant,
    looked: Option<Instant>,
}

impl<K: Clone + Eq + Hash + Ord> Top<K> {
    pub(super) fn new() -> Self {
        let counts = Counts {
            of: HashMap::new(),
            total: 0.0,
            faded: Instant::now(),
            looked: None,
        };
        let counts = Mutex::new(counts);
        Self { counts }
    }

    /// Adds `times` to the count of `key`.
    pub(crate) fn add(&self, key: &K, times: f64) {
        let mut counts = lock(&self.counts);
        if counts.faded.elapsed() >= LOOK_AGAIN {
            counts.fade(); // old counts decay before the new one is added
        }
        counts.total += times;
        if let Some(count) = counts.of.get_mut(key) {
            *count += times;
        } else if counts.has_room() {
            counts.of.insert(key.clone(), times);
        }
    }

    /// Returns the current rates.
    pub(crate) fn rates(&self) -> Rates<K> {
        let mut counts = lock(&self.counts);
        counts.fade();
        Rates {
            of: counts.of.clone(),
            total: counts.total,
        }
    }
}

/// Rates per minute, by key.
pub(crate) struct Rates<K> {
    of: HashMap<K, f64>,
    /// Rate of all keys together, also of keys for which there was no room.
    pub(crate) total: f64,
}

impl<K: Clone + Eq + Hash + Ord> Rates<K> {
    /// Returns the `most` keys with the highest rates, highest first.
    pub(crate) fn into_most(self, most: usize) -> Vec<(K, f64)> {
        let mut all: Vec<_> = self.of.into_iter().collect();
        // Equal rates are ordered by key, so that a tie does not change which keys are named.
        all.sort_by(|(a, m), (b, n)| n.total_cmp(m).then_with(|| a.cmp(b)));
        all.truncate(most);
        all
    }
}

#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
impl<K: Clone + Eq + Hash + Ord> Rates<K> {
    /// Returns the same keys as [`into_most`](Self::into_most), without their rates.
    pub(crate) fn most(&self, most: usize) -> Vec<K> {
        let all = Self {
            of: self.of.clone(),
            total: self.total,
        };
        all.into_most(most)
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }

    /// Returns the rate of `key`.
    pub(crate) fn of(&self, key: &K) -> f64 {
        self.of.get(key).copied().unwrap_or_default()
    }
}

impl<K> Counts<K> {
    fn fade(&mut self) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.faded);
        let rest = (-elapsed.div_duration_f64(FADING)).exp();
        self.faded = now;
        self.total *= rest;
        self.of.retain(|_, count| {
            *count *= rest;
            *count >= LEAST
        });
    }

    /// Returns whether there is room for one more key. At the limit it first drops rare keys, unless it tried that
    /// recently.
    fn has_room(&mut self) -> bool {
        if self.of.len() < ROOM {
            return true;
        }
        let now = Instant::now();
        if self.looked.is_some_and(|at| now < at + LOOK_AGAIN) {
            return false;
        }
        self.looked = Some(now);
        self.fade();
        self.of.retain(|_, count| *count >= ENOUGH);
        self.of.len() < ROOM
    }
}

/// The keys that are shown by name. Each name that was ever shown costs memory elsewhere, so the number of names is
/// limited at any time, and so is the number of new ones per day.
#[derive(Debug)]
pub(crate) struct Shown<K> {
    most: usize,
    keys: Vec<K>,
    /// Times of the replacements within the last day.
    changes: VecDeque<Instant>,
}

#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
impl<K: Clone + Eq + Hash> Shown<K> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            keys: Vec::new(),
            changes: VecDeque::new(),
        }
    }

    /// Brings the shown keys closer to `wanted`, which is ordered by priority. Returns the keys that are shown now, and
    /// those that no longer are.
    pub(crate) fn choose(&mut self, wanted: &[K]) -> (&[K], Vec<K>) {
        let now = Instant::now();
        while self.changes.front().is_some_and(|at| *at + DAY <= now) {
            self.changes.pop_front();
        }
        let still: HashSet<_> = wanted.iter().take(self.most).collect();
        let mut gone = Vec::new();
        for key in wanted.iter().take(self.most) {
            if self.keys.contains(key) {
                continue;
            }
            if self.keys.len() < self.most {
                self.keys.push(key.clone());
                continue;
            }
            let spare = self.keys.iter().position(|key| !still.contains(key));
            if let Some(spare) = spare.filter(|_| self.changes.len() < self.most) {
                self.changes.push_back(now);
                gone.push(std::mem::replace(&mut self.keys[spare], key.clone()));
            }
        }
        (&self.keys, gone)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn counts_read_as_in_a_minute_and_fade() {
        let top = Top::new();
        for _ in 0..600 {
            top.add(&"busy", 10.0);
            top.add(&"quiet", 1.0);
            advance(Duration::from_secs(1)).await;
        }
        let [(first, busy), (second, quiet)] = top.rates().into_most(5)[..] else {
            panic!("two were counted");
        };
        assert_eq!((first, second), ("busy", "quiet"));
        assert!((570.0..630.0).contains(&busy), "{busy}");
        assert!((57.0..63.0).contains(&quiet), "{quiet}");
        assert!((top.rates().total - busy - quiet).abs() < 1.0);
        advance(Duration::from_secs(600)).await;
        assert_eq!(top.rates().into_most(5), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_those_who_come_once_does_not_hide_who_comes_again() {
        let top = Top::new();
        for round in 0..20 {
            for n in 0..300 {
                top.add(&format!("once-{round}-{n}"), 1.0);
            }
            top.add(&"again".to_owned(), 1.0);
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(top.rates().into_most(1)[0].0, "again");
        assert!(top.counts.lock().unwrap().of.len() <= ROOM);
        assert!(top.rates().total > 4500.0, "and all are counted");
    }

    #[tokio::test(start_paused = true)]
    async fn names_change_as_often_a_day_as_there_are_and_no_more() {
        let mut shown = Shown::new(2);
        assert_eq!(shown.choose(&["a", "b", "c"]), (&["a", "b"][..], vec![]));
        assert_eq!(shown.choose(&["c", "a"]), (&["a", "c"][..], vec!["b"]));
        assert_eq!(shown.choose(&["d", "c"]), (&["d", "c"][..], vec!["a"]));
        assert_eq!(shown.choose(&["e", "f"]), (&["d", "c"][..], vec![]));
        advance(DAY).await;
        let (now, gone) = shown.choose(&["e", "f"]);
        assert_eq!((now, gone), (&["e", "f"][..], vec!["d", "c"]));
        assert_eq!(Shown::<&str>::new(0).choose(&["a"]), (&[][..], vec![]));
    }
}
