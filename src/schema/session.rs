//! The seams of a run: the session that it works on, and the moments at which a test may stop it.

use std::{fmt, future::Future, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    client::Session,
    failure::StepFailure,
    migrated::Migrated,
    state::{SchemaFailure, SchemaState},
};
use crate::model::{error::Error, tenant::TenantId};

/// A session that was opened for a run.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// `true` if that woke the database.
    pub(crate) woke: bool,
}

/// The circumstances of a run.
pub(crate) struct Terms<'a> {
    pub(crate) open: &'a dyn OpenSession,
    /// The state as it is known before the run.
    pub(crate) known: &'a SchemaState,
    /// Set if the tenant's lease is held. Then an earlier holder of the lock has lost the right to it.
    pub(crate) journal: Option<&'a dyn Journal>,
    /// `true` if nothing is to be changed.
    pub(crate) only_reads: bool,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) migrated: Migrated,
    /// The state of the database now.
    pub(crate) state: SchemaState,
}

/// The end of a run without a result.
#[derive(Debug)]
pub(crate) enum RunError {
    /// The tenant's database is elsewhere now: look it up again.
    Moved,
    /// The database was not reached, or the run did not get to its end. Another one may.
    Later(Error),
    /// The database is not fit for the schema, or a step for the database.
    Failed(Box<FailedRun>),
}

/// A run that has met a failure.
#[derive(Debug)]
pub(crate) struct FailedRun {
    pub(super) failure: StepFailure,
    /// The state of the database, if it was read.
    pub(super) state: Option<SchemaState>,
}

impl RunError {
    /// Returns the end of a run with `failure`, before the database was read.
    pub(super) fn of(failure: StepFailure) -> Self {
        let state = None;
        Self::Failed(Box::new(FailedRun { failure, state }))
    }
}

impl FailedRun {
    /// Returns the state of the database, if it was read.
    pub(crate) fn state(&self) -> Option<&SchemaState> {
        self.state.as_ref()
    }

    /// Returns the error.
    pub(crate) fn into_error(self) -> Error {
        self.failure.error
    }

    /// Writes the failure and the state of the database to `known`. Returns the error, with the time of the next try.
    pub(crate) fn record(self, known: &mut SchemaState) -> Error {
        let Self { failure, state } = self;
        let recorded = SchemaFailure::after(known.failure.as_ref(), &failure);
        if let Some(state) = state {
            *known = state;
        }
        let error = recorded.advise(failure.error);
        known.failure = Some(recorded);
        error
    }
}

/// Opens sessions on the database of one tenant.
pub(crate) trait OpenSession: Send + Sync {
    /// Opens one session.
    fn open(&self) -> BoxFuture<'_, Result<Opened, RunError>>;
}

/// Takes down the progress of a run under the tenant's lease.
pub(crate) trait Journal: Send + Sync {
    /// Notes the state of the database while the run goes on. The history has it, so a failure costs nothing.
    fn note<'a>(&'a self, state: &'a SchemaState) -> BoxFuture<'a, ()>;
}

/// A point between two statements of a migration, for tests that stop a process there.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Moment {
    /// The lock is held.
    Locked,
    /// The step's transaction has begun, or the row of a step outside of a transaction is there.
    StepBegun,
    /// The step's work is done.
    StepRun,
    /// The row is written and not committed.
    StepWritten,
    /// The step is applied and recorded.
    StepCommitted,
}

impl Moment {
    /// Every moment.
    pub const ALL: [Self; 5] = [
        Self::Locked,
        Self::StepBegun,
        Self::StepRun,
        Self::StepWritten,
        Self::StepCommitted,
    ];
}

/// The function that a test runs at each moment; by default there is none.
#[derive(Clone, Default)]
pub(super) struct Moments(Option<Arc<Reach>>);

type Reach = dyn Fn(Moment, TenantId) -> BoxFuture<'static, ()> + Send + Sync;

impl Moments {
    pub(super) fn new<Fut>(reach: impl Fn(Moment, TenantId) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self(Some(Arc::new(move |moment, tenant| {
            Box::pin(reach(moment, tenant))
        })))
    }

    pub(super) async fn reach(&self, moment: Moment, tenant: &TenantId) {
        if let Some(reach) = &self.0 {
            reach(moment, tenant.clone()).await;
        }
    }
}

impl fmt::Debug for Moments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Moments")
    }
}
