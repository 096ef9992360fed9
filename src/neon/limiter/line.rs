//! The order and the pace of requests. The line notifies no request: each waiting request checks what is ahead of it,
//! and checks again less than a second later.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::rate::Rate;
use crate::sync::progress::Class;

const SECOND: Duration = Duration::from_secs(1);
/// Longest time between two looks of a waiting request.
const LOOK: Duration = Duration::from_millis(750);
/// Longest delay of a look. After it, other requests pass this one until it looks again, which may be never.
const GRACE: Duration = Duration::from_millis(250);

/// The waiting requests of one key, and the latest that have passed.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The rate of each client of this line; the smallest applies to all.
    rates: Vec<Rate>,
    /// Time of the next request at the even pace.
    due: Option<Instant>,
    routes: HashMap<&'static str, Route>,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Route {
    /// Times at which the latest requests passed, oldest first.
    passed: VecDeque<Instant>,
    /// End of the hold that Neon asked for.
    held: Option<Instant>,
    /// The waiting requests, each with the time until which it counts as waiting.
    waiting: BTreeMap<Place, Instant>,
}

/// The order in which requests pass: by class, then by arrival.
type Place = (Class, u64);

/// The place of one request.
#[derive(Debug)]
pub(super) struct QueueEntry {
    route: &'static str,
    place: Place,
}

impl Line {
    /// Adds a client that may send at `rate`.
    pub(super) fn enter(&mut self, rate: Rate, now: Instant) {
        self.rates.push(rate);
        self.keep_pace(now);
    }

    /// Removes a client of that rate.
    pub(super) fn exit(&mut self, rate: Rate, now: Instant) {
        if let Some(place) = self.rates.iter().position(|other| *other == rate) {
            self.rates.swap_remove(place);
        }
        self.keep_pace(now);
    }

    /// Makes `due` earlier if it still follows the slower pace of a client that has left. At the current rate, it is
    /// never later than after a full burst.
    fn keep_pace(&mut self, now: Instant) {
        let rate = self.rate();
        let latest = now + rate.lead() + rate.interval();
        self.due = self.due.map(|due| due.min(latest));
    }

    /// Gives a request its place, behind all others of its class.
    pub(super) fn join(&mut self, route: &'static str, class: Class) -> QueueEntry {
        self.arrivals += 1;
        let place = (class, self.arrivals);
        QueueEntry { route, place }
    }

    /// Returns the time of `ticket`'s turn, if no request leaves the line and no later one passes first.
    pub(super) fn turn(&self, ticket: &QueueEntry, now: Instant) -> Instant {
        let rate = self.rate();
        let (mut turn, mut ahead) = (now, 0);
        let mut others = Vec::new();
        for (name, route) in &self.routes {
            let (opens, before) = (route.opens(rate, now), route.before(ticket.place, now));
            if *name == ticket.route {
                turn = opens + SECOND * (before / rate.per_second);
                ahead = before;
            } else if before > 0 {
                others.push((opens, before));
            }
        }
        turn = turn.max(self.due(ahead, now));
        others.sort_unstable();
        for (opens, before) in others {
            if opens > turn {
                break; // routes that open after `turn` do not delay it
            }
            ahead += before;
            turn = turn.max(self.due(ahead, now));
        }
        turn
    }

    /// Lets the request pass.
    pub(super) fn pass(&mut self, ticket: &QueueEntry, now: Instant) {
        self.due = Some(self.due.map_or(now, |due| due.max(now)) + self.rate().interval());
        let passed = &mut self.routes.entry(ticket.route).or_default().passed;
        passed.retain(|passed| *passed + SECOND > now);
        passed.push_back(now);
    }

    /// Keeps the place of a request whose turn comes at `turn`, and returns the time of its next look.
    pub(super) fn wait(&mut self, ticket: &QueueEntry, turn: Instant, now: Instant) -> Instant {
        let look = turn.min(now + LOOK);
        let waiting = &mut self.routes.entry(ticket.route).or_default().waiting;
        waiting.insert(ticket.place, look + GRACE);
        look
    }

    /// Removes the request if it waits.
    pub(super) fn leave(&mut self, ticket: &QueueEntry) {
        if let Some(route) = self.routes.get_mut(ticket.route) {
            route.waiting.remove(&ticket.place);
        }
    }

    /// Lets no request of `route` pass before `until`.
    pub(super) fn hold(&mut self, route: &'static str, until: Instant) {
        let held = &mut self.routes.entry(route).or_default().held;
        *held = (*held).max(Some(until));
    }

    /// Returns whether Neon may still count requests of this line, so that a new line would exceed the limit.
    pub(super) fn matters(&self, now: Instant) -> bool {
        let recent = |at: Option<Instant>| at.is_some_and(|at| at + 60 * SECOND > now);
        recent(self.due) || self.routes.values().any(|route| recent(route.held))
    }

    fn rate(&self) -> Rate {
        let smaller = self.rates.iter().copied().reduce(Rate::smaller);
        // A line without clients has no waiting request, so the slowest rate delays none.
        smaller.unwrap_or(Rate {
            per_minute: 1,
            per_second: 1,
        })
    }

    /// Returns the time at which the limit per minute lets one more request pass after `ahead` others.
    fn due(&self, ahead: u32, now: Instant) -> Instant {
        let rate = self.rate();
        let due = self.due.map_or(now, |due| due.max(now)) + rate.interval() * ahead;
        due.checked_sub(rate.lead())
            .map_or(now, |turn| turn.max(now))
    }
}

impl Route {
    /// Returns the number of requests that pass before `place`.
    fn before(&self, place: Place, now: Instant) -> u32 {
        let before = self.waiting.range(..place);
        let there = before.filter(|(_, until)| **until >= now);
        u32::try_from(there.count()).unwrap_or(u32::MAX)
    }

    /// Returns the time at which the limit per second and Neon's hold let one more request pass.
    fn opens(&self, rate: Rate, now: Instant) -> Instant {
        let held = self.held.map_or(now, |held| held.max(now));
        let earlier = self.passed.len().checked_sub(rate.per_second as usize);
        let full = earlier.and_then(|place| self.passed.get(place));
        full.map_or(held, |passed| held.max(*passed + SECOND))
    }
}
