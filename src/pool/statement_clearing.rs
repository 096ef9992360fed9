//! The clearing of statements that were prepared before a schema change.
//!
//! PgBouncer keeps a prepared statement by its text on each of its server connections, for all its clients. After a
//! schema change Postgres may refuse the statement on such a server connection for as long as the connection lasts.
//! PgBouncer closes a server connection when its client disconnects within a transaction, and it hands out the one that
//! was used last. So clients that disconnect one after the other clear all server connections, up to the first one that
//! PgBouncer had to open. Server connections in use by other clients are left out.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_postgres::SimpleQueryMessage;

use super::{Pool, Unserved, loan::Loan};
use crate::{connection::Connection, sync::lock};

/// Longest wait for an answer from the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most server connections that one clearing closes. The pooler of the smallest compute at Neon has 93.
const MOST_SERVERS: u32 = 100;
/// Number of new server connections in one clearing after which the older ones that are left count as in use. An older
/// one may also have become free just then.
const MOST_NEW: u32 = 4;
/// Average time between two clearings that refused statements begin, so that an error that stays costs little.
const CLEAR_EVERY: Duration = Duration::from_secs(10);
/// Number of clearings that may begin at once within that average.
const CLEAR_AT_ONCE: u32 = 5;

/// The clearings of one pool. Most pools never have one.
#[derive(Debug, Default)]
pub(super) struct StatementClearing(OnceLock<Box<Clearings>>);

#[derive(Debug)]
struct Clearings {
    /// Number of the last clearing that was requested.
    requested: AtomicU64,
    /// Number of the last one that began.
    begun: AtomicU64,
    /// Number of the last one that is done.
    done: AtomicU64,
    /// The permit to run one.
    one_at_a_time: Semaphore,
    // The time at which the next refused statement may begin one at the average rate. Locked for a few instructions.
    next: Mutex<Option<Instant>>,
}

impl StatementClearing {
    fn clearings(&self) -> &Clearings {
        self.0.get_or_init(|| {
            Box::new(Clearings {
                requested: AtomicU64::new(0),
                begun: AtomicU64::new(0),
                done: AtomicU64::new(0),
                one_at_a_time: Semaphore::new(1),
                next: Mutex::default(),
            })
        })
    }

    /// Returns the clearings, if one was requested and is not done.
    fn due(&self) -> Option<&Clearings> {
        let clearings = self.0.get()?;
        let is_due = clearings.done.load(Acquire) < clearings.requested.load(Acquire);
        is_due.then_some(clearings)
    }

    /// Returns whether a clearing was requested and is not done.
    pub(super) fn is_clearing_due(&self) -> bool {
        self.due().is_some()
    }
}

impl Clearings {
    /// Returns whether a refused statement should request one more clearing.
    fn is_wanted(&self) -> bool {
        if self.begun.load(Acquire) < self.requested.load(Acquire) {
            return false; // one is requested and has not begun
        }
        let now = Instant::now();
        let mut next = lock(&self.next);
        let due = next.map_or(now, |next| next.max(now));
        let is_in_rate = due - now < CLEAR_EVERY * CLEAR_AT_ONCE;
        if is_in_rate {
            *next = Some(due + CLEAR_EVERY);
        }
        is_in_rate
    }
}

/// The outcome of a clearing for one caller.
pub(super) enum Cleared {
    /// A loan that the caller may use: its statements are cleared, or no clearing was due.
    Ready(Loan),
    /// The caller must take another connection.
    TakeAnother,
}

/// A server connection, as Postgres describes it.
struct Server {
    /// The time by the server's clock.
    time: String,
    /// `true` if it was opened after the one before it answered.
    is_new: bool,
    /// `true` if others are open that were opened before the first one answered.
    has_older: bool,
}

impl Pool {
    /// Notes that Postgres refused a statement that was prepared before a schema change.
    pub(crate) fn request_clearing(&self) {
        if self.clearing.clearings().is_wanted() {
            self.clear_statements();
        }
    }

    /// Notes a refused statement if Postgres refused one on `connection`, once for each connection.
    pub(super) fn request_statement_clearing_for(&self, connection: &Connection) {
        if connection.status.take_outdated() {
            self.request_clearing();
        }
    }

    /// Requests that all statements are cleared before the next connection is handed out. The connections that are open
    /// now are closed, those on loan when they come back, with the statements that their drivers have cached.
    pub(crate) fn clear_statements(&self) {
        self.clearing.clearings().requested.fetch_add(1, AcqRel);
        let mut state = self.state();
        state.open.iter().for_each(|status| status.expire());
        let idle = state.take_idle(|_| true);
        drop(state);
        idle.into_iter().for_each(Connection::close);
    }

