//! Transactions that survive the loss of their connection, as long as nothing can have been committed.
//!
//! The bytes that passed on the connection decide what happened to it, never the closure's error. The closure may have
//! swallowed a database error, or may have failed for its own reason on a healthy connection.

mod end;
mod options;
mod tx;

use std::{
    error::Error as _,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::error::SqlState;

use self::end::{
    End, Why, commit_unknown, conflict, ended_inside, is_answer, is_dead, kept, loss, lost,
    lost_inside, outdated, rolled_back,
};
use crate::{
    model::{
        current_tenant,
        error::{Error, ErrorKind, Stage},
    },
    pool::{VERIFY_TIMEOUT, loan::Loan},
    sync::{
        lock,
        progress::{LONGEST, timed_out},
        retry::backoff,
    },
    telemetry::stats::count,
};

pub(crate) use options::Access;
pub use options::TransactionOptions;
pub use tx::Tx;

/// Longest wait for the answer to the first BEGIN. A connection that stays silent is given up, because BEGIN has no
/// effect yet.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time since the server's last bytes within which a connection counts as alive. Its silence then means that the pooler
/// has no room.
const PROVEN: Duration = Duration::from_secs(1);
/// Longest wait for the answer to ROLLBACK. After it the connection is closed, which also rolls back.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);
/// Wait before another run of a transaction for which the pooler had no room.
const CROWDED_WAIT: Duration = Duration::from_secs(1);
/// Shortest wait before another run after a conflict. The longest is twice as long.
const CONFLICT_WAIT: Duration = Duration::from_millis(5);

/// One call of `read` or `transaction`.
pub(crate) struct Transaction<'a> {
    options: &'a TransactionOptions,
    access: Access,
    began: Instant,
    until: Instant,
    /// Number of further runs that are allowed.
    left: u32,
    /// Set after a BEGIN without an answer: on a connection that is alive, the next BEGIN may take all the time left.
    is_patient: bool,
    /// The error that ended the last run.
    last_failure: Option<Error>,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(options: &'a TransactionOptions, access: Access) -> Self {
        let began = Instant::now();
        Self {
            options,
            access,
            began,
            until: began + options.timeout.min(LONGEST),
            left: options.retries,
            is_patient: false,
            last_failure: None,
        }
    }

    /// Returns the time left.
    pub(crate) fn remaining(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs the transaction once on `loan`. Returns `None` if it has to be run again, on another connection.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which rolls the transaction back. If COMMIT was already sent, the
    /// transaction may be committed.
    pub(crate) async fn run<T, E, Fut>(
        &mut self,
        loan: Loan,
        work: &mut impl FnMut(Tx) -> Fut,
    ) -> Option<Result<T, E>>
    where
        Fut: Future<Output = Result<T, E>> + Send,
        E: From<Error> + From<tokio_postgres::Error>,
    {
        let pool = Arc::clone(loan.pool());
        let counts = &pool.shared.stats;
        let ours = |err: Error| {
            let err = err.with_tenant(&pool.tenant);
            counts.broke(&err);
            counts.failing.add(&pool.tenant, 1.0);
            Some(Err(err.into()))
        };
        let theirs = |err: tokio_postgres::Error| {
            let of_tenant = current_tenant::sync_scope(&pool.tenant, || err.into());
            Some(Err(of_tenant))
        };
        let begun = self.begin(&loan).await;
        let status = &loan.connection().status;
        let (idles, ends) = (status.idles(), status.ends());
        match begun {
            End::Committed | End::Undone => {}
            End::Again(err, why) => return ours(self.again(loan, err, why).await?),
            End::Failed(err) => return ours(err),
            End::Refused(err) => return theirs(err),
        }
        let (home, worked) = (Arc::new(Mutex::new(None)), Instant::now());
        // The scope also covers the call itself: a closure may do work before its first await, and even before it
        // returns its future.
        let working = current_tenant::sync_scope(&pool.tenant, || work(Tx::new(loan, &home)));
        let done = timeout_at(self.until, current_tenant::scope(&pool.tenant, working)).await;
        let loan = lock(&home).take();
        counts
            .meters
            .stage(Stage::Query, matches!(done, Ok(Ok(_))), worked.elapsed());
        let (done, loan) = match (done, loan) {
            (Ok(done), Some(loan)) => (done, loan),
            (Ok(_), None) => return ours(kept()),
            (Err(_), loan) => {
                let is_lost = |it: &Loan| is_dead(it) && it.connection().status.ends() == ends;
                let lost = loan.filter(is_lost).map(|loan| loss(&loan));
                self.last_failure = lost.or(self.last_failure.take());
                return ours(self.out_of_time(Stage::Query));
            }
        };
        let status = &loan.connection().status;
        let is_outdated = status.has_failed() && status.is_outdated() && status.ends() == ends;
        let end = match done {
            _ if status.idles() != idles => End::Failed(ended_inside()),
            _ if is_outdated && self.left > 0 => outdated(),
            Ok(_) => self.commit(&loan, ends).await,
            Err(_) => self.undo(&loan, ends).await,
        };
        match end {
            End::Committed | End::Undone => Some(done),
            End::Again(err, _) if self.left == 0 => ours(err),
            End::Again(err, why) => {
                self.left -= 1;
                ours(self.again(loan, err, why).await?)
            }
            End::Failed(err) => ours(err),
            End::Refused(err) => theirs(err),
        }
    }

    async fn begin(&self, loan: &Loan) -> End {
        let asked = Instant::now();
        let is_proven = loan.connection().status.silent_at(asked) <= PROVEN;
        let limit = match (is_proven, self.is_patient) {
            (true, true) => self.remaining(),
            (true, false) => BEGIN_TIMEOUT,
            (false, _) => VERIFY_TIMEOUT,
        };
        let limit = self.until.min(asked + limit);
        let begin = self.options.begin(self.access);
        let answer = timeout_at(limit, loan.connection().client.batch_execute(&begin)).await;
        if answer.is_err() {
            // The tenant's other connections may have died with this one.
            loan.pool().suspect_silent_for(asked.elapsed());
        }
        match answer {
            Ok(Ok(())) => End::Undone,
            Ok(Err(err)) if is_answer(&err) => End::Refused(err),
            Err(_) if Instant::now() >= self.until => End::Failed(self.out_of_time(Stage::Query)),
            Ok(Err(_)) => lost(loan),
            Err(_) => End::Again(self.out_of_time(Stage::Query), Why::Silent),
        }
    }

    /// Commits the transaction and records how long that took.
    async fn commit(&self, loan: &Loan, ends: u64) -> End {
        let began = Instant::now();
        let end = self.send_commit(loan, ends).await;
        let meters = &loan.pool().shared.stats.meters;
        meters.stage(
            Stage::Commit,
            matches!(end, End::Committed),
            began.elapsed(),
        );
        end
    }

    /// Sends COMMIT and interprets the answer. `ends` is the connection's `ConnectionStatus::ends` from before the
    /// closure ran.
    async fn send_commit(&self, loan: &Loan, ends: u64) -> End {
        let (client, status) = (&loan.connection().client, &loan.connection().status);
        if is_dead(loan) {
            return lost_inside(loan, ends);
        }
        let is_whole = status.ends() == ends;
        if self.remaining().is_zero() {
            return End::Failed(self.out_of_time(Stage::Query));
        }
        let answer = timeout_at(self.until, client.batch_execute("COMMIT")).await;
        let read_only = self.access == Access::ReadOnly;
        match answer {
            Ok(Ok(())) if status.was_rolled_back() => End::Failed(rolled_back(loan)),
            Ok(Ok(())) => End::Committed,
            Ok(Err(err)) if is_answer(&err) && is_whole && self.may_meet_again(err.code()) => {
                conflict()
            }
            Ok(Err(err)) if is_answer(&err) => End::Refused(err),
            // A COMMIT that was never written has not been executed, and a read has no effect that a second run could
            // repeat.
            Ok(Err(_)) if status.ends() <= ends + u64::from(read_only) => lost(loan),
            Ok(Err(err)) => End::Failed(commit_unknown().with_source(err)),
            Err(_) if read_only => End::Failed(self.out_of_time(Stage::Commit)),
            Err(_) => End::Failed(commit_unknown()),
        }
    }

    /// Rolls back after the closure failed. `ends` as for [`send_commit`](Self::send_commit).
    async fn undo(&self, loan: &Loan, ends: u64) -> End {
        let (client, status) = (&loan.connection().client, &loan.connection().status);
        if is_dead(loan) {
            return lost_inside(loan, ends);
        }
        let is_whole = status.ends() == ends;
        let code = status.last_sqlstate().filter(|_| status.has_failed());
        let code = code.map(|code| SqlState::from_code(&code));
        if !status.is_idle() {
            let limit = self.until.min(Instant::now() + ROLLBACK_TIMEOUT);
            // Without an answer the connection is closed when it comes back, which also rolls back.
            drop(timeout_at(limit, client.batch_execute("ROLLBACK")).await);
        }
        if is_whole && self.may_meet_again(code.as_ref()) {
            return conflict();
        }
        End::Undone
    }

    /// Returns whether the transaction is to be run again after an error with that SQLSTATE.
    fn may_meet_again(&self, code: Option<&SqlState>) -> bool {
        let conflicts = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        let is_one = code.is_some_and(|code| conflicts.contains(code));
        is_one && self.options.retry_conflicts && self.left > 0
    }

    /// Prepares another run. Returns the error if there is no time for one.
    async fn again(&mut self, loan: Loan, err: Error, why: Why) -> Option<Error> {
        let pool = Arc::clone(loan.pool());
        tracing::debug!(tenant = pool.tenant.as_str(), ?why, %err, "running the transaction again");
        match why {
            Why::Lost => {
                // The tenant's other connections died with this one, although that may not show yet. Those opened since
                // are alive.
                if let Some(died) = loan.connection().status.died() {
                    pool.condemn(died);
                }
                loan.close();
            }
            Why::Silent => {
                self.is_patient = true;
                loan.close();
            }
            Why::Crowded => {
                loan.close();
                sleep(CROWDED_WAIT.min(self.remaining())).await;
            }
            Why::Outdated => {
                // Closed within its transaction, so that the pooler closes the server connection too.
                loan.close();
                pool.request_clearing();
            }
            Why::Conflict => {
                drop(loan);
                // The random wait keeps the same transactions from conflicting again.
                let pause = backoff(CONFLICT_WAIT, CONFLICT_WAIT)
                    .next()
                    .unwrap_or_default();
                sleep(pause.min(self.remaining())).await;
            }
        }
        if self.remaining().is_zero() {
            return Some(err);
        }
        self.last_failure = Some(err);
        count(&pool.shared.stats.transactions_repeated);
        None
    }

    fn out_of_time(&self, stage: Stage) -> Error {
        let err = timed_out(stage, self.began.elapsed(), self.last_failure.clone());
        if self.last_failure.is_some() {
            return err;
        }
        err.with_more(
            "the closure's statements took too long; make them faster, or raise `TransactionOptions::timeout`",
        )
    }

    /// Returns the error of a transaction that got no connection. A timeout without a source gets the last run's error
    /// as its source.
    pub(crate) fn explain(&self, err: Error) -> Error {
        match (&self.last_failure, err.kind()) {
            (Some(failure), ErrorKind::Timeout(_)) if err.source().is_none() => {
                err.with_source(failure.clone())
            }
            _ => err,
        }
    }
}
