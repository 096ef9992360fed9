//! A small pool of connections to the catalog, every wait for it bounded.
//!
//! A session is used again only as long as it is not to blame for anything: one that has ended ends its siblings, too,
//! which most probably ended with it, and a statement is refused for good only by a session that was opened just now.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};

use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, Metrics, Object, Pool, RecyclingMethod,
};
use rustls::ClientConfig;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tokio_postgres::{
    Config, Row,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::{Blame, Failure};
use crate::{model::config::InvalidConfig, sync::lock};

/// Longest time for a cancel request, which nobody waits for.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a statement is run that Postgres rolls back because of others.
const ATTEMPTS: usize = 5;
/// A session that was opened within this time has the role's present settings, and leads to the present primary.
const FRESH: Duration = Duration::from_secs(1);
/// A statement that is given up after this time without an answer may have been sent to nowhere.
const SILENCE: Duration = Duration::from_secs(1);

/// A parameter of a statement, with its type.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Where the catalog is, and the connections to it.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    doubt: Arc<Doubt>,
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) limit: Duration,
}

impl Connections {
    /// At most `size` sessions, each for at most `lifetime`. Opens nothing yet.
    pub(super) fn new(
        config: Config,
        tls: ClientConfig,
        size: usize,
        lifetime: Duration,
        limit: Duration,
    ) -> Result<Self, InvalidConfig> {
        let tls = MakeRustlsConnect::new(tls);
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config.clone(), tls.clone(), recycling);
        let doubt = Arc::<Doubt>::default();
        let pool = Pool::builder(manager)
            .max_size(size)
            .pre_recycle(worn(Arc::clone(&doubt), lifetime));
        let pool = pool
            .build()
            .map_err(|err| InvalidConfig::new(format!("no pool for the catalog: {err}")))?;
        Ok(Self {
            pool,
            doubt,
            config,
            tls,
            limit,
        })
    }

    /// Runs one statement, without a name, so that a pooler may be in between. It is run again if Postgres says that it was
    /// rolled back because of others, and once if the session may be to blame for its failure: so it must do no harm to run
    /// it twice, as an answer may have got lost with the session.
    ///
    /// # Cancel safety
    /// Dropping it cancels the statement, if it still runs, and closes the connection.
    pub(super) async fn ask(
        &self,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let (mut undone, mut replaced) = (0, false);
        loop {
            let session = self.session().await?;
            let failure = match session.query_typed(statement, params).await {
                Ok(rows) => {
                    session.settle();
                    return Ok(rows);
                }
                Err(err) => Failure::from(err),
            };
            undone += usize::from(failure.is_undone());
            let is_to_blame = session.ended_with(&failure);
            let again = if failure.is_undone() {
                undone < ATTEMPTS
            } else {
                is_to_blame && !std::mem::replace(&mut replaced, true)
            };
            if !again {
                return Err(failure);
            }
        }
    }

    /// A connection for one piece of work.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        let client = self.pool.get().await?;
        Ok(Session {
            client: Some(client),
            taken: Instant::now(),
            connections: self.clone(),
        })
    }

    /// Does not use sessions again that were last taken before `moment`.
    fn distrust(&self, moment: Instant) {
        self.doubt.rise(moment);
        // Whatever is in use is looked at when it is taken the next time.
        self.pool
            .retain(|_, metrics| !self.doubt.is_of(metrics.last_used()));
    }
}

/// Since when sessions must have been taken last to be used again.
#[derive(Default)]
struct Doubt(Mutex<Option<Instant>>);

impl Doubt {
    fn rise(&self, moment: Instant) {
        let mut since = lock(&self.0);
        *since = since.max(Some(moment));
    }

    /// Whether it is of a session that was last taken so long ago.
    fn is_of(&self, last_taken: Duration) -> bool {
        lock(&self.0).is_some_and(|since| last_taken > since.elapsed())
    }
}

/// Sorts out sessions that are in doubt, or that are too old. Lifetimes differ by up to a tenth, so that sessions that were
/// opened together are not replaced together.
fn worn(doubt: Arc<Doubt>, lifetime: Duration) -> Hook {
    let chance = RandomState::new();
    Hook::sync_fn(move |_, metrics: &Metrics| {
        let chance = chance.hash_one(metrics.created).to_be_bytes()[0];
        let earlier = lifetime / 10 * u32::from(chance) / u32::from(u8::MAX);
        if doubt.is_of(metrics.last_used()) || metrics.age() >= lifetime.saturating_sub(earlier) {
            return Err(HookError::message("the session is replaced"));
        }
        Ok(())
    })
}

/// What is done with the catalog within `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(Failure::late(limit)))
}

/// A connection of the pool that has something to do. It goes back there only if it is [settled](Session::settle): the next
/// user of one that was left would wait for the abandoned statement, or be in its transaction.
pub(super) struct Session {
    client: Option<Client>,
    taken: Instant,
    connections: Connections,
}

impl Session {
    /// Gives the connection back: nothing runs on it, and no transaction is open.
    pub(super) fn settle(mut self) {
        drop(self.client.take());
    }

    /// Gives the connection back after one statement that has failed, or closes it. Says whether the session may be to
    /// blame, so that the statement may succeed on another one; then its siblings are not used again, either.
    fn ended_with(mut self, failure: &Failure) -> bool {
        let Some(client) = self.client.take() else {
            return false;
        };
        let is_fresh = Object::metrics(&client).age() < FRESH;
        match failure.blame() {
            Blame::Others => return false,
            Blame::Statement | Blame::Load if is_fresh => return false,
            Blame::Load | Blame::Statement | Blame::Session => {}
        }
        drop(Object::take(client));
        let is_to_blame = failure.blame() != Blame::Load;
        if is_to_blame {
            self.connections.distrust(Instant::now());
        }
        is_to_blame
    }
}

impl std::ops::Deref for Session {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        let Some(client) = &self.client else {
            unreachable!("a session has its connection until it is dropped");
        };
        client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        let Self {
            taken, connections, ..
        } = self;
        if taken.elapsed() >= SILENCE.min(connections.limit / 2) {
            // If it leads nowhere, so do those of which nothing was heard since.
            connections.distrust(*taken);
        }
        let client = Object::take(client);
        let (token, tls) = (client.cancel_token(), connections.tls.clone());
        drop(client);
        if let Ok(runtime) = Handle::try_current() {
            // Otherwise a statement that waits for a lock keeps its place at the server.
            runtime.spawn(async move { timeout(CANCEL_TIMEOUT, token.cancel_query(tls)).await });
        }
    }
}
