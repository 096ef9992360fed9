//! Who may send next, and when. Pure but for the bells: whoever waits looks again when its bell rings.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Class, rate::Rate};

const SECOND: Duration = Duration::from_secs(1);

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
    waiting: BTreeMap<Place, Arc<Notify>>,
}

/// The order in which requests pass: by class, then by arrival.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place {
    class: Class,
    arrival: u64,
}

/// What one request holds while it waits.
#[derive(Debug)]
pub(super) struct Ticket {
    route: &'static str,
    place: Place,
    pub(super) bell: Arc<Notify>,
}

/// What a request that waits has to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// It has passed.
    Now,
    /// It is the next, then.
    At(Instant),
    /// Another is the next; its bell will ring.
    Behind,
}

impl Line {
    /// Lets a client in, which may send at `rate`.
    pub(super) fn enter(&mut self, rate: Rate) {
        self.rates.push(rate);
    }

    /// Lets a client of that rate out.
    pub(super) fn exit(&mut self, rate: Rate) {
        if let Some(place) = self.rates.iter().position(|other| *other == rate) {
            self.rates.swap_remove(place);
        }
    }

    /// Puts one more request at the end of its class.
    pub(super) fn join(&mut self, route: &'static str, class: Class) -> Ticket {
        self.arrivals += 1;
        let place = Place {
            class,
            arrival: self.arrivals,
        };
        let bell = Arc::new(Notify::new());
        let waiting = &mut self.routes.entry(route).or_default().waiting;
        waiting.insert(place, Arc::clone(&bell));
        Ticket { route, place, bell }
    }

    /// Takes a request out that has not passed; the one behind it moves up.
    pub(super) fn leave(&mut self, ticket: &Ticket, now: Instant) {
        let route = self.routes.entry(ticket.route).or_default();
        if route.waiting.remove(&ticket.place).is_some() {
            self.ring(now);
        }
    }

    /// Whether it is the turn of `ticket`, which then has passed.
    pub(super) fn turn(&mut self, ticket: &Ticket, now: Instant) -> Turn {
        match self.next(now) {
            Some((place, at)) if place == ticket.place && at <= now => {
                self.pass(ticket, now);
                Turn::Now
            }
            Some((place, at)) if place == ticket.place => Turn::At(at),
            // Time alone can have made it the next, without anybody's leaving.
            _ => {
                self.ring(now);
                Turn::Behind
            }
        }
    }

    /// The earliest time at which `ticket` can pass if nobody gives up and nobody comes before it.
    pub(super) fn estimate(&self, ticket: &Ticket, now: Instant) -> Instant {
        let rate = self.rate();
        let before = |route: &Route| route.waiting.range(..ticket.place).count();
        let ahead = count(self.routes.values().map(before).sum());
        let route = self.routes.get(ticket.route);
        let seconds = route.map_or(0, |route| count(before(route)) / rate.per_second);
        let at_route = route.map_or(now, |route| route.turn(rate, now));
        self.minute_turn(ahead, now)
            .max(at_route + SECOND * seconds)
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

    /// The request that passes next, and when.
    fn next(&self, now: Instant) -> Option<(Place, Instant)> {
        let (rate, minute) = (self.rate(), self.minute_turn(0, now));
        let first = |route: &Route| {
            let (place, _) = route.waiting.first_key_value()?;
            Some((*place, route.turn(rate, now).max(minute)))
        };
        let firsts = self.routes.values().filter_map(first);
        firsts.min_by_key(|(place, at)| (place.class, *at, place.arrival))
    }

    fn pass(&mut self, ticket: &Ticket, now: Instant) {
        let rate = self.rate();
        self.due = Some(self.due.map_or(now, |due| due.max(now)) + rate.interval());
        let route = self.routes.entry(ticket.route).or_default();
        route.waiting.remove(&ticket.place);
        route.passed.retain(|passed| *passed + SECOND > now);
        route.passed.push_back(now);
        self.ring(now);
    }

    fn ring(&self, now: Instant) {
        let Some((place, _)) = self.next(now) else {
            return;
        };
        let mut routes = self.routes.values();
        if let Some(bell) = routes.find_map(|route| route.waiting.get(&place)) {
            bell.notify_one();
        }
    }

    /// When the limit by the minute lets one more pass, with `ahead` before it.
    fn minute_turn(&self, ahead: u32, now: Instant) -> Instant {
        let rate = self.rate();
        let due = self.due.map_or(now, |due| due.max(now)) + rate.interval() * ahead;
        due.checked_sub(rate.lead())
            .map_or(now, |turn| turn.max(now))
    }
}

impl Route {
    /// When the limit by the second, and Neon itself, let one more pass.
    fn turn(&self, rate: Rate, now: Instant) -> Instant {
        let held = self.held.map_or(now, |held| held.max(now));
        let limit = rate.per_second as usize;
        let earlier = self.passed.len().checked_sub(limit);
        let full = earlier.and_then(|place| self.passed.get(place));
        full.map_or(held, |passed| held.max(*passed + SECOND))
    }
}

fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}
