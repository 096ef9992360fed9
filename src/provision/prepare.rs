//! The preparation of a new database before a pool hands out a connection to it: the application's prepare hook, and
//! the steps of its schema.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::{BoxFuture, ready};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_postgres::{Client, types::Type};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    catalog::SchemaState,
    connection::dial::{Dialer, Start},
    model::{
        current_tenant,
        endpoint::{Endpoint, Route},
        error::{BoxError, Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    schema::{self, CheckedSchema, Journal, OpenSession, Opened, Ran, RunError, Terms},
    sync::{
        lock,
        progress::Progress,
        retry::{backoff, retry},
    },
    telemetry::{labels::Reason, stats::Stats},
};

/// Advisory lock that is held in the tenant's database while the hook runs there.
const LOCK: i64 = i64::from_be_bytes(*b"tenantry");
/// Longest wait for the connection after the hook has returned.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the connection to close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection straight to a database that is not served yet, for the [prepare hook](crate::Provisioner::prepare).
///
/// It derefs to tokio-postgres's client.
pub struct PrepareClient {
    tenant: TenantId,
    // `None` only in `drop`.
    client: Option<Box<Client>>,
    back: Option<oneshot::Sender<Box<Client>>>,
}

impl PrepareClient {
    /// Returns the client, and the receiver that gets the connection when the client is dropped.
    fn new(tenant: &TenantId, client: Box<Client>) -> (Self, oneshot::Receiver<Box<Client>>) {
        let (back, returned) = oneshot::channel();
        let client = Self {
            tenant: tenant.clone(),
            client: Some(client),
            back: Some(back),
        };
        (client, returned)
    }

    /// Returns the tenant that the database belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

impl Deref for PrepareClient {
    type Target = Client;

    fn deref(&self) -> &Self::Target {
        match &self.client {
            Some(client) => client,
            None => unreachable!("the connection is there until the client is dropped"),
        }
    }
}

impl DerefMut for PrepareClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.client {
            Some(client) => client,
            None => unreachable!("the connection is there until the client is dropped"),
        }
    }
}

impl Drop for PrepareClient {
    fn drop(&mut self) {
        if let (Some(client), Some(back)) = (self.client.take(), self.back.take()) {
            let _ = back.send(client); // without a receiver, the connection is closed
        }
    }
}

impl fmt::Debug for PrepareClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrepareClient")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

type Done = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// The function that the application runs on a new database.
#[derive(Clone)]
pub(super) struct Hook(Arc<dyn Fn(PrepareClient) -> Done + Send + Sync>);

impl Hook {
    pub(super) fn new<Fut>(prepare: impl Fn(PrepareClient) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self(Arc::new(move |database| Box::pin(prepare(database))))
    }

    /// Runs the hook on the database of `tenant`, over `client`. Returns the connection if the hook has given it back.
    async fn run(
        &self,
        tenant: &TenantId,
        client: Box<Client>,
    ) -> (Result<(), Error>, Option<Box<Client>>) {
        let (database, returned) = PrepareClient::new(tenant, client);
        let preparing = current_tenant::sync_scope(tenant, || (self.0)(database));
        let prepared = current_tenant::scope(tenant, preparing).await;
        let prepared = prepared.map_err(|err| {
            let message = "the prepare hook failed on the new database; fix it, and the next access runs it again";
            Error::new(ErrorKind::Query, message)
                .with_stage(Stage::Provision)
                .with_source(err)
        });
        let returned = timeout(RETURN_TIMEOUT, returned).await;
        (prepared, returned.ok().and_then(Result::ok))
    }
}

/// The preparation of one database, under the tenant's lease.
pub(super) struct Preparation<'a> {
    pub(super) dialer: &'a Dialer,
    pub(super) tenant: &'a TenantId,
    pub(super) endpoint: &'a Arc<Endpoint>,
    pub(super) progress: &'a Progress,
    pub(super) stats: &'a Stats,
    pub(super) connections: Connections,
}

/// The connections of a preparation. They are cut when it is dropped.
#[derive(Default)]
pub(super) struct Connections {
    // The connection that the hook has left for the schema. Locked to take it or to put it there.
    first: Mutex<Option<Box<Client>>>,
    // The tasks that move the bytes. Locked to add one, or to take them all.
    tasks: Mutex<Vec<AbortOnDropHandle<Result<(), tokio_postgres::Error>>>>,
}

