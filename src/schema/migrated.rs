//! The outcome of a migration.

use std::time::Duration;

/// The outcome of a migration of one tenant, from [`TenantRouter::migrate`](crate::TenantRouter::migrate).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Migrated {
    /// The highest version that the database had before; 0 for none. Steps of a [baseline](crate::Schema::baseline)
    /// count.
    pub from: i64,
    /// The highest version that it has now. It is above [`Schema::latest`](crate::Schema::latest) if a newer release
    /// of the application has migrated the database.
    pub to: i64,
    /// The steps that were applied, in order.
    pub steps: Vec<AppliedStep>,
    /// `true` if the migration has woken the database.
    pub woke: bool,
    /// Time that it took, with the wake and the wait for the lock.
    pub took: Duration,
}

impl Migrated {
    /// Returns the outcome for a database that needed nothing, and was not asked.
    pub(crate) fn nothing(version: i64, took: Duration) -> Self {
        Self {
            from: version,
            to: version,
            steps: Vec::new(),
            woke: false,
            took,
        }
    }
}

/// One step that was applied to a tenant's database.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AppliedStep {
    /// The version.
    pub version: i64,
    /// The name.
    pub name: String,
    /// Time that it took.
    pub took: Duration,
}
