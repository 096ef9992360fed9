//! The run on one database: from the steps that it has to those of the schema.
//!
//! Each session reads the history, takes the lock, reads again and applies what is missing. If a session ends with a
//! doubt, above all a COMMIT without an answer, the next one does the same: the lock proves that the earlier session
//! has ended, and the history says what it did. So nothing is repeated blindly.

mod code;
mod outside;
mod transaction;

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::{
    adopt,
    checked::CheckedSchema,
    client::Session,
    failure::{self, Stop},
    history::{History, ask},
    migrated::{AppliedStep, Migrated},
    session::{FailedRun, Moment, Ran, RunError, Terms},
    sql,
    state::SchemaState,
    step::{Step, Work},
};
use crate::{
    model::{
        error::{BoxError, Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    sync::{progress::Progress, retry::backoff},
};

/// Most sessions in a row that may end with a doubt.
const MOST_DOUBTS: u32 = 3;
/// Time that the session of an earlier holder of the lease has to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Brings one database up to date. The caller bounds the time.
///
/// # Cancel safety
/// Dropping the future closes the session, whose statement is cancelled.
pub(crate) async fn run(
    schema: &CheckedSchema,
    tenant: &TenantId,
    terms: Terms<'_>,
    progress: &Progress,
) -> Result<Ran, RunError> {
    let open = terms.open;
    let mut run = Run {
        schema,
        tenant,
        terms,
        progress,
        from: None,
        to: 0,
        state: None,
        steps: Vec::new(),
        woke: false,
        in_doubt: None,
        finished_code: None,
    };
    let mut waits = backoff(Duration::from_millis(100), Duration::from_secs(5));
    let mut doubts = 0;
    loop {
        progress.enter(Stage::Wake);
        let opened = open.open().await?;
        run.woke |= opened.woke;
        progress.enter(Stage::Migrate);
        let applied = run.steps.len();
        let err = match run.on_session(opened.session).await {
            Ok(()) => return Ok(run.end()),
            Err(Stop::Failed(failure)) => {
                let state = run.state;
                return Err(RunError::Failed(Box::new(FailedRun { failure, state })));
            }
            Err(Stop::Doubtful(err)) => lost_session(err),
        };
        doubts = if run.steps.len() > applied {
            1
        } else {
            doubts + 1
        };
        if doubts > MOST_DOUBTS {
            return Err(RunError::Later(err));
        }
        progress.note(&err);
        sleep(waits.next().unwrap_or_default()).await;
    }
}

pub(super) fn lost_session(err: BoxError) -> Error {
    let message =
        "the connection was lost during a migration; migrate again, which goes on where it stood";
    Error::new(ErrorKind::Connect, message)
        .with_stage(Stage::Migrate)
        .with_source(err)
}

/// Sets a session up, after the statements `before`.
async fn set_up(client: &Client, before: &str) -> Result<(), Stop> {
    let setup = [before, sql::SETUP].concat();
    let (done, _) = tokio::join!(
        client.batch_execute(&setup),
        client.batch_execute(sql::NOTICE_DEATH) // a run works without it, only slower after a kill
    );
    done.map_err(failure::of_history)
}

/// A run in progress.
struct Run<'a> {
    schema: &'a CheckedSchema,
    tenant: &'a TenantId,
    terms: Terms<'a>,
    progress: &'a Progress,
    /// The highest version before the run.
    from: Option<i64>,
    to: i64,
    /// The state of the database, once it is read.
    state: Option<SchemaState>,
    steps: Vec<AppliedStep>,
    woke: bool,
    /// The step that was being applied when a session ended, and the time at which it began.
    in_doubt: Option<(&'a Step, Instant)>,
    /// The step of code that has returned `Ok` and is not recorded.
    finished_code: Option<i64>,
}

impl<'a> Run<'a> {
    async fn on_session(&mut self, mut session: Session) -> Result<(), Stop> {
        set_up(&session, sql::RESET).await?;
        let history = self.read(&session).await?;
        let baseline = self.terms.known.baseline.unwrap_or(0);
        let (schema, missing) = (self.schema, history.missing_up_to(self.schema, baseline));
        if missing.is_empty() && history.pending(schema)?.is_empty() {
            self.from.get_or_insert(history.highest());
            return Ok(()); // without the lock: a current database needs none
        }
        if self.terms.only_reads {
            self.from.get_or_insert(history.highest());
            return Ok(());
        }
        self.lock(&session).await?;
        self.reach(Moment::Locked).await;
        let mut history = self.read_with_baseline(&session, baseline).await?;
        self.from.get_or_insert(history.highest());
        let pending = history.pending(schema)?;
        for (at, step) in pending.iter().copied().enumerate() {
            session = self.apply(session, step).await?;
            history.note_applied(step);
            self.note_state(&history);
            if at + 1 < pending.len() {
                self.note_in_journal().await;
            }
        }
        Ok(())
    }

    /// Reads the history after it was created, and after the steps up to `baseline` were recorded. The lock is held.
    async fn read_with_baseline(
        &mut self,
        client: &Client,
        baseline: i64,
    ) -> Result<History, Stop> {
        let mut history = self.read(client).await?;
        if !history.exists {
            adopt::create_history(client, self.schema).await?;
            history = self.read(client).await?;
        }
        let missing = history.missing_up_to(self.schema, baseline);
        if !missing.is_empty() {
            adopt::record_applied(client, &missing).await?;
            history = self.read(client).await?;
        }
        Ok(history)
    }

    fn note_state(&mut self, history: &History) {
        let known = self.terms.known;
        let latest = self.schema.latest();
        self.state = Some(SchemaState {
            version: history.highest(),
            contracted: known.contracted.max(history.contracted(self.schema)),
            digest: history.digest(self.schema),
            baseline: known.baseline.filter(|version| {
                // A step of a newer release is recorded by that release.
                *version > latest || !history.missing_up_to(self.schema, *version).is_empty()
            }),
            failure: None,
        });
    }

    async fn note_in_journal(&self) {
        if let (Some(journal), Some(state)) = (self.terms.journal, &self.state) {
            journal.note(state).await;
        }
    }

    /// Reads the history, and learns from it about the step in doubt.
    async fn read(&mut self, client: &Client) -> Result<History, Stop> {
        let history = History::read(client).await?;
        self.note_state(&history);
        self.to = self.to.max(history.highest());
        if let Some((step, began)) = self.in_doubt
            && history.has(step.version)
        {
            self.note_applied(step, began);
        }
        Ok(history)
    }

    /// Takes the lock. It never waits for it in a statement: that would deadlock with a CREATE INDEX CONCURRENTLY of
    /// the holder, which waits for all transactions.
    async fn lock(&self, client: &Client) -> Result<(), Stop> {
        let mut waits = backoff(Duration::from_millis(20), Duration::from_millis(500));
        let sql = sql::try_lock();
        let mut has_waited = false;
        let mut end_others_at = self.terms.journal.map(|_| Instant::now() + PATIENCE);
        loop {
            let answer = ask(client, &sql).await.map_err(failure::of_history)?;
            if answer.text == "true" {
                if has_waited {
                    self.progress.forget_failure();
                }
                return Ok(());
            }
            if !has_waited {
                has_waited = true;
                let message = "another process migrates or prepares this tenant's database, and holds the lock";
                self.progress.note(&Error::new(ErrorKind::Locked, message));
            }
            if end_others_at.is_some_and(|at| at <= Instant::now()) {
                end_others_at = Some(Instant::now() + PATIENCE);
                let _ = ask(client, &sql::end_others()).await; // without the right to do so, it goes on waiting
            }
            sleep(waits.next().unwrap_or_default()).await;
        }
    }

    async fn apply(&mut self, session: Session, step: &'a Step) -> Result<Session, Stop> {
        let began = Instant::now();
        self.in_doubt = Some((step, began));
        self.progress.enter_schema_step(Some(step.version));
        set_up(&session, sql::RESET).await?;
        let session = match &step.work {
            Work::Sql(sql) if step.outside => {
                self.apply_outside(&session, step, sql).await?;
                session
            }
            Work::Sql(sql) => {
                self.apply_in_transaction(&session, step, sql).await?;
                session
            }
            Work::Code(code) => self.apply_code(session, step, code).await?,
        };
        self.note_applied(step, began);
        self.reach(Moment::StepCommitted).await;
        Ok(session)
    }

    fn note_applied(&mut self, step: &Step, began: Instant) {
        self.in_doubt = None;
        self.progress.enter_schema_step(None);
        self.to = self.to.max(step.version);
        let (tenant, version, took) = (self.tenant.as_str(), step.version, began.elapsed());
        tracing::debug!(tenant, version, name = step.name, elapsed = ?took, "step");
        self.steps.push(AppliedStep {
            version,
            name: step.name.clone(),
            took,
        });
    }

    async fn reach(&self, moment: Moment) {
        self.schema
            .settings
            .moments
            .reach(moment, self.tenant)
            .await;
    }

    fn end(self) -> Ran {
        let migrated = Migrated {
            from: self.from.unwrap_or(self.to),
            to: self.to,
            steps: self.steps,
            woke: self.woke,
            took: self.progress.elapsed(),
        };
        let state = self.state.unwrap_or_default();
        Ran { migrated, state }
    }
}
