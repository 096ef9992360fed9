//! Who may send next, and when. Pure but for the bells: whoever waits looks again when its bell rings.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Class, rate::Rate};

const SECOND: Duration = Duration::from_secs(1);
/// How long a request whose turn has come stops those behind it, if nobody polls it.
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
    waiting: BTreeMap<Place, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bell: Arc<Notify>,
    answer: Answer,
}

/// Whether whoever holds a ticket looks when its bell rings. Each look of its own makes it [`Answer::Open`] again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    /// Nothing is known.
    Open,
    /// Its turn comes then, and it has been told so.
    Due(Instant),
    /// It let its turn go by. Others pass until it looks again, which may be never.
    Missed,
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
    /// Another is the next; its bell will ring. It looks again then all the same, lest the other does not.
    Behind(Instant),
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
        self.ring(now);
    }

    /// A slower pace that holds no longer is not waited for: nothing is due later than after all at once have passed.
    fn keep_pace(&mut self, now: Instant) {
        let rate = self.rate();
        self.due = self
            .due
            .map(|due| due.min(now + rate.lead() + rate.interval()));
    }

    /// Puts one more request at the end of its class.
    pub(super) fn join(&mut self, route: &'static str, class: Class) -> Ticket {
        self.arrivals += 1;
        let place = Place {
            class,
            arrival: self.arrivals,
        };
        let bell = Arc::new(Notify::new());
        let waiter = Waiter {
            bell: Arc::clone(&bell),
            answer: Answer::Open,
        };
        let waiting = &mut self.routes.entry(route).or_default().waiting;
        waiting.insert(place, waiter);
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
        self.hear(ticket);
        self.skip_missed(now);
        match self.next(now) {
            Some((place, at)) if place == ticket.place && at <= now => {
                self.pass(ticket, now);
                Turn::Now
            }
            Some((place, at)) if place == ticket.place => {
                self.tell(ticket.place, at);
                Turn::At(at)
            }
            // Time alone can have made it the next, without anybody's leaving.
            Some((_, at)) => {
                self.ring(now);
                Turn::Behind(now + if at > now { SECOND } else { GRACE })
            }
            None => Turn::Behind(now + SECOND),
        }
    }

    /// The earliest time at which `ticket` can pass if nobody gives up and nobody comes before it.
    pub(super) fn estimate(&self, ticket: &Ticket, now: Instant) -> Instant {
        let rate = self.rate();
        let (mut ahead, mut at) = (0, now);
        let mut others = Vec::new();
        for (name, route) in &self.routes {
            let (before, turn) = (route.before(ticket.place), route.turn(rate, now));
            if *name == ticket.route {
                ahead = before;
                at = turn + SECOND * (before / rate.per_second);
            } else {
                // As many as pass in one second, and when.
                let seconds = 0..before.div_ceil(rate.per_second);
                others.extend(seconds.map(|second| {
                    let left = before - second * rate.per_second;
                    (turn + SECOND * second, left.min(rate.per_second))
                }));
            }
        }
        others.sort_unstable();
        let mut estimate = self.minute_turn(ahead, now).max(at);
        for (turn, many) in others {
            if turn > estimate {
                break;
            }
            ahead += many;
            estimate = self.minute_turn(ahead, now).max(at);
        }
        estimate
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

    /// Notes that whoever holds `ticket` is there.
    fn hear(&mut self, ticket: &Ticket) {
        let route = self.routes.entry(ticket.route).or_default();
        if let Some(waiter) = route.waiting.get_mut(&ticket.place) {
            waiter.answer = Answer::Open;
        }
    }

    /// Passes by whoever was told of its turn and did not come. Where one is missing there may be more, as with many
    /// futures that one slow task holds: all are asked at once, so that they stop the others once and not each in turn.
    fn skip_missed(&mut self, now: Instant) {
        let mut missed = false;
        while let Some((place, at)) = self.next(now) {
            let Some(waiter) = self.waiter(place) else {
                break;
            };
            match waiter.answer {
                Answer::Due(told) if at <= now && told + GRACE <= now => {
                    waiter.answer = Answer::Missed;
                    missed = true;
                }
                Answer::Due(_) | Answer::Open | Answer::Missed => break,
            }
        }
        if missed {
            let routes = self.routes.values_mut();
            for waiter in routes.flat_map(|route| route.waiting.values_mut()) {
                if waiter.answer == Answer::Open {
                    waiter.answer = Answer::Due(now);
                    waiter.bell.notify_one();
                }
            }
        }
    }

    fn waiter(&mut self, place: Place) -> Option<&mut Waiter> {
        let mut routes = self.routes.values_mut();
        routes.find_map(|route| route.waiting.get_mut(&place))
    }

    /// The request that passes next, and when.
    fn next(&self, now: Instant) -> Option<(Place, Instant)> {
        let (rate, minute) = (self.rate(), self.minute_turn(0, now));
        let first = |route: &Route| {
            let (place, _) = route.in_line().next()?;
            Some((*place, route.turn(rate, now).max(minute)))
        };
        let firsts = self.routes.values().filter_map(first);
        firsts.min_by_key(|(place, at)| (*at, *place))
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

    /// Tells the next one that it is.
    fn ring(&mut self, now: Instant) {
        let Some((place, at)) = self.next(now) else {
            return;
        };
        if let Some(bell) = self.tell(place, at) {
            bell.notify_one();
        }
    }

    /// Notes that the request at `place` has to come at `at`.
    fn tell(&mut self, place: Place, at: Instant) -> Option<&Notify> {
        let waiter = self.waiter(place)?;
        let told = match waiter.answer {
            // Told already; it may be the next only since, but its bell has rung.
            Answer::Due(told) => told.min(at),
            Answer::Missed | Answer::Open => at,
        };
        waiter.answer = Answer::Due(told);
        Some(&waiter.bell)
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
    /// Those that may pass, in their order.
    fn in_line(&self) -> impl Iterator<Item = (&Place, &Waiter)> {
        let waiting = self.waiting.iter();
        waiting.filter(|(_, waiter)| waiter.answer != Answer::Missed)
    }

    /// How many pass before `place`.
    fn before(&self, place: Place) -> u32 {
        let before = self.in_line().take_while(|(other, _)| **other < place);
        count(before.count())
    }

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
