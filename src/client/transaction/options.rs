//! The options of a transaction.

use std::time::Duration;

use tokio_postgres::IsolationLevel;

/// The options of a transaction: its isolation level, its time limits and its retries.
///
/// ```
/// use std::time::Duration;
/// use tenantry::{TransactionOptions, tokio_postgres::IsolationLevel};
///
/// let options = TransactionOptions::new()
///     .isolation_level(IsolationLevel::Serializable)
///     .retry_conflicts(true)
///     .statement_timeout(Duration::from_secs(5));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until a transaction is run with them"]
pub struct TransactionOptions {
    isolation: Option<IsolationLevel>,
    deferrable: bool,
    statement_timeout: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) retry_conflicts: bool,
}

impl Default for TransactionOptions {
    fn default() -> Self {
        Self {
            isolation: None,
            deferrable: false,
            statement_timeout: None,
            timeout: Duration::from_secs(30),
            retries: 2,
            retry_conflicts: false,
        }
    }
}

impl TransactionOptions {
    /// Returns the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the isolation level. Defaults to the database's own, which is READ COMMITTED unless it was changed.
    pub fn isolation_level(mut self, level: IsolationLevel) -> Self {
        self.isolation = Some(level);
        self
    }

    /// Sets whether the transaction waits, before it begins, for a moment without serialization conflicts. Defaults to
    /// `false`. It has an effect only on a `read` at level SERIALIZABLE, which then never fails with a conflict.
    pub fn deferrable(mut self, deferrable: bool) -> Self {
        self.deferrable = deferrable;
        self
    }

    /// Sets the longest time for one statement, which Postgres enforces (SQLSTATE 57014). Defaults to the role's own
    /// limit. It applies to the transaction only (`SET LOCAL`): a plain `SET` through Neon's pooler would affect other
    /// clients too.
    pub fn statement_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.statement_timeout = limit.into();
        self
    }

    /// Sets the longest time for everything: the connection, all runs, and the commit. Defaults to 30 seconds, enough
    /// for a cold start and a short transaction.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Sets how often the closure may be run again. Defaults to 2. A further run after a lost connection does not count
    /// if the closure had not been called. A further run after a statement that was prepared before a schema change
    /// counts.
    pub fn retries(mut self, count: u32) -> Self {
        self.retries = count;
        self
    }

    /// Sets whether the closure is run again after a serialization failure (40001) or a deadlock (40P01). Defaults to
    /// `false`.
    pub fn retry_conflicts(mut self, retry: bool) -> Self {
        self.retry_conflicts = retry;
        self
    }

    /// Returns the SQL that begins the transaction, in one round trip.
    pub(super) fn begin(&self, access: Access) -> String {
        let level = match self.isolation {
            Some(IsolationLevel::ReadUncommitted) => " ISOLATION LEVEL READ UNCOMMITTED",
            Some(IsolationLevel::ReadCommitted) => " ISOLATION LEVEL READ COMMITTED",
            Some(IsolationLevel::RepeatableRead) => " ISOLATION LEVEL REPEATABLE READ",
            Some(_) => " ISOLATION LEVEL SERIALIZABLE",
            None => "",
        };
        let access = match access {
            Access::ReadOnly => " READ ONLY",
            Access::Default => "",
        };
        let deferrable = if self.deferrable { " DEFERRABLE" } else { "" };
        let limit = self.statement_timeout.map(|limit| {
            let milliseconds = limit.as_millis().clamp(1, i32::MAX as u128);
            format!("; SET LOCAL statement_timeout = {milliseconds}")
        });
        format!(
            "BEGIN{level}{access}{deferrable}{}",
            limit.unwrap_or_default()
        )
    }
}

/// The access mode of a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    ReadOnly,
    /// The database's default: READ WRITE, unless its operator has changed that.
    Default,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_begins_with_what_was_asked_for_and_nothing_else() {
        let options = TransactionOptions::new();
        assert_eq!(options.begin(Access::Default), "BEGIN");
        assert_eq!(options.begin(Access::ReadOnly), "BEGIN READ ONLY");
        let options = options
            .isolation_level(IsolationLevel::Serializable)
            .deferrable(true)
            .statement_timeout(Duration::from_millis(1500));
        assert_eq!(
            options.begin(Access::ReadOnly),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; SET LOCAL statement_timeout = 1500"
        );
        let shortest = TransactionOptions::new().statement_timeout(Duration::ZERO);
        let begin = shortest.begin(Access::Default);
        assert!(
            begin.ends_with("= 1"),
            "0 would turn the limit off: {begin}"
        );
    }
}
