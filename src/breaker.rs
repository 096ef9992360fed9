//! Whether something that failed a moment ago is asked again.
//!
//! An outage must cost one probe at a time and not one call per request: who would only wait for another failure is told
//! so at once.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use crate::{error::Error, retry::lock};

/// Wait before the first probe after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait between two probes.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Lets everybody pass until one fails; from then on one at a time, further and further apart, until one succeeds.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    // Held for a few instructions.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Rises with every change of the state: who passed in an earlier one says nothing about the present one.
    era: u64,
    last_failure: Option<Error>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// Everybody passes. Becomes `Open` with the first failure.
    #[default]
    Closed,
    /// Nobody passes. Becomes `Probing` with whoever comes first after that instant.
    Open { until: Instant, failures: u32 },
    /// One has passed, nobody else does. Becomes `Closed` if it succeeds, `Open` if it fails or gives up.
    Probing { failures: u32 },
}

impl State {
    /// The state once somebody has come who wants to pass, and may; or for how long nobody may.
    fn entered(self, now: Instant) -> Result<Self, Duration> {
        match self {
            Self::Closed => Ok(Self::Closed),
            Self::Open { until, failures } if until <= now => Ok(Self::Probing { failures }),
            Self::Open { until, .. } => Err(until - now),
            Self::Probing { .. } => Err(FIRST_WAIT),
        }
    }

    /// The state once one who passed in it has failed. `chance` is between 0 and 255.
    fn failed(self, now: Instant, chance: u8) -> Self {
        match self {
            Self::Closed => Self::opened(now, 1, chance),
            Self::Probing { failures } => Self::opened(now, failures.saturating_add(1), chance),
            Self::Open { .. } => self,
        }
    }

    /// The state once one who passed in it has given up.
    fn deserted(self, now: Instant, chance: u8) -> Self {
        match self {
            Self::Probing { failures } => Self::opened(now, failures, chance),
            Self::Closed | Self::Open { .. } => self,
        }
    }

    /// The waits double, each shortened by chance by up to a quarter: replicas do not probe in step.
    fn opened(now: Instant, failures: u32, chance: u8) -> Self {
        let doubled = FIRST_WAIT * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
        let wait = doubled.min(LONGEST_WAIT);
        let shortened = wait / 4 * u32::from(chance) / u32::from(u8::MAX);
        let until = now + wait - shortened;
        Self::Open { until, failures }
    }
}

impl Breaker {
    /// Leave to go and ask.
    pub(crate) fn enter(&self) -> Result<Pass<'_>, Shut> {
        let mut inner = self.inner();
        match inner.state.entered(Instant::now()) {
            Ok(state) => {
                inner.become_(state);
                let era = inner.era;
                drop(inner);
                Ok(Pass { breaker: self, era })
            }
            Err(left) => Err(Shut {
                left,
                last_failure: inner.last_failure.clone(),
            }),
        }
    }

    /// Whether nobody passes now.
    pub(crate) fn is_shut(&self) -> bool {
        self.inner().state.entered(Instant::now()).is_err()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn become_(&mut self, state: State) {
        self.era += u64::from(self.state != state);
        self.state = state;
    }
}

/// Nobody passes for now.
#[derive(Debug)]
pub(crate) struct Shut {
    /// Time until one may again.
    pub(crate) left: Duration,
    /// Why nobody does.
    pub(crate) last_failure: Option<Error>,
}

/// Leave to ask once. Dropping it says that the answer was not waited for.
#[must_use]
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    breaker: &'a Breaker,
    era: u64,
}

impl Pass<'_> {
    /// It succeeded.
    pub(crate) fn succeeded(self) {
        let mut inner = self.breaker.inner();
        if inner.era == self.era {
            inner.become_(State::Closed);
            inner.last_failure = None;
        }
    }

    /// It failed with `err`. Says whether that was the first failure, and when to try again.
    pub(crate) fn failed(self, err: &Error) -> (bool, Duration) {
        let now = Instant::now();
        let mut inner = self.breaker.inner();
        let ours = inner.era == self.era;
        let first = ours && inner.state == State::Closed;
        if ours {
            let state = inner.state.failed(now, chance());
            inner.become_(state);
            inner.last_failure = Some(err.clone());
        }
        (first, inner.state.entered(now).err().unwrap_or_default())
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inner = self.breaker.inner();
        if inner.era == self.era {
            // After an outcome this changes nothing: only the era of a probe knows `Probing`.
            let state = inner.state.deserted(Instant::now(), chance());
            inner.become_(state);
        }
    }
}

/// A number by chance.
pub(crate) fn chance() -> u8 {
    RandomState::new().hash_one(()).to_be_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

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
            let open = state.failed(now, 0);
            longest.push(open.entered(now).unwrap_err());
            let shortest = state.failed(now, 255).entered(now).unwrap_err();
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
        let (first, _) = breaker.enter().unwrap().failed(&failure());
        assert!(first);
        let shut = breaker.enter().unwrap_err();
        assert!(shut.left <= FIRST_WAIT && shut.last_failure.is_some());
        tokio::time::advance(FIRST_WAIT).await;
        let probe = breaker.enter().unwrap();
        assert!(breaker.is_shut(), "one at a time");
        probe.succeeded();
        assert!(breaker.enter().is_ok() && breaker.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn those_under_way_when_it_opens_neither_open_it_again_nor_close_it() {
        let breaker = Breaker::default();
        let herd: Vec<_> = (0..10).map(|_| breaker.enter().unwrap()).collect();
        let mut openings = 0;
        for pass in herd {
            openings += u32::from(pass.failed(&failure()).0);
        }
        assert_eq!(openings, 1);
        assert!(breaker.enter().unwrap_err().left <= FIRST_WAIT);

        let breaker = Breaker::default();
        let (late, other) = (breaker.enter().unwrap(), breaker.enter().unwrap());
        other.failed(&failure());
        late.succeeded();
        assert!(breaker.is_shut());
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_late_says_nothing_of_what_is_better_by_then() {
        let breaker = Breaker::default();
        let late: Vec<_> = (0..3).map(|_| breaker.enter().unwrap()).collect();
        let mut late = late.into_iter();
        breaker.enter().unwrap().failed(&failure());
        tokio::time::advance(FIRST_WAIT).await;
        let probe = breaker.enter().unwrap();
        late.next().unwrap().failed(&failure());
        drop(late.next());
        probe.succeeded();
        assert!(!breaker.is_shut(), "it was the probe that counted");
        late.next().unwrap().failed(&failure());
        assert!(!breaker.is_shut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_does_not_leave_it_shut_for_ever() {
        let breaker = Breaker::default();
        breaker.enter().unwrap().failed(&failure());
        tokio::time::advance(FIRST_WAIT).await;
        drop(breaker.enter().unwrap());
        assert!(breaker.is_shut());
        tokio::time::advance(SECOND).await;
        breaker.enter().unwrap().succeeded();
        assert!(!breaker.is_shut());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_else_giving_up_opens_it() {
        let breaker = Breaker::default();
        drop(breaker.enter().unwrap());
        assert!(!breaker.is_shut());
    }
}
