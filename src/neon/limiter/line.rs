//! Decides when a request may pass. The line tells no request: each waiting request looks at what is ahead of it, and looks
//! again in a moment.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::rate::Rate;
use crate::sync::progress::Class;

const SECOND: Duration = Duration::from_secs(1);
/// How long a request waits for another look, if its turn is not sooner.
const LOOK: Duration = Duration::from_millis(750);
/// How late it may be. Then others pass until it looks again, which may be never.
const GRACE: Duration = Duration::from_millis(250);

/// The requests that wait, and those that have passed.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// What each client that stands here may send; the smallest holds.
    rates: Vec<Rate>,
    /// When the next request is due at the even pace.
    due: Option<Instant>,
    routes: HashMap<&'static str, Route>,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Route {
    /// When the latest requests passed, oldest first.
    passed: VecDeque<Instant>,
    /// Until when Neon wants no more of them.
    held: Option<Instant>,
    /// Those that wait, and until when each is believed to be there.
    waiting: BTreeMap<Place, Instant>,
}

/// The order in which requests pass: by class, then by arrival.
type Place = (Class, u64);

/// One request's.
#[derive(Debug)]
pub(super) struct QueueEntry {
    route: &'static str,
    place: Place,
}

impl Line {
    /// Lets a client in, which may send at `rate`.
    pub(super) fn enter(&mut self, rate: Rate, now: Instant) {
        self.rates.push(rate);
        self.keep_pace(now);
    }

    /// Lets a client of that rate out.
    pub(super) fn exit(&mut self, rate: Rate, now: Instant) {
        if let Some(place) = self.rates.iter().position(|other| *other == rate) {
            self.rates.swap_remove(place);
        }
        self.keep_pace(now);
    }

    /// A slower pace that holds no longer is not waited for: nothing is due later than after all at once have passed.
    fn keep_pace(&mut self, now: Instant) {
        let rate = self.rate();
        let latest = now + rate.lead() + rate.interval();
        self.due = self.due.map(|due| due.min(latest));
    }

    /// Adds a request, behind all others of its class.
    pub(super) fn join(&mut self, route: &'static str, class: Class) -> QueueEntry {
        self.arrivals += 1;
        let place = (class, self.arrivals);
        QueueEntry { route, place }
    }

    /// When it is the turn of `ticket`, if nobody gives up and nobody comes before it.
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
                break; // those pass later, whenever they came
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

    /// Keeps the place of a request whose turn comes at `turn`; returns when it has to look again.
    pub(super) fn wait(&mut self, ticket: &QueueEntry, turn: Instant, now: Instant) -> Instant {
        let look = turn.min(now + LOOK);
        let waiting = &mut self.routes.entry(ticket.route).or_default().waiting;
        waiting.insert(ticket.place, look + GRACE);
        look
    }

    /// Takes the request out, if it waits.
    pub(super) fn leave(&mut self, ticket: &QueueEntry) {
        if let Some(route) = self.routes.get_mut(ticket.route) {
            route.waiting.remove(&ticket.place);
        }
    }

    /// Lets nothing of `route` pass before `until`.
    pub(super) fn hold(&mut self, route: &'static str, until: Instant) {
        let held = &mut self.routes.entry(route).or_default().held;
        *held = (*held).max(Some(until));
    }

    /// Whether forgetting it would let more pass than may.
    pub(super) fn matters(&self, now: Instant) -> bool {
        let recent = |at: Option<Instant>| at.is_some_and(|at| at + 60 * SECOND > now);
        recent(self.due) || self.routes.values().any(|route| recent(route.held))
    }

    fn rate(&self) -> Rate {
        let smaller = self.rates.iter().copied().reduce(Rate::smaller);
        // Nobody waits where no client is.
        smaller.unwrap_or(Rate {
            per_minute: 1,
            per_second: 1,
        })
    }

    /// When the limit by the minute lets one more pass, with `ahead` before it.
    fn due(&self, ahead: u32, now: Instant) -> Instant {
        let rate = self.rate();
        let due = self.due.map_or(now, |due| due.max(now)) + rate.interval() * ahead;
        due.checked_sub(rate.lead())
            .map_or(now, |turn| turn.max(now))
    }
}

impl Route {
    /// How many pass before `place`.
    fn before(&self, place: Place, now: Instant) -> u32 {
        let before = self.waiting.range(..place);
        let there = before.filter(|(_, until)| **until >= now);
        u32::try_from(there.count()).unwrap_or(u32::MAX)
    }

    /// When the limit by the second, and Neon itself, let one more pass.
    fn opens(&self, rate: Rate, now: Instant) -> Instant {
        let held = self.held.map_or(now, |held| held.max(now));
        let earlier = self.passed.len().checked_sub(rate.per_second as usize);
        let full = earlier.and_then(|place| self.passed.get(place));
        full.map_or(held, |passed| held.max(*passed + SECOND))
    }
}
