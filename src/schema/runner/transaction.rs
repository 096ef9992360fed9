//! A step in a transaction: it and its row are committed together.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;

use super::Run;
use crate::{
    schema::{
        failure::{self, Stop},
        history::ask,
        session::Moment,
        sql,
        step::Step,
    },
    sync::retry::backoff,
};

/// Number of further tries of a step that has waited too long for a lock.
const REPEATS: usize = 5;

impl Run<'_> {
    pub(super) async fn apply_in_transaction(
        &self,
        client: &Client,
        step: &Step,
        sql: &str,
    ) -> Result<(), Stop> {
        let waits = backoff(Duration::from_millis(100), Duration::from_secs(5));
        let mut waits = waits.take(REPEATS);
        loop {
            let err = match self.try_in_transaction(client, step, sql).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(failure::lost_transaction(step)),
                Err(err) => err,
            };
            let wait = waits.next().filter(|_| failure::is_contended(&err));
            let Some(wait) = wait else {
                return Err(failure::of_step(step, err));
            };
            let rolled_back = client.batch_execute("ROLLBACK").await;
            rolled_back.map_err(failure::of_history)?;
            sleep(wait).await;
        }
    }

    /// Runs the step once. Returns `false` if its transaction or the lock is gone.
    async fn try_in_transaction(
        &self,
        client: &Client,
        step: &Step,
        sql: &str,
    ) -> Result<bool, tokio_postgres::Error> {
        let settings = &self.schema.settings;
        let lock = step.lock_timeout.unwrap_or(Some(settings.lock_timeout));
        let statement = step
            .statement_timeout
            .unwrap_or(Some(settings.statement_timeout));
        let begun = ask(client, &sql::begin(lock, statement)).await?;
        self.reach(Moment::StepBegun).await;
        client.batch_execute(sql).await?; // a message of its own, so that no comment in it hides a statement of ours
        self.reach(Moment::StepRun).await;
        let recorded = ask(client, &sql::record_in(step, &begun.text)).await?;
        if recorded.rows != 1 {
            client.batch_execute("ROLLBACK").await?;
            return Ok(false);
        }
        self.reach(Moment::StepWritten).await;
        client.batch_execute("COMMIT").await?;
        Ok(true)
    }
}
