//! One call while something happens, and how it ends.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tenantry::{
    Error, TransactionOptions, Tx,
    deadpool_postgres::Client,
    tokio_postgres::{self, error::SqlState},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    event_test::EventTest,
    table::{AMPLE_DEADLINE, Event, Outcome, State, Verb},
};

/// The time by which a call may be late.
pub(super) const SLACK: Duration = Duration::from_secs(1);
/// A refusal is told sooner than this, half the deadline; a refused login has a second try after a second.
const AT_ONCE: Duration = Duration::from_secs(12);

/// The error of a call that failed.
#[derive(Debug)]
pub(super) enum Failed {
    Ours(Error),
    Own(tokio_postgres::Error),
}

impl From<Error> for Failed {
    fn from(err: Error) -> Self {
        Self::Ours(err)
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(err: tokio_postgres::Error) -> Self {
        Self::Own(err)
    }
}

/// The middle of a call's query. A call comes there once, in its first run.
pub(super) struct SlowQuery<'a> {
    /// The number of calls that have come there.
    arrived: &'a watch::Sender<usize>,
    /// Seconds that the query takes, if nothing happens to it.
    takes: f64,
    first: AtomicBool,
}

impl<'a> SlowQuery<'a> {
    pub(super) fn new(event: &Event, state: State, arrived: &'a watch::Sender<usize>) -> Self {
        let takes = match event {
            _ if state == State::Suspended => 60.0,
            Event::Fault(_) | Event::Refused(..) | Event::FreezeBriefly => 0.1,
            Event::Freeze => 0.5,
            Event::Stop(_)
            | Event::Crash
            | Event::RestartProxy
            | Event::RotatePassword
            | Event::MoveEndpoint => 60.0,
        };
        Self {
            arrived,
            takes,
            first: AtomicBool::new(state.is_mid_query()),
        }
    }

    async fn pass(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        if !self.first.swap(false, Relaxed) {
            return Ok(());
        }
        let sleep = format!("SELECT pg_sleep({})", self.takes);
        let query = client.batch_execute(&sleep);
        let arrive = async { self.arrived.send_modify(|arrived| *arrived += 1) };
        tokio::join!(biased; query, arrive).0 // the query is sent first
    }
}

impl EventTest {
    /// One call, to its end or its deadline.
    pub(super) async fn call(
        &self,
        verb: Verb,
        state: State,
        arrived: &watch::Sender<usize>,
    ) -> Outcome {
        let slow_query = SlowQuery::new(self.event, state, arrived);
        let late = self.deadline(verb, state) + SLACK;
        let start = Instant::now();
        let seen = self.call_once(verb, state, &slow_query, late).await;
        let took = start.elapsed();
        let case = self.case(state);
        assert!(!seen.is_refusal() || took < AT_ONCE, "{case}: {took:?}");
        match (self.row.cells(state).unwrap()[verb as usize], seen) {
            (Outcome::RowsOnceHeard, Outcome::Rows) => Outcome::RowsOnceHeard,
            (Outcome::RowsOnceHeard, Outcome::OwnError) => {
                match self.call_once(verb, state, &slow_query, late).await {
                    Outcome::Rows => Outcome::RowsOnceHeard,
                    again => again,
                }
            }
            _ => seen,
        }
    }

    /// The same without a second try.
    pub(super) async fn call_once(
        &self,
        verb: Verb,
        state: State,
        slow_query: &SlowQuery<'_>,
        late: Duration,
    ) -> Outcome {
        let tenant = verb.tenant();
        match timeout(late, self.run_query(verb, state, slow_query)).await {
            Ok(Ok(found)) => {
                assert_eq!(found, tenant, "{}: the wrong tenant", self.case(state));
                Outcome::Rows
            }
            Ok(Err(Failed::Own(err))) => {
                let close_codes = [SqlState::ADMIN_SHUTDOWN, SqlState::PROTOCOL_VIOLATION];
                let lost = err.code().is_none_or(|code| close_codes.contains(code));
                assert!(lost, "{}: {err}", self.case(state));
                Outcome::OwnError
            }
            Ok(Err(Failed::Ours(err))) => {
                assert_eq!(err.tenant().map(AsRef::as_ref), Some(tenant), "{err}");
                Outcome::Fails(err.kind(), err.stage().expect("a stage"))
            }
            Err(_) => Outcome::NoAnswer,
        }
    }

    /// The deadline of a call. It is short only where the call has to wait for it.
    fn deadline(&self, verb: Verb, state: State) -> Duration {
        match self.row.cells(state).unwrap()[verb as usize] {
            Outcome::Rows | Outcome::RowsOnceHeard => self.shared.deadline.max(AMPLE_DEADLINE),
            _ => self.shared.deadline,
        }
    }

    async fn run_query(
        &self,
        verb: Verb,
        state: State,
        slow_query: &SlowQuery<'_>,
    ) -> Result<String, Failed> {
        let (router, tenant) = (&self.shared.router, verb.tenant());
        let options = &TransactionOptions::new().timeout(self.deadline(verb, state));
        let read = async |tx: Tx| {
            slow_query.pass(&tx).await?;
            tenant_of_row(&tx).await
        };
        let write = async |tx: Tx| {
            let insert = "INSERT INTO keys VALUES ($1)";
            tx.execute(insert, &[&self.case(state)]).await?;
            slow_query.pass(&tx).await?;
            tenant_of_row(&tx).await
        };
        match verb {
            Verb::Get => {
                let client = router.get(tenant).await?;
                slow_query.pass(&client).await?;
                tenant_of_row(&client).await
            }
            Verb::Read => router.read_with(tenant, options, read).await,
            Verb::Transaction => router.transaction_with(tenant, options, write).await,
        }
    }
}

/// Returns the tenant whose database `client` is connected to, by the database's own row.
pub(super) async fn tenant_of_row(client: &Client) -> Result<String, Failed> {
    let rows = client
        .query_typed("SELECT tenant FROM identity", &[])
        .await?;
    Ok(rows[0].get(0))
}
