//! The progress of slow work: its deadline, its stage and its last failure, for every caller that waits for it.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::lock;
use crate::model::error::{Error, ErrorKind, Stage};

/// Time after which to come back for work that goes on, if no other is known.
const COME_BACK: Duration = Duration::from_secs(1);

/// Longest time of any work.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The class of a piece of work. Where calls are limited, those of the first class pass first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Class {
    /// Work that a person or a tenant's first access waits for.
    Interactive,
    /// Work for callers of a tenant that cannot be reached. There may be as much as there are tenants, and it may be in
    /// vain.
    Recovery,
    /// Work that no caller waits for.
    Background,
}

/// The progress of one piece of slow work: its deadline, its stage, and the last failure it met.
///
/// The work writes it and its callers read it, so that a caller that runs out of time still gets the reason.
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    deadline: Instant,
    /// Name of the work, if the stage does not say it.
    doing: Option<&'static str>,
    class: Class,
    // Guards the stage and the failure, which are written together.
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    stage: Stage,
    /// Version of the schema's step in progress.
    schema_step: Option<i64>,
    last_failure: Option<Noted>,
    /// Reason for which the result of the work must not be used, if there is one.
    stale: Option<Stale>,
}

/// The reason for which the result of a piece of work must not be used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Stale {
    /// The result may be out of date.
    Old,
    /// The result is known to be out of date.
    Wrong,
}

impl Progress {
    /// Starts work that ends `limit` from now at the latest, and after a day in any case.
    pub fn new(stage: Stage, limit: Duration) -> Self {
        let started = Instant::now();
        let seen = Arc::new(Mutex::new(Seen {
            stage,
            schema_step: None,
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

    /// Names the work, where no stage does.
    pub(crate) fn doing(self, what: &'static str) -> Self {
        let doing = Some(what);
        Self { doing, ..self }
    }

    /// Returns the progress for a part of the same work that is of `class`.
    pub(crate) fn of(&self, class: Class) -> Self {
        Self {
            class,
            ..self.clone()
        }
    }

    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Returns the progress for a part of the same work that must end by `deadline`.
    pub(crate) fn by(&self, deadline: Instant) -> Self {
        let deadline = self.deadline.min(deadline);
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Returns the time by which the work must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Notes that `stage` begins.
    pub fn enter(&self, stage: Stage) {
        self.seen().stage = stage;
    }

    /// Returns the schema's step in progress, if there is one.
    pub(crate) fn schema_step(&self) -> Option<i64> {
        self.seen().schema_step
    }

    /// Notes that a step of the schema begins, or that none is in progress.
    pub(crate) fn enter_schema_step(&self, version: Option<i64>) {
        self.seen().schema_step = version;
    }

    /// Returns the stage that was entered last.
    pub(crate) fn stage(&self) -> Stage {
        self.seen().stage
    }

    /// Notes a failure that is going to be retried.
    pub fn note(&self, failure: &Error) {
        self.seen().last_failure = Some(Noted::new(failure.clone()));
    }

    /// Forgets the failure that was noted last.
    pub(crate) fn forget_failure(&self) {
        self.seen().last_failure = None;
    }

    pub(crate) fn mark_stale(&self, why: Stale) {
        let mut seen = self.seen();
        seen.stale = seen.stale.max(Some(why));
    }

    /// Removes and returns the mark that was set since the last call.
    pub(super) fn take_stale(&self) -> Option<Stale> {
        std::mem::take(&mut self.seen().stale)
    }

    /// Returns the time since the work began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the time left, or zero if the deadline has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the error for a caller that stops waiting now. It names the stage, and has the last failure as its
    /// source.
    pub(crate) fn timed_out(&self) -> Error {
        let seen = self.seen();
        let failure = seen.last_failure.as_ref().map(Noted::error);
        let waited = self.started.elapsed();
        match self.doing {
            None => timed_out(seen.stage, waited, failure),
            Some(doing) => out_of_time(seen.stage, doing, waited, failure),
        }
    }

    /// Returns the error for a caller that runs out of time while the work goes on. It has the last failure as its
    /// source.
    pub(super) fn caller_timed_out(&self) -> Error {
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

/// Returns the message about a creation that goes on, after `failure` was met last.
fn creating(failure: Option<&Error>) -> &'static str {
    match failure.map(Error::kind) {
        None => {
            "the tenant's database is being created; the creation continues, so call again later"
        }
        Some(ErrorKind::Locked) => {
            "the tenant's database is being created, and waits for other work on it to end; the creation continues, so \
             call again later"
        }
        Some(_) => {
            "the tenant's database cannot be created at the moment; tenantry tries again, so call again later, and fix \
             the cause if this persists"
        }
    }
}

/// A failure and its time, from which its `retry_after` counts.
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

    /// Returns the failure, with the part of its `retry_after` that is left now.
    pub(crate) fn error(&self) -> Error {
        let left = |wait: Duration| wait.saturating_sub(self.at.elapsed());
        let wait = self.error.retry_after().map(left);
        self.error.clone().with_retry_after(wait)
    }
}

/// Returns the error for a wait of `waited` that ended at `stage`, after `last_failure`.
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
