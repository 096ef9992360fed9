//! How far slow work has come: its deadline, its stage and its last failure, for every caller that waits for it.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::lock;
use crate::model::error::{Error, ErrorKind, Stage};

/// When to come back for work that goes on, if nothing else is known.
const COME_BACK: Duration = Duration::from_secs(1);

/// No work takes longer than this.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Who waits for a piece of work. Where calls are limited, those of the first class pass first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Class {
    /// A person, or a tenant's first access.
    Interactive,
    /// Callers of a tenant that cannot be reached. There may be as many as there are tenants, and it may be in vain.
    Recovery,
    /// Nobody.
    Background,
}

/// How far one piece of slow work has come: its deadline, its stage, and the last failure it met.
///
/// The work writes it, whoever waits for the work reads it, so that a caller whose own time is over still hears why.
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    deadline: Instant,
    /// What is done, if the stage does not say it.
    doing: Option<&'static str>,
    class: Class,
    // Guards the stage and the failure, which are written together.
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    stage: Stage,
    last_failure: Option<Noted>,
    /// Why what the work finds is not to be used, if that is known.
    stale: Option<Stale>,
}

/// Why what a piece of work finds is not to be used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Stale {
    /// It may be out of date.
    Old,
    /// It is known to be different by now.
    Wrong,
}

impl Progress {
    /// Starts work that ends `limit` from now at the latest, and after a day in any case.
    pub fn new(stage: Stage, limit: Duration) -> Self {
        let started = Instant::now();
        let seen = Arc::new(Mutex::new(Seen {
            stage,
            last_failure: None,
            stale: None,
        }));
        Self {
            started,
            deadline: started + limit.min(LONGEST),
            doing: None,
            class: Class::Interactive,
            seen,
        }
    }

    /// Says what is done, where a stage is none of it.
    pub(crate) fn doing(self, what: &'static str) -> Self {
        let doing = Some(what);
        Self { doing, ..self }
    }

    /// The same work, a part of which is of `class`.
    pub(crate) fn of(&self, class: Class) -> Self {
        Self {
            class,
            ..self.clone()
        }
    }

    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// The same work, a part of which must end by `deadline`.
    pub(crate) fn by(&self, deadline: Instant) -> Self {
        let deadline = self.deadline.min(deadline);
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// When the work must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Says which stage begins.
    pub fn enter(&self, stage: Stage) {
        self.seen().stage = stage;
    }

    /// The stage that was entered last.
    pub(crate) fn stage(&self) -> Stage {
        self.seen().stage
    }

    /// Notes a failure that is going to be retried.
    pub fn note(&self, failure: &Error) {
        self.seen().last_failure = Some(Noted::new(failure.clone()));
    }

    /// Forgets the failure that was noted last.
    pub(super) fn forget_failure(&self) {
        self.seen().last_failure = None;
    }

    pub(crate) fn mark_stale(&self, why: Stale) {
        let mut seen = self.seen();
        seen.stale = seen.stale.max(Some(why));
    }

    /// Returns whether it was marked since this was last asked.
    pub(crate) fn take_stale(&self) -> Option<Stale> {
        std::mem::take(&mut self.seen().stale)
    }

    /// Time since the work began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time left; none when the deadline has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The error for whoever stops waiting now: the stage, and the last failure as its source.
    pub(crate) fn timed_out(&self) -> Error {
        let seen = self.seen();
        let failure = seen.last_failure.as_ref().map(Noted::error);
        let waited = self.started.elapsed();
        match self.doing {
            None => timed_out(seen.stage, waited, failure),
            Some(doing) => out_of_time(seen.stage, doing, waited, failure),
        }
    }

    /// The error for whoever stops waiting now while the work goes on: the last failure as its source.
    pub(crate) fn unfinished(&self) -> Error {
        let err = self.timed_out();
        if self.stage() != Stage::Provision {
            return err;
        }
        let failure = self.seen().last_failure.as_ref().map(Noted::error);
        let creating = Error::new(ErrorKind::Provisioning, creating(failure.as_ref()))
            .with_stage(Stage::Provision)
            .with_retry_after(err.retry_after());
        match failure {
            Some(failure) => creating.with_source(failure),
            None => creating,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

/// What is told of a creation that goes on, after `failure` was met last.
fn creating(failure: Option<&Error>) -> &'static str {
    match failure.map(Error::kind) {
        None => "the tenant's database is being created, which goes on; come back later",
        Some(ErrorKind::Locked) => {
            "the tenant's database is being created, and something else is at it; that goes on, come back later"
        }
        Some(_) => {
            "the tenant's database cannot be created for now; that is tried again, so come back later, and see to the \
             cause if it stays so"
        }
    }
}

/// A failure, and when it was met: what it says about coming back is counted from then.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    error: Error,
    at: Instant,
}

impl Noted {
    pub(crate) fn new(error: Error) -> Self {
        let at = Instant::now();
        Self { error, at }
    }

    /// The failure, as it is to be told now.
    pub(crate) fn error(&self) -> Error {
        let left = |wait: Duration| wait.saturating_sub(self.at.elapsed());
        let wait = self.error.retry_after().map(left);
        self.error.clone().with_retry_after(wait)
    }
}

/// The error for a wait of `waited` that ended at `stage`, after `last_failure`.
pub(crate) fn timed_out(stage: Stage, waited: Duration, last_failure: Option<Error>) -> Error {
    out_of_time(stage, stage, waited, last_failure)
}

fn out_of_time(
    stage: Stage,
    doing: impl Display,
    waited: Duration,
    last_failure: Option<Error>,
) -> Error {
    let message = format!("out of time while {doing}, {waited:.1?} after it began");
    let err = Error::new(ErrorKind::Timeout(stage), message);
    match last_failure {
        // The work goes on without this caller, so coming back soon can help.
        None => err.with_retry_after(COME_BACK),
        Some(failure) => {
            let wait = failure.retry_after().unwrap_or_default();
            let wait = wait.max(COME_BACK);
            err.with_retry_after(wait).with_source(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_absurd_limit_is_a_day_and_no_panic() {
        let progress = Progress::new(Stage::Lookup, Duration::MAX);
        assert_eq!(progress.remaining(), LONGEST);
    }
}
