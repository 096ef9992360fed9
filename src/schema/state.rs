//! The state of one tenant's schema, as a catalog keeps it, and the times at which a failed migration is tried again.

use std::time::Duration;

use super::failure::StepFailure;
use crate::model::error::{Error, ErrorKind, SchemaFault, Stage};

/// Waits before a failed migration is tried again. After the last one it is not tried again by itself.
const WAITS: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(6 * 3600),
];

/// The state of the application's schema in a tenant's database, as far as the catalog knows it.
///
/// The history in the database itself is right where the two differ.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SchemaState {
    /// The highest applied version; 0 if there is none, or if it is not known. Then the history is read before the next
    /// step.
    pub version: i64,
    /// The highest applied version of a step that [earlier releases](crate::Schema::contract) of the application cannot
    /// live with; 0 if there is none.
    pub contracted: i64,
    /// The combined marks of the applied steps. By it a process notices that its steps are not those that were applied.
    pub digest: i64,
    /// The version up to which the next migration records steps as applied, without running them.
    pub baseline: Option<i64>,
    /// The last failure, until a migration succeeds.
    pub failure: Option<SchemaFailure>,
}

/// A failed migration of a tenant.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SchemaFailure {
    /// Version of the step that failed; 0 if it was none, but the access to the history.
    pub step: i64,
    /// The mark of the step, by which a process notices that the step has changed since.
    pub mark: i64,
    /// Postgres's code of the error (SQLSTATE), if it was Postgres's.
    pub code: Option<String>,
    /// Text of the error. It holds no values of rows, and none of the step's SQL.
    pub message: String,
    /// Number of failures of this step in a row.
    pub attempts: u32,
    /// `true` if the database has other steps than the program.
    pub diverged: bool,
    /// Time since the first failure of the step. Set by the catalog alone, which compares `step` and `mark` with those
    /// that it has.
    pub age: Duration,
    /// Time until the migration is tried again, by the catalog's clock; `None` if that happens only after the step has
    /// changed, or when you say so ([`Fleet::retry_schema`](crate::Fleet::retry_schema)).
    pub retry: Option<Duration>,
}

impl SchemaFailure {
    /// Creates the first failure of `step`, for implementors.
    pub fn new(step: i64, mark: i64, message: impl Into<String>) -> Self {
        Self {
            step,
            mark,
            code: None,
            message: message.into(),
            attempts: 1,
            diverged: false,
            age: Duration::ZERO,
            retry: Some(WAITS[0]),
        }
    }

    /// Returns the record of `failed`, which follows the failure `previous`.
    pub(super) fn after(previous: Option<&Self>, failed: &StepFailure) -> Self {
        let earlier = previous.filter(|it| (it.step, it.mark) == (failed.step, failed.mark));
        let attempts = earlier.map_or(0, |it| it.attempts).saturating_add(1);
        let wait = WAITS.get(usize::try_from(attempts).map_or(usize::MAX, |it| it - 1));
        Self {
            step: failed.step,
            mark: failed.mark,
            code: failed.code.clone(),
            message: failed.error.to_string(),
            attempts,
            diverged: failed.is_divergence(),
            age: earlier.map_or(Duration::ZERO, |it| it.age),
            retry: wait.copied().filter(|_| !failed.is_final),
        }
    }

    /// Returns the error for a caller whose migration is not tried now.
    pub(super) fn error(&self) -> Error {
        let fault = if self.diverged {
            SchemaFault::Diverged
        } else {
            SchemaFault::Failed
        };
        let error = Error::new(ErrorKind::Schema(fault), self.message.clone());
        self.advise(error.with_stage(Stage::Migrate))
    }

    /// Adds the time of the next try to `error`.
    pub(super) fn advise(&self, error: Error) -> Error {
        let next = match self.retry {
            Some(left) => format!(
                "it is tried again in {}, or after `Fleet::retry_schema`",
                humantime::format_duration(Duration::from_secs(left.as_secs().max(1)))
            ),
            None => "it is tried again once the step has changed, or after `Fleet::retry_schema`"
                .to_owned(),
        };
        let error = error.with_more(&format!("failures in a row: {}; {next}", self.attempts));
        error.with_retry_after(self.retry)
    }
}

impl SchemaState {
    /// Forgets what may no longer hold after the tenant's database was replaced by an earlier or another one.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            baseline: self.baseline,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(step: i64, mark: i64) -> StepFailure {
        StepFailure {
            error: Error::new(ErrorKind::Schema(SchemaFault::Failed), "no"),
            step,
            mark,
            code: None,
            is_final: false,
        }
    }

    #[test]
    fn a_failure_is_tried_again_four_times_unless_it_is_another_one() {
        let mut previous = None;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let next = SchemaFailure::after(previous.as_ref(), &failed(3, 7));
            waits.push(next.retry.map(|it| it.as_secs()));
            previous = Some(next);
        }
        let expected = [Some(60), Some(300), Some(1800), Some(21600), None, None];
        assert_eq!(waits, expected);
        for (step, mark) in [(4, 7), (3, 8)] {
            let other = SchemaFailure::after(previous.as_ref(), &failed(step, mark));
            assert_eq!((other.attempts, other.retry), (1, Some(WAITS[0])));
        }
        let mut lost = failed(3, 7);
        lost.is_final = true;
        assert_eq!(SchemaFailure::after(None, &lost).retry, None);
    }

    #[test]
    fn the_error_says_when_it_is_tried_again() {
        let mut failure = SchemaFailure::new(3, 7, "step 3 failed");
        failure.retry = Some(Duration::from_millis(90_500));
        let err = failure.error();
        let said = err.to_string();
        assert!(
            said.contains("step 3 failed") && said.contains("1m 30s"),
            "{said}"
        );
        assert_eq!(err.retry_after(), failure.retry);
        failure.retry = None;
        assert!(
            failure
                .error()
                .to_string()
                .contains("once the step has changed")
        );
    }

    #[test]
    fn what_is_forgotten_leaves_the_baseline_that_an_operator_has_named() {
        let mut state = SchemaState {
            version: 3,
            digest: 9,
            baseline: Some(2),
            failure: Some(SchemaFailure::new(4, 7, "no")),
            ..SchemaState::default()
        };
        state.forget();
        let expected = SchemaState {
            baseline: Some(2),
            ..SchemaState::default()
        };
        assert_eq!(state, expected);
    }
}
