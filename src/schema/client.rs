//! The connection that a step of code gets.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use tokio::sync::oneshot;
use tokio_postgres::Client;

use crate::model::tenant::TenantId;

/// A session on one database, past the pooler. Dropping it stops its running statement and closes it.
pub(super) type Session = Box<dyn DerefMut<Target = Client> + Send + Sync>;

/// A connection straight to a tenant's database, for a [step of code](crate::Schema::run).
///
/// It derefs to tokio-postgres's client. The database is locked against other migrations until the step has ended. The
/// connection goes on to the next step, so drop it when the work is done; what the step has set in the session is
/// undone then. A statement may take as long as the step's
/// [`statement_timeout`](crate::Schema::statement_timeout) says.
pub struct MigrationClient {
    tenant: TenantId,
    version: i64,
    // `None` only in `drop`.
    session: Option<Session>,
    back: Option<oneshot::Sender<Session>>,
}

impl MigrationClient {
    /// Returns the client, and the receiver that gets the session when the client is dropped.
    pub(super) fn new(
        tenant: &TenantId,
        version: i64,
        session: Session,
    ) -> (Self, oneshot::Receiver<Session>) {
        let (back, returned) = oneshot::channel();
        let client = Self {
            tenant: tenant.clone(),
            version,
            session: Some(session),
            back: Some(back),
        };
        (client, returned)
    }

    /// Returns the tenant that the database belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns the version of the step.
    pub fn version(&self) -> i64 {
        self.version
    }
}

impl Deref for MigrationClient {
    type Target = Client;

    fn deref(&self) -> &Self::Target {
        match &self.session {
            Some(session) => session,
            None => unreachable!("the session is there until the client is dropped"),
        }
    }
}

impl DerefMut for MigrationClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.session {
            Some(session) => session,
            None => unreachable!("the session is there until the client is dropped"),
        }
    }
}

impl Drop for MigrationClient {
    fn drop(&mut self) {
        if let (Some(session), Some(back)) = (self.session.take(), self.back.take()) {
            let _ = back.send(session); // an end of the migration closes the session
        }
    }
}

impl fmt::Debug for MigrationClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrationClient")
            .field("tenant", &self.tenant)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
