//! A step of code: the application's function gets the session, and gives it back by dropping it.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Run, set_up};
use crate::{
    model::current_tenant,
    schema::{
        client::{MigrationClient, Session},
        failure::{self, Stop},
        history::ask,
        session::Moment,
        sql,
        step::{Code, Step},
    },
};

/// Longest wait for the session after the function has returned.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);

impl Run<'_> {
    pub(super) async fn apply_code(
        &mut self,
        session: Session,
        step: &Step,
        code: &Code,
    ) -> Result<Session, Stop> {
        let began = Instant::now();
        if self.finished_code == Some(step.version) {
            return self.record_code(session, step, began).await;
        }
        let settings = &self.schema.settings;
        let statement = step
            .statement_timeout
            .unwrap_or(Some(settings.statement_timeout));
        let lock = step.lock_timeout.unwrap_or(Some(settings.lock_timeout));
        let set = session.batch_execute(&sql::limits(lock, statement)).await;
        set.map_err(failure::of_history)?;
        self.reach(Moment::StepBegun).await;
        let (client, back) = MigrationClient::new(self.tenant, step.version, session);
        let work = current_tenant::sync_scope(self.tenant, || code(client));
        let worked = current_tenant::scope(self.tenant, work).await;
        let session = timeout(RETURN_TIMEOUT, back).await;
        let session = session
            .ok()
            .and_then(Result::ok)
            .filter(|it| !it.is_closed());
        if let Err(err) = worked {
            return Err(failure::of_code(step, err, session.is_none()));
        }
        self.finished_code = Some(step.version);
        self.reach(Moment::StepRun).await;
        let session = session.ok_or_else(|| {
            Stop::Doubtful("the step's connection ended, or the step has kept it".into())
        })?;
        self.record_code(session, step, began).await
    }

    async fn record_code(
        &mut self,
        session: Session,
        step: &Step,
        began: Instant,
    ) -> Result<Session, Stop> {
        set_up(&session, sql::RESET).await?;
        let recorded = ask(&session, &sql::record(step, began.elapsed())).await;
        match recorded.map_err(failure::of_history)?.rows {
            1 => Ok(session),
            _ => Err(failure::lost_transaction(step)),
        }
    }
}
