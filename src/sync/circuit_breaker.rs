//! A circuit breaker for calls to a service that may be down.
//!
//! An outage must cost one probe at a time, not one call per request: a call that would only wait for another failure
//! fails at once. But one failure alone must not refuse calls that have time: the first wait is short, and calls wait
//! it out. A kind of call that fails for reasons of its own must not block the other kinds.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{lock, retry::chance};
use crate::model::error::Error;

/// Wait before the first probe after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait between two probes.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The number of a kind of call, below [`KINDS`].
pub(crate) type Kind = usize;
/// Largest number of kinds of calls.
pub(crate) const KINDS: usize = 16;

/// Lets all calls pass until one fails. From then on one call at a time passes, at growing intervals, until one
/// succeeds.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    // Locked for a few instructions.
    inner: Mutex<Inner>,
    /// Notified of every change of the state.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Rises with every change of the state. The outcome of a call that passed in an earlier epoch does not change the
    /// present state.
    epoch: u64,
    /// Epoch in which the present outage began.
    began: u64,
    /// Number of failures of each kind of call since it was answered last.
    streaks: [u32; KINDS],
    /// `true` for a kind of call that has not failed and has had its try in this outage.
    tried: [bool; KINDS],
    /// `true` if the outage began with a call that got no answer: the next call would wait for one just as long.
    is_silent: bool,
    /// The subject of the last call without an answer, if none was answered since.
    unanswered: Option<Box<str>>,
    last_failure: Option<Error>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// All calls pass. Becomes `Open` with the first failure.
    #[default]
    Closed,
    /// No call passes. Becomes `Probing` with the first call after `until`.
    Open { until: Instant, failures: u32 },
    /// One call has passed, and no other does. Becomes `Closed` if it succeeds, `Open` if it fails or gives up.
    Probing { failures: u32 },
}

impl State {
    /// Returns the state after a call has passed, or the time for which no call may pass.
    fn entered(self, now: Instant) -> Result<Self, Duration> {
        match self {
            Self::Closed => Ok(Self::Closed),
            Self::Open { until, failures } if until <= now => Ok(Self::Probing { failures }),
            Self::Open { until, .. } => Err(until - now),
            Self::Probing { .. } => Err(FIRST_WAIT),
        }
    }

    /// Returns the state after a call that passed in it has failed. `before` is the number of failures of its kind
    /// since the last answer. `chance` is between 0 and 255.
    fn failed(self, now: Instant, before: u32, chance: u8) -> Self {
        match self {
            Self::Closed => Self::opened(now, before.saturating_add(1), chance),
            Self::Probing { failures } => Self::opened(now, failures.saturating_add(1), chance),
            Self::Open { .. } => self,
        }
    }

    /// Returns the state after a call that passed in it was given up.
    fn probe_dropped(self, now: Instant, chance: u8) -> Self {
        match self {
            Self::Probing { failures } => Self::opened(now, failures, chance),
            Self::Closed | Self::Open { .. } => self,
        }
    }

    /// Returns the open state after `failures`. The waits double, and each is shortened at random by up to a quarter,
    /// so that replicas do not probe in step.
    fn opened(now: Instant, failures: u32, chance: u8) -> Self {
        let doubled = FIRST_WAIT * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
        let wait = doubled.min(LONGEST_WAIT);
        let shortened = wait / 4 * u32::from(chance) / u32::from(u8::MAX);
        let until = now + wait - shortened;
        Self::Open { until, failures }
    }
}

impl State {
    /// Returns whether the state is the first wait of an outage, or the probe after it.
    fn is_first(self) -> bool {
        match self {
            Self::Closed => false,
            Self::Open { failures, .. } | Self::Probing { failures } => failures == 1,
        }
    }
}

