//! A small pool of connections to the catalog, every wait for it bounded.

use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use rustls::ClientConfig;
use tokio::{runtime::Handle, time::timeout};
use tokio_postgres::{
    Config, Row,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::Failure;
use crate::config::InvalidConfig;

/// Longest time for a cancel request, which nobody waits for.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a statement is run that Postgres rolls back because of others.
const ATTEMPTS: usize = 5;

/// A parameter of a statement, with its type.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Where the catalog is, and the connections to it.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) limit: Duration,
}

impl Connections {
    /// Opens nothing yet.
    pub(super) fn new(
        config: Config,
        tls: ClientConfig,
        size: usize,
        limit: Duration,
    ) -> Result<Self, InvalidConfig> {
        let tls = MakeRustlsConnect::new(tls);
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config.clone(), tls.clone(), recycling);
        let pool = Pool::builder(manager).max_size(size).build();
        let pool =
            pool.map_err(|err| InvalidConfig::new(format!("no pool for the catalog: {err}")))?;
        Ok(Self {
            pool,
            config,
            tls,
            limit,
        })
    }

    /// Runs one statement, without a name, so that a pooler may be in between. It is run again if Postgres says that it was
    /// rolled back because of others.
    ///
    /// # Cancel safety
    /// Dropping it cancels the statement, if it still runs, and closes the connection.
    pub(super) async fn ask(
        &self,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Failure> {
        for _ in 1..ATTEMPTS {
            match self.ask_once(statement, params).await {
                Err(failure) if failure.is_undone() => {}
                result => return result,
            }
        }
        self.ask_once(statement, params).await
    }

    async fn ask_once(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failure> {
        let session = self.session().await?;
        let rows = session.query_typed(statement, params).await;
        session.settle();
        Ok(rows?)
    }

    /// A connection for one piece of work.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        let client = self.pool.get().await?;
        Ok(Session {
            client: Some(client),
            tls: self.tls.clone(),
        })
    }
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
    tls: MakeRustlsConnect,
}

impl Session {
    /// Gives the connection back: nothing runs on it, and no transaction is open.
    pub(super) fn settle(mut self) {
        drop(self.client.take());
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
        let client = Object::take(client);
        let (token, tls) = (client.cancel_token(), self.tls.clone());
        drop(client);
        if let Ok(runtime) = Handle::try_current() {
            // Otherwise a statement that waits for a lock keeps its place at the server.
            runtime.spawn(async move { timeout(CANCEL_TIMEOUT, token.cancel_query(tls)).await });
        }
    }
}
