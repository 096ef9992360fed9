//! A small pool of connections to the catalog. Every wait for it is bounded.
//!
//! A session that may have caused a failure is not used again. If a session has ended, its siblings are closed with it,
//! as they have most probably ended, too. A refused statement fails for good only on a session that was just opened.

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

/// Longest time for a cancel request, which runs in the background.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// Most runs of a statement that Postgres rolls back because of other transactions.
const ATTEMPTS: usize = 5;
/// Age up to which a session has the role's present settings, and leads to the present primary.
const FRESH: Duration = Duration::from_secs(1);
/// Time without an answer after which the connection of an abandoned statement may be dead.
const SILENCE: Duration = Duration::from_secs(1);

/// A parameter of a statement, with its type.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The address of the catalog, and the connections to it.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    doubt: Arc<Doubt>,
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) limit: Duration,
}

impl Connections {
    /// Creates a pool of at most `size` sessions, each used for at most `lifetime`. Opens none yet.
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
        let pool = pool.build().map_err(|err| {
            InvalidConfig::new(format!("the catalog's pool cannot be built: {err}"))
        })?;
        Ok(Self {
            pool,
            doubt,
            config,
            tls,
            limit,
        })
    }

    /// Runs one statement, without a name, so that it works through a pooler. It is run again if Postgres has rolled it
    /// back because of other transactions, and once more if the session may have caused its failure. So it must be safe
    /// to run twice: an answer may have got lost with the session.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the statement, if it still runs, and closes the connection.
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

    /// Returns a connection for one piece of work.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        let client = self.pool.get().await?;
        Ok(Session {
            client: Some(client),
            taken: Instant::now(),
            connections: self.clone(),
        })
    }

    /// Closes the sessions that were last taken before `moment`.
    fn distrust(&self, moment: Instant) {
        self.doubt.rise(moment);
        // A session in use is checked when it is taken the next time.
        self.pool
            .retain(|_, metrics| !self.doubt.is_of(metrics.last_used()));
    }
}

/// The moment since which a session must have been taken to be used again.
#[derive(Default)]
struct Doubt(Mutex<Option<Instant>>);

impl Doubt {
    fn rise(&self, moment: Instant) {
        let mut since = lock(&self.0);
        *since = since.max(Some(moment));
    }

    /// Returns whether a session that was last taken this long ago is in doubt.
    fn is_of(&self, last_taken: Duration) -> bool {
        lock(&self.0).is_some_and(|since| last_taken > since.elapsed())
    }
}

/// Returns the hook that rejects sessions that are in doubt or too old. Lifetimes differ by up to a tenth, so that
/// sessions that were opened together are not replaced together.
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

/// Runs `work` for at most `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let done = timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(Failure::late(limit)))
}

/// A connection of the pool that has work to do. It returns to the pool only if it is [settled](Session::settle).
/// Otherwise its next user would wait for the abandoned statement, or be inside its transaction.
pub(super) struct Session {
    client: Option<Client>,
    taken: Instant,
    connections: Connections,
}

impl Session {
    /// Returns the connection to the pool: no statement runs on it, and no transaction is open.
    pub(super) fn settle(mut self) {
        drop(self.client.take());
    }

    /// Returns the connection to the pool after a failed statement, or closes it. Returns `true` if the session may
    /// have caused the failure, so that the statement may succeed on another one. Then its siblings are closed, too.
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
            // If this connection is dead, so are those that have not been taken since.
            connections.distrust(*taken);
        }
        let client = Object::take(client);
        let (token, tls) = (client.cancel_token(), connections.tls.clone());
        drop(client);
        if let Ok(runtime) = Handle::try_current() {
            // Otherwise a statement that waits for a lock would keep its place at the server.
            runtime.spawn(async move { timeout(CANCEL_TIMEOUT, token.cancel_query(tls)).await });
        }
    }
}