impl Breaker {
    /// Returns a [`CallPermit`] for one call. Waits for it until `until`, as long as only the first wait of an outage
    /// and the probe after it are in the way.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn acquire(
        &self,
        kind: Kind,
        until: Instant,
    ) -> Result<CallPermit<'_>, BreakerOpen> {
        loop {
            let changed = self.changed.notified(); // before the check, so that no change is missed
            let open = match self.enter(kind) {
                Err(open) if open.is_brief && Instant::now() < until => open,
                done => return done,
            };
            let _ = timeout_at(until.min(Instant::now() + open.left), changed).await;
        }
    }

    /// Returns a [`CallPermit`] for one call now. A kind of call that was answered the last time may try once per
    /// outage, at any time, because only another kind may be failing.
    pub(super) fn enter(&self, kind: Kind) -> Result<CallPermit<'_>, BreakerOpen> {
        let mut inner = self.inner();
        let epoch = match inner.state.entered(Instant::now()) {
            Ok(state) => {
                self.transition(&mut inner, state);
                Some(inner.epoch)
            }
            Err(_) if inner.streaks[kind] == 0 && !inner.tried[kind] => {
                inner.tried[kind] = true;
                None
            }
            Err(left) => {
                let is_tried = inner.streaks[kind] == 0;
                return Err(BreakerOpen {
                    left,
                    is_brief: is_tried || inner.state.is_first() && !inner.is_silent,
                    last_failure: inner.last_failure.clone(),
                });
            }
        };
        Ok(CallPermit {
            breaker: self,
            kind,
            epoch,
            began: inner.began,
        })
    }

    /// Returns whether no call passes now.
    pub(crate) fn is_open(&self) -> bool {
        self.inner().state.entered(Instant::now()).is_err()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn transition(&self, inner: &mut Inner, state: State) {
        if inner.state == state {
            return;
        }
        inner.epoch += 1;
        if inner.state == State::Closed {
            (inner.began, inner.tried) = (inner.epoch, [false; KINDS]);
        }
        if state == State::Closed {
            inner.last_failure = None;
        }
        inner.state = state;
        self.changed.notify_waiters();
    }
}

impl Inner {
    /// Returns the time until a call may pass.
    fn left(&self, now: Instant) -> Duration {
        self.state.entered(now).err().unwrap_or_default()
    }

    /// Returns whether the call of `permit` is a try in the present outage.
    fn is_tried_by(&self, permit: &CallPermit<'_>) -> bool {
        permit.epoch.is_none() && self.state != State::Closed && self.began == permit.began
    }
}

/// The refusal of a call while no call passes.
#[derive(Debug)]
pub(crate) struct BreakerOpen {
    /// Time until a call may pass again.
    pub(crate) left: Duration,
    /// The failure for which no call passes.
    pub(crate) last_failure: Option<Error>,
    /// `true` if a call should wait it out: only the first wait of an outage is in the way.
    is_brief: bool,
}

/// The right to make one call. Dropping it records that the answer was not waited for.
#[must_use]
#[derive(Debug)]
pub(crate) struct CallPermit<'a> {
    breaker: &'a Breaker,
    kind: Kind,
    /// Epoch in which the outcome of the call counts; `None` if the call is a try beside the probes.
    epoch: Option<u64>,
    /// Outage in which the permit was given, or the last one before.
    began: u64,
}

