//! The catalog's tables, created or upgraded before the first statement.

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

/// The connections, and whether their database has the tables that this release needs.
pub(super) struct Tables {
    pub(super) connections: Connections,
    schema: Arc<Schema>,
    /// `true` once the tables are known to exist.
    there: AtomicBool,
    // The last migration. Held to check it or to start one.
    migration: Mutex<Option<Migration>>,
}

/// The receiver of a migration's outcome.
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

    /// Runs a statement within the time limit, after it has made sure that the tables exist.
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

    /// Waits until the tables exist. The work runs in a task of its own, which no caller can cancel.
    pub(super) async fn migrate(&self) -> Result<(), Failure> {
        let mut landed = self.migration();
        let result = match landed.wait_for(Option::is_some).await {
            Ok(result) => (*result).clone().unwrap_or(Ok(())),
            Err(_) => Err(Failure::new(
                "the runtime ended during the catalog's migration",
            )),
        };
        if result.is_ok() {
            self.there.store(true, Relaxed);
        }
        result
    }

    /// Upgrades the tables to `version`, which need not be the latest.
    pub(super) async fn migrate_to(&self, version: usize) -> Result<(), Failure> {
        self.schema.upgrade(&self.connections, version).await
    }

    /// Returns the migration under way, or starts one.
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