impl Preparation<'_> {
    /// Runs the hook and then the schema's steps, of which `known` has the state. Returns the outcome if there is a
    /// schema. No other process prepares the database at the same time: the session of an earlier one is ended
    /// first.
    ///
    /// # Cancel safety
    /// Dropping the future cuts the connections.
    pub(super) async fn run(
        &self,
        hook: Option<&Hook>,
        schema: Option<&CheckedSchema>,
        known: &SchemaState,
    ) -> Result<Option<Ran>, RunError> {
        let client = self.dial().await.map_err(RunError::Later)?;
        let prepared = self.run_on(client, hook, schema, known).await;
        let tasks = std::mem::take(&mut *lock(&self.connections.tasks));
        drop(lock(&self.connections.first).take());
        for task in tasks {
            let _ = timeout(FAREWELL_TIMEOUT, task).await;
        }
        prepared
    }

    async fn run_on(
        &self,
        client: Box<Client>,
        hook: Option<&Hook>,
        schema: Option<&CheckedSchema>,
        known: &SchemaState,
    ) -> Result<Option<Ran>, RunError> {
        let shut_out = shut_others_out(&client).await;
        shut_out.map_err(RunError::Later)?;
        if let Some(schema) = schema {
            schema::prepare_history(&client, schema).await?;
        }
        let left = match hook {
            None => Some(client),
            Some(hook) => {
                let (prepared, client) = hook.run(self.tenant, client).await;
                prepared.map_err(RunError::Later)?;
                client
            }
        };
        let Some(schema) = schema else {
            return Ok(None);
        };
        *lock(&self.connections.first) = left.filter(|client| !client.is_closed());
        let terms = Terms {
            open: self,
            known,
            journal: Some(self),
            only_reads: false,
        };
        // A caller that runs out of time waits for a creation, whatever part of it is running.
        let progress = Progress::new(Stage::Migrate, self.progress.remaining());
        let ran = schema::run(schema, self.tenant, terms, &progress).await?;
        Ok(Some(ran))
    }

    async fn dial(&self) -> Result<Box<Client>, Error> {
        let Self {
            dialer,
            endpoint,
            progress,
            stats,
            ..
        } = self;
        stats.wake_started(Reason::Fleet);
        let (id, reason, began) = (self.tenant.as_str(), Reason::Fleet.name(), Instant::now());
        tracing::debug!(tenant = id, reason, "wake");
        let waits = backoff(Duration::from_millis(100), Duration::from_secs(5));
        let dial = || async {
            let permit = dialer.permit(None, progress).await?;
            let (start, deadline) = (Start::Permit(permit), progress.deadline());
            dialer
                .dial(endpoint, Route::Direct, deadline, start, |_| {})
                .await
        };
        let opened = retry(progress, waits, dial).await;
        let opened = opened.map_err(|err| match err.kind() {
            ErrorKind::Timeout(_) => err, // it names its stage itself
            _ => err.with_stage(Stage::Provision),
        })?;
        let elapsed = began.elapsed();
        stats.wake_succeeded(Reason::Fleet, elapsed);
        tracing::debug!(tenant = id, reason, ?elapsed, "awake");
        let task = AbortOnDropHandle::new(tokio::spawn(opened.task));
        lock(&self.connections.tasks).push(task);
        Ok(Box::new(opened.client))
    }
}

impl OpenSession for Preparation<'_> {
    fn open(&self) -> BoxFuture<'_, Result<Opened, RunError>> {
        let first = lock(&self.connections.first).take();
        Box::pin(async move {
            let client = match first {
                Some(client) => client,
                None => self.dial().await.map_err(RunError::Later)?,
            };
            Ok(Opened {
                session: Box::new(client),
                woke: false,
            })
        })
    }
}

/// Notes nothing: the state is written when the database is published.
impl Journal for Preparation<'_> {
    fn note<'a>(&'a self, _: &'a SchemaState) -> BoxFuture<'a, ()> {
        Box::pin(ready(()))
    }
}

/// Takes the lock of the process that prepares the database. An earlier holder has lost the right to prepare it, so its
/// session is ended.
async fn shut_others_out(client: &Client) -> Result<(), Error> {
    let key = [(
        &LOCK as &(dyn tokio_postgres::types::ToSql + Sync),
        Type::INT8,
    )];
    let taken = client.query_typed("SELECT pg_try_advisory_lock($1)", &key);
    if taken.await?.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks \
               WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid() \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND (classid::bigint << 32) | objid::bigint = $1 AND objsubid = 1";
    client.query_typed(end, &key).await?;
    client
        .query_typed("SELECT pg_advisory_lock($1)", &key)
        .await?;
    Ok(())
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}
