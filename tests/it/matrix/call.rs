//! One call while something happens, and how it ends.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tenantry::{
    Error, Tx,
    deadpool_postgres::Client,
    tokio_postgres::{self, error::SqlState},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    scene::Scene,
    table::{Event, Outcome, State, Verb},
};

/// How late a call may be.
pub(super) const SLACK: Duration = Duration::from_secs(1);
/// A refusal is told sooner than this, half the deadline; a refused login has a second try after a second.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Why a call failed.
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
pub(super) struct Middle<'a> {
    /// How many calls have come there.
    there: &'a watch::Sender<usize>,
    /// Seconds that the query takes, if nothing happens to it.
    takes: f64,
    first: AtomicBool,
}

impl<'a> Middle<'a> {
    pub(super) fn new(event: &Event, state: State, there: &'a watch::Sender<usize>) -> Self {
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
            there,
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
        let arrive = async { self.there.send_modify(|there| *there += 1) };
        tokio::join!(biased; query, arrive).0 // the query is sent first
    }
}

impl Scene {
    /// One call, to its end or its deadline.
    pub(super) async fn call(
        &self,
        verb: Verb,
        state: State,
        there: &watch::Sender<usize>,
    ) -> Outcome {
        let middle = Middle::new(self.event, state, there);
        let late = self.ground.patience + SLACK;
        let start = Instant::now();
        let seen = self.once(verb, state, &middle, late).await;
        let took = start.elapsed();
        let case = self.case(state);
        assert!(!seen.is_refusal() || took < AT_ONCE, "{case}: {took:?}");
        match (self.row.cells(state).unwrap()[verb as usize], seen) {
            (Outcome::RowsOnceHeard, Outcome::Rows) => Outcome::RowsOnceHeard,
            (Outcome::RowsOnceHeard, Outcome::OwnError) => {
                match self.once(verb, state, &middle, late).await {
                    Outcome::Rows => Outcome::RowsOnceHeard,
                    again => again,
                }
            }
            _ => seen,
        }
    }

    /// The same without a second try.
    pub(super) async fn once(
        &self,
        verb: Verb,
        state: State,
        middle: &Middle<'_>,
        late: Duration,
    ) -> Outcome {
        let tenant = verb.tenant();
        match timeout(late, self.ask(verb, state, middle)).await {
            Ok(Ok(whose)) => {
                assert_eq!(whose, tenant, "{}: the wrong tenant", self.case(state));
                Outcome::Rows
            }
            Ok(Err(Failed::Own(err))) => {
                let farewells = [SqlState::ADMIN_SHUTDOWN, SqlState::PROTOCOL_VIOLATION];
                let lost = err.code().is_none_or(|code| farewells.contains(code));
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

    async fn ask(&self, verb: Verb, state: State, middle: &Middle<'_>) -> Result<String, Failed> {
        let (router, options, tenant) = (&self.ground.router, &self.options, verb.tenant());
        let read = async |tx: Tx| {
            middle.pass(&tx).await?;
            whose(&tx).await
        };
        let write = async |tx: Tx| {
            let insert = "INSERT INTO keys VALUES ($1)";
            tx.execute(insert, &[&self.case(state)]).await?;
            middle.pass(&tx).await?;
            whose(&tx).await
        };
        match verb {
            Verb::Get => {
                let client = router.get(tenant).await?;
                middle.pass(&client).await?;
                whose(&client).await
            }
            Verb::Read => router.read_with(tenant, options, read).await,
            Verb::Transaction => router.transaction_with(tenant, options, write).await,
        }
    }
}

/// Whose database `client` is connected to, by its own row.
pub(super) async fn whose(client: &Client) -> Result<String, Failed> {
    let rows = client
        .query_typed("SELECT tenant FROM identity", &[])
        .await?;
    Ok(rows[0].get(0))
}