impl CallPermit<'_> {
    /// Records that the call was answered.
    pub(crate) fn succeeded(self) {
        let mut inner = self.breaker.inner();
        inner.unanswered = None;
        inner.streaks[self.kind] = 0;
        if self.is_of(&inner) || inner.began == self.began {
            self.breaker.transition(&mut inner, State::Closed);
        }
    }

    /// Records that the call failed with `err`. Returns whether that was the first failure, and the time until the next
    /// try.
    pub(crate) fn failed(self, err: &Error) -> (bool, Duration) {
        let mut inner = self.breaker.inner();
        self.fail(&mut inner, false, err)
    }

    /// Records that the call got no answer, with `err` as its error. Calls about one `subject` may wait for something
    /// of its own, such as a lock. So the first such call is a failure only if a call about another subject got no
    /// answer either, and no call was answered in between.
    pub(crate) fn unanswered(self, subject: &str, err: &Error) -> (bool, Duration) {
        let mut inner = self.breaker.inner();
        let is_first = self.is_of(&inner) && inner.state == State::Closed;
        let others = inner.unanswered.as_deref().filter(|it| *it != subject);
        if is_first && others.is_none() {
            inner.unanswered = Some(subject.into());
            return (false, FIRST_WAIT);
        }
        self.fail(&mut inner, true, err)
    }

    fn is_of(&self, inner: &Inner) -> bool {
        self.epoch == Some(inner.epoch)
    }

    fn fail(&self, inner: &mut Inner, is_silent: bool, err: &Error) -> (bool, Duration) {
        let now = Instant::now();
        let (ours, opens) = (self.is_of(inner), inner.state == State::Closed);
        if !ours && !inner.is_tried_by(self) {
            return (false, inner.left(now));
        }
        let before = inner.streaks[self.kind];
        inner.streaks[self.kind] = before.saturating_add(1);
        inner.last_failure = Some(err.clone());
        if ours {
            let state = inner.state.failed(now, before, chance());
            self.breaker.transition(inner, state);
        }
        if ours && opens {
            (inner.is_silent, inner.unanswered) = (is_silent, None);
        }
        // A kind that failed before may go on failing while other kinds are answered: that is no new outage.
        (ours && opens && before == 0, inner.left(now))
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        let mut inner = self.breaker.inner();
        if self.is_of(&inner) {
            // After an outcome this changes nothing: it changes only `Probing`, which the outcome has ended.
            let state = inner.state.probe_dropped(Instant::now(), chance());
            self.breaker.transition(&mut inner, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::ErrorKind;

    const FIND: Kind = 0;
    const CHANGES: Kind = 1;
    const SECOND: Duration = Duration::from_secs(1);

    fn failure() -> Error {
        Error::new(ErrorKind::Catalog, "down")
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_double_up_to_five_seconds_and_are_shortened_by_a_quarter_at_most() {
        let now = Instant::now();
        let mut state = State::Closed;
        let mut longest = Vec::new();
        for _ in 0..7 {
            let open = state.failed(now, 0, 0);
            longest.push(open.entered(now).unwrap_err());
            let shortest = state.failed(now, 0, 255).entered(now).unwrap_err();
            assert_eq!(shortest, longest[longest.len() - 1] * 3 / 4);
            state = open.entered(now + LONGEST_WAIT).unwrap();
            assert!(matches!(state, State::Probing { .. }));
        }
        let expected = [250, 500, 1000, 2000, 4000, 5000, 5000].map(Duration::from_millis);
        assert_eq!(longest, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probes_at_a_time_and_its_success_lets_everybody_pass() {
        let breaker = Breaker::default();
        let (first, _) = breaker.enter(FIND).unwrap().failed(&failure());
        assert!(first);
        let open = breaker.enter(FIND).unwrap_err();
        assert!(open.left <= FIRST_WAIT && open.last_failure.is_some());
        tokio::time::advance(FIRST_WAIT).await;
        let probe = breaker.enter(FIND).unwrap();
        assert!(breaker.is_open(), "one at a time");
        probe.succeeded();
        assert!(breaker.enter(FIND).is_ok() && breaker.enter(FIND).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn those_under_way_when_it_opens_neither_open_it_again_nor_close_it() {
        let breaker = Breaker::default();
        let herd: Vec<_> = (0..10).map(|_| breaker.enter(FIND).unwrap()).collect();
        let mut openings = 0;
        for permit in herd {
            openings += u32::from(permit.failed(&failure()).0);
        }
        assert_eq!(openings, 1);
        assert!(breaker.enter(FIND).unwrap_err().left <= FIRST_WAIT);

        let breaker = Breaker::default();
        let (late, other) = (breaker.enter(FIND).unwrap(), breaker.enter(FIND).unwrap());
        other.failed(&failure());
        late.succeeded();
        assert!(breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_late_says_nothing_of_what_is_better_by_then() {
        let breaker = Breaker::default();
        let late: Vec<_> = (0..3).map(|_| breaker.enter(FIND).unwrap()).collect();
        let mut late = late.into_iter();
        breaker.enter(FIND).unwrap().failed(&failure());
        tokio::time::advance(FIRST_WAIT).await;
        let probe = breaker.enter(FIND).unwrap();
        late.next().unwrap().failed(&failure());
        drop(late.next());
        probe.succeeded();
        assert!(!breaker.is_open(), "it was the probe that counted");
        late.next().unwrap().failed(&failure());
        assert!(!breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_does_not_leave_it_shut_for_ever() {
        let breaker = Breaker::default();
        breaker.enter(FIND).unwrap().failed(&failure());
        tokio::time::advance(FIRST_WAIT).await;
        drop(breaker.enter(FIND).unwrap());
        assert!(breaker.is_open());
        tokio::time::advance(SECOND).await;
        breaker.enter(FIND).unwrap().succeeded();
        assert!(!breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_else_giving_up_opens_it() {
        let breaker = Breaker::default();
        drop(breaker.enter(FIND).unwrap());
        assert!(!breaker.is_open());
    }

    /// Makes a kind of call that was answered before fail until calls fail at once.
    async fn outage(breaker: &Breaker) {
        breaker.enter(FIND).unwrap().succeeded();
        breaker.enter(FIND).unwrap().failed(&failure());
        tokio::time::advance(FIRST_WAIT).await;
        breaker.enter(FIND).unwrap().failed(&failure());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_wait_and_its_probe_are_waited_out_and_longer_ones_are_not() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let until = start + 10 * SECOND;
        breaker.enter(FIND).unwrap().failed(&failure());
        let first = breaker.acquire(FIND, until).await.unwrap();
        assert!(start.elapsed() <= FIRST_WAIT);
        let impatient = breaker.acquire(FIND, start + SECOND).await;
        assert!(impatient.is_err() && start.elapsed() == SECOND);
        let waiting = async {
            let passed = breaker.acquire(FIND, until).await;
            (passed.is_ok(), start.elapsed())
        };
        let probing = async {
            tokio::time::sleep(SECOND).await;
            first.succeeded();
        };
        let (passed, ()) = tokio::join!(waiting, probing);
        assert_eq!(
            passed,
            (true, 2 * SECOND),
            "as soon as the probe has succeeded"
        );

        outage(&breaker).await;
        let now = Instant::now();
        assert!(breaker.acquire(FIND, now + SECOND).await.is_err());
        assert_eq!(Instant::now(), now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_of_call_that_fails_does_not_keep_another_out() {
        let breaker = Breaker::default();
        outage(&breaker).await;
        assert!(breaker.enter(FIND).is_err());
        let tried = breaker.enter(CHANGES).unwrap();
        assert!(breaker.enter(CHANGES).is_err(), "once");
        tried.failed(&failure());
        assert!(breaker.enter(CHANGES).is_err() && breaker.is_open());
        tokio::time::advance(FIRST_WAIT * 2).await;
        breaker.enter(CHANGES).unwrap().succeeded();
        assert!(!breaker.is_open());

        outage(&breaker).await;
        tokio::time::advance(FIRST_WAIT * 2).await;
        let probe = breaker.enter(FIND).unwrap();
        let tried = breaker.enter(CHANGES).unwrap();
        tried.succeeded();
        assert!(!breaker.is_open(), "also beside a probe");
        probe.failed(&failure());
        assert!(!breaker.is_open());

        outage(&breaker).await;
        drop(breaker.enter(CHANGES).unwrap());
        assert!(breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_of_call_that_goes_on_failing_waits_longer_and_longer_and_is_told_of_once() {
        let breaker = Breaker::default();
        let mut waits = Vec::new();
        for turn in 0..6 {
            let (first, left) = breaker.enter(CHANGES).unwrap().failed(&failure());
            assert_eq!(first, turn == 0);
            waits.push(left);
            let tried = breaker.enter(FIND).unwrap();
            let other = breaker.acquire(FIND, Instant::now() + SECOND);
            let (other, ()) = tokio::join!(other, async {
                tokio::time::sleep(SECOND / 10).await;
                tried.succeeded();
            });
            other.unwrap().succeeded();
        }
        // The random shortening may reverse the order of the last two.
        assert!(waits[..5].is_sorted(), "{waits:?}");
        assert!(waits[5] > 3 * SECOND, "{waits:?}");
        breaker.enter(CHANGES).unwrap().succeeded();
        assert!(breaker.enter(CHANGES).unwrap().failed(&failure()).0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_subject_without_an_answer_is_no_outage_and_two_are() {
        let breaker = Breaker::default();
        let unanswered =
            |subject: &str| breaker.enter(FIND).unwrap().unanswered(subject, &failure());
        for _ in 0..3 {
            assert_eq!(unanswered("acme"), (false, FIRST_WAIT));
            assert!(!breaker.is_open());
        }
        breaker.enter(FIND).unwrap().succeeded();
        assert!(!unanswered("globex").0, "one was answered in between");
        assert!(unanswered("acme").0);
        let now = Instant::now();
        let open = breaker.acquire(FIND, now + SECOND).await.unwrap_err();
        assert!(
            open.left <= FIRST_WAIT && Instant::now() == now,
            "it is not waited out"
        );
        tokio::time::advance(FIRST_WAIT).await;
        let probe = breaker.enter(FIND).unwrap();
        assert!(!probe.unanswered("acme", &failure()).0);
        assert!(breaker.is_open());
    }
}
