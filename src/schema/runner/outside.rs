//! A step outside of a transaction: its row says first that it has begun, then that it is done.

use tokio_postgres::{Client, error::SqlState};

use super::Run;
use crate::schema::{
    failure::{self, Stop},
    history::ask,
    session::Moment,
    sql, statements,
    step::Step,
};

impl Run<'_> {
    pub(super) async fn apply_outside(
        &self,
        client: &Client,
        step: &Step,
        text: &str,
    ) -> Result<(), Stop> {
        let statement = step.statement_timeout;
        let statement = statement.unwrap_or(Some(self.schema.settings.statement_timeout));
        // Without a lock_timeout: CONCURRENTLY waits for transactions, which counts as a wait for a lock.
        let limits = sql::limits(step.lock_timeout.flatten(), statement);
        let begun = async {
            client.batch_execute(&limits).await?;
            ask(client, &sql::begin_outside(step)).await
        };
        let is_first = begun.await.map_err(failure::of_history)?.rows == 1;
        let repaired = !is_first && self.drop_invalid(client, step).await?;
        self.reach(Moment::StepBegun).await;
        if let Err(err) = client.batch_execute(text).await {
            let exists = err.code() == Some(&SqlState::DUPLICATE_TABLE);
            let is_done = exists && !is_first && !repaired && statements::builds_index(text);
            if exists && is_first {
                let forgotten = client
                    .batch_execute(&sql::forget_outside(step.version))
                    .await;
                forgotten.map_err(failure::of_history)?;
            }
            if !is_done {
                return Err(failure::of_step(step, err));
            }
        }
        self.reach(Moment::StepRun).await;
        let recorded = ask(client, &sql::end_outside(step)).await;
        match recorded.map_err(failure::of_history)?.rows {
            1 => Ok(()),
            _ => Err(failure::lost_transaction(step)),
        }
    }

    /// Drops the indexes that an interrupted run of the step has left invalid. Returns whether there were any.
    async fn drop_invalid(&self, client: &Client, step: &Step) -> Result<bool, Stop> {
        let left = ask(client, &sql::left_invalid(step.version)).await;
        let left = left.map_err(failure::of_history)?.text;
        for index in left.lines() {
            let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
            client
                .batch_execute(&drop)
                .await
                .map_err(|err| failure::of_step(step, err))?;
        }
        Ok(!left.is_empty())
    }
}
