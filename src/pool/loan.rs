//! A connection on loan to a caller.

use std::sync::Arc;

use super::Pool;
use crate::{connection::Connection, model::tenant::TenantId};

/// A connection on loan. Dropping it returns the connection to the pool.
pub(crate) struct Loan {
    connection: Option<Connection>,
    pool: Arc<Pool>,
}

impl Loan {
    /// Returns the loan of a connection of `pool` that was marked as lent.
    pub(super) fn new(connection: Connection, pool: Arc<Pool>) -> Self {
        Self {
            connection: Some(connection),
            pool,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("only drop, close and clean_up take it")
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        let connection = self
            .connection
            .as_mut()
            .expect("only drop, close and clean_up take it");
        connection.status.note_mutable();
        connection
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.pool.tenant
    }

    /// Closes the connection instead of returning it.
    pub(crate) fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }

    /// Hands the connection to the cleanup, which cancels and closes it unless it becomes clean in time.
    pub(super) fn clean_up(mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.clean_up(connection);
        }
    }
}

impl Drop for Loan {
    #[inline]
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.check_in(connection);
        }
    }
}
