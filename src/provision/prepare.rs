//! The prepare hook, which the application runs on a new database before a pool hands out a connection to it.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, types::Type};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    connection::dial::Dialer,
    model::{
        current_tenant,
        endpoint::{Endpoint, Route},
        error::{BoxError, Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    sync::{
        progress::Progress,
        retry::{backoff, retry},
    },
    telemetry::{labels::Reason, stats::Stats},
};

/// Advisory lock that is held in the tenant's database while the hook runs there.
const LOCK: i64 = i64::from_be_bytes(*b"tenantry");
/// Longest wait for the connection to close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection straight to a database that is not served yet, for the [prepare hook](crate::Provisioner::prepare).
///
/// It derefs to tokio-postgres's client.
pub struct PrepareClient {
    tenant: TenantId,
    client: Client,
}

impl PrepareClient {
    /// Returns the tenant that the database belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

impl Deref for PrepareClient {
    type Target = Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for PrepareClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
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
    pub(crate) fn new<Fut>(prepare: impl Fn(PrepareClient) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self(Arc::new(move |database| Box::pin(prepare(database))))
    }

    /// Runs the hook on the database of `tenant`. No other process runs it there at the same time: the session of an
    /// earlier run is ended first.
    ///
    /// # Cancel safety
    /// Dropping the future cuts the connection.
    pub(super) async fn run(
        &self,
        dialer: &Dialer,
        tenant: &TenantId,
        endpoint: &Arc<Endpoint>,
        progress: &Progress,
        stats: &Stats,
    ) -> Result<(), Error> {
        stats.wake_started(Reason::Fleet);
        let (id, reason, began) = (tenant.as_str(), Reason::Fleet.name(), Instant::now());
        tracing::debug!(tenant = id, reason, "wake");
        let waits = backoff(Duration::from_millis(100), Duration::from_secs(5));
        let dial = || async {
            let permit = dialer.permit(None, progress).await?;
            dialer
                .dial(endpoint, Route::Direct, progress.deadline(), permit)
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
        let connection = AbortOnDropHandle::new(tokio::spawn(opened.task));
        shut_others_out(&opened.client).await?;
        let database = PrepareClient {
            tenant: tenant.clone(),
            client: opened.client,
        };
        let preparing = current_tenant::sync_scope(tenant, || (self.0)(database));
        let prepared = current_tenant::scope(tenant, preparing).await;
        let _ = timeout(FAREWELL_TIMEOUT, connection).await;
        prepared.map_err(|err| {
            let message = "the prepare hook failed on the new database; mend it, the next access runs it again";
            Error::new(ErrorKind::Query, message)
                .with_stage(Stage::Provision)
                .with_source(err)
        })
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
