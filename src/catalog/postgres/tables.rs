//! The catalog's tables, made sure of before they are asked.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::sync::watch;
use tokio_postgres::Row;

use super::{
    connections::{Connections, Param, within},
    failure::Failure,
    schema::Schema,
};
use crate::sync::lock;

/// The connections, and whether what they lead to is as this release needs it.
pub(super) struct Tables {
    pub(super) connections: Connections,
    schema: Arc<Schema>,
    /// Whether the tables are known to be there.
    there: AtomicBool,
    // The last migration. Held for a look or a start.
    migration: Mutex<Option<Migration>>,
}

/// Where the outcome of a migration is told.
type Migration = watch::Receiver<Option<Result<(), Failure>>>;

impl Tables {
    pub(super) fn new(connections: Connections, schema: Schema) -> Self {
        Self {
            connections,
            schema: Arc::new(schema),
            there: AtomicBool::new(false),
            migration: Mutex::default(),
        }
    }

    /// Runs a statement within the time limit, after the tables are there.
    pub(super) async fn ask(
        &self,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let work = async {
            if !self.there.load(Relaxed) {
                self.migrate().await?;
            }
            self.connections.ask(statement, params).await
        };
        let result = within(self.connections.limit, work).await;
        if result.as_ref().is_err_and(Failure::is_missing_table) {
            self.there.store(false, Relaxed);
        }
        result
    }

    /// Waits until the tables are there. The work is in a task of its own: no caller's leaving stops it.
    pub(super) async fn migrate(&self) -> Result<(), Failure> {
        let mut landed = self.migration();
        let result = match landed.wait_for(Option::is_some).await {
            Ok(result) => (*result).clone().unwrap_or(Ok(())),
            Err(_) => Err(Failure::new(
                "the runtime has ended under the catalog's migration",
            )),
        };
        if result.is_ok() {
            self.there.store(true, Relaxed);
        }
        result
    }

    /// Upgrades the tables to a version that need not be the last one.
    pub(super) async fn migrate_to(&self, version: usize) -> Result<(), Failure> {
        self.schema.upgrade(&self.connections, version).await
    }

    /// The migration under way, or a new one.
    fn migration(&self) -> Migration {
        let mut slot = lock(&self.migration);
        let goes_on = |it: &&Migration| it.has_changed().is_ok() && it.borrow().is_none();
        if let Some(landed) = slot.as_ref().filter(goes_on) {
            return landed.clone();
        }
        let (announce, landed) = watch::channel(None);
        let (schema, connections) = (Arc::clone(&self.schema), self.connections.clone());
        tokio::spawn(async move {
            let result = schema.upgrade(&connections, Schema::latest()).await;
            announce.send_replace(Some(result));
        });
        slot.insert(landed).clone()
    }
}