    /// Clears the statements if that is due. Returns `loan`, or another one, with cleared statements, unless the caller
    /// must take another one.
    pub(super) async fn with_cleared_statements(
        self: &Arc<Self>,
        loan: Loan,
        until: Instant,
    ) -> Result<Cleared, Unserved> {
        let Some(clearings) = self.clearing.due() else {
            return Ok(Cleared::Ready(loan));
        };
        let Ok(permit) = clearings.one_at_a_time.try_acquire() else {
            drop(loan); // the caller that clears may need it
            drop(clearings.one_at_a_time.acquire().await); // waits until that caller is done
            return Ok(Cleared::TakeAnother);
        };
        let number = clearings.requested.load(Acquire);
        clearings.begun.fetch_max(number, AcqRel);
        let cleared = Box::pin(self.close_servers(loan, until)).await?;
        clearings.done.fetch_max(number, AcqRel);
        drop(permit);
        Ok(cleared)
    }

    /// Closes the pooler's idle server connections. Returns a loan with a new one behind it, unless the server did not
    /// answer.
    async fn close_servers(
        self: &Arc<Self>,
        mut loan: Loan,
        until: Instant,
    ) -> Result<Cleared, Unserved> {
        let (mut first, mut last) = (None, None);
        let (mut closed, mut new) = (0, 0);
        loop {
            let answer = begin(&loan, first.as_deref(), last.as_deref());
            let Ok(Some(server)) = timeout(ANSWER_TIMEOUT, answer).await else {
                break;
            };
            new += u32::from(server.is_new);
            let is_last = server.is_new && (new == MOST_NEW || !server.has_older);
            if is_last || closed == MOST_SERVERS {
                let rollback = loan.connection().client.batch_execute("ROLLBACK");
                if matches!(timeout(ANSWER_TIMEOUT, rollback).await, Ok(Ok(()))) {
                    tracing::debug!(tenant = self.tenant.as_str(), closed, "statements cleared");
                    return Ok(Cleared::Ready(loan));
                }
                break;
            }
            first = first.or_else(|| Some(server.time.clone()));
            last = Some(server.time);
            closed += 1;
            loan.close();
            loan = self.take_or_queue(until, true).await?.loan;
        }
        loan.close();
        Ok(Cleared::TakeAnother)
    }
}

/// Begins a transaction and returns the server connection that it has. `first`, `last`: the times at which the first
/// one and the one before answered, by the server's clock.
async fn begin(loan: &Loan, first: Option<&str>, last: Option<&str>) -> Option<Server> {
    let [first, last] = [first, last].map(|time| time.unwrap_or("infinity"));
    // Numbers, because the format of a timestamp depends on the session.
    let sql = format!(
        "BEGIN; SELECT extract(epoch FROM clock_timestamp()), extract(epoch FROM it.backend_start) > '{last}', \
         EXISTS (SELECT FROM pg_stat_activity AS other WHERE other.pid <> it.pid \
         AND other.backend_type = it.backend_type AND (other.datid, other.usesysid) = (it.datid, it.usesysid) \
         AND other.client_addr IS NOT DISTINCT FROM it.client_addr \
         AND extract(epoch FROM other.backend_start) < '{first}') \
         FROM pg_stat_activity AS it WHERE it.pid = pg_backend_pid()"
    );
    let answer = loan.connection().client.simple_query(&sql).await.ok()?;
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(Server {
            time: row.get(0)?.to_owned(),
            is_new: row.get(1)? == "t",
            has_older: row.get(2)? == "t",
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn refused_statements_begin_a_few_clearings_at_once_and_then_some_now_and_then() {
        let clearing = StatementClearing::default();
        let clearings = clearing.clearings();
        let begin = || {
            let number = clearings.requested.fetch_add(1, AcqRel) + 1;
            assert!(clearing.is_clearing_due());
            assert!(!clearings.is_wanted(), "one that is to begin is enough");
            clearings.begun.fetch_max(number, AcqRel);
            clearings.done.fetch_max(number, AcqRel);
            assert!(!clearing.is_clearing_due());
        };
        let clear = || (0..100).filter(|_| clearings.is_wanted()).map(|_| begin());
        assert_eq!(clear().count(), 5);
        tokio::time::advance(2 * CLEAR_EVERY).await;
        assert_eq!(clear().count(), 2);
    }
}
