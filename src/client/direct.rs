//! A connection that goes straight to Postgres, for what a pooler in transaction mode cannot do.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};
use tokio_postgres::Notification;
use tracing::Instrument;

use super::cancel::CancelToken;
use crate::{
    connection::{dial::Dialed, driver::Notifications, status::ConnectionStatus},
    model::{
        endpoint::Endpoint,
        error::{Error, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved, connect::task::start},
    sync::progress::timed_out,
    telemetry::{labels::Reason, spans},
};

/// A dedicated connection to one tenant's database that bypasses the pooler: for migrations, `LISTEN`, `COPY`, session
/// state and advisory locks. Dropping it closes it; no other caller ever gets it.
///
/// It derefs to deadpool-postgres's client. It does not keep the database awake, and it ends when the database falls
/// asleep.
#[must_use = "a dropped client closes its connection"]
pub struct DirectClient {
    client: deadpool_postgres::Client,
    notifications: Notifications,
    status: Arc<ConnectionStatus>,
    endpoint: Arc<Endpoint>,
    pool: Arc<Pool>,
}

impl DirectClient {
    /// Returns the tenant whose database this is.
    pub fn tenant(&self) -> &TenantId {
        &self.pool.tenant
    }

    /// Returns a token that cancels the running query from another task.
    pub fn cancel_token(&self) -> CancelToken {
        let Self {
            client,
            endpoint,
            status,
            pool,
            ..
        } = self;
        CancelToken::of_direct(client, endpoint, status, &pool.shared)
    }

    /// Waits for the next notification on a channel that the connection listens to. Returns `None` once the connection
    /// has ended. Up to 1024 notifications are queued; later ones are lost, with a warning in the log. Notifications
    /// that were sent while the database slept were never kept. The wait has no time limit.
    ///
    /// # Cancel safety
    /// Dropping the future loses no notification.
    pub async fn notification(&mut self) -> Option<Notification> {
        self.notifications.recv().await
    }

    /// Opens a direct connection for the tenant of `pool`, by `until`.
    ///
    /// # Cancel safety
    /// Dropping the future gives up. A connection that is opened afterwards is closed.
    pub(crate) async fn open(pool: Arc<Pool>, until: Instant) -> Result<Self, Unserved> {
        let began = Instant::now();
        let permits = pool.direct_permits();
        let permit = timeout_at(until, permits.acquire_owned()).await;
        let permit = permit.map_err(|_| {
            let most = pool.shared.config.direct_connections;
            timed_out(Stage::Checkout, began.elapsed(), None).with_more(&format!(
                "all {most} direct connections that the tenant may have are in use; close them sooner, or raise \
                 direct_connections"
            ))
        })?;
        let permit = permit.map_err(|_| Error::closed())?;
        let opened = Self::open_held(pool, until, Reason::Request, Some(permit)).await;
        opened.map(|(client, _)| client)
    }

    /// Opens a direct connection that does not count in `direct_connections`, for a migration. Returns whether that
    /// woke the database.
    ///
    /// # Cancel safety
    /// As [`open`](Self::open).
    pub(crate) async fn open_for_migration(
        pool: Arc<Pool>,
        until: Instant,
    ) -> Result<(Self, bool), Unserved> {
        Self::open_held(pool, until, Reason::Migration, None).await
    }

    async fn open_held(
        pool: Arc<Pool>,
        until: Instant,
        reason: Reason,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Self, bool), Unserved> {
        let began = Instant::now();
        let name = pool.tenant.as_str();
        let span = spans::detached(tracing::debug_span!(parent: None, "open", tenant = name));
        let task = Self::dial(Arc::clone(&pool), until, reason, permit).instrument(span);
        let shared = Arc::clone(&pool.shared);
        let task = shared.attempts.spawn_on(task, &shared.runtime);
        match timeout_at(until, task).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(err)) if err.is_panic() => Err(Error::panicked().into()),
            Ok(Err(_)) => Err(Error::closed().into()),
            Err(_) => Err(pool.out_of_time(began).into()),
        }
    }

    async fn dial(
        pool: Arc<Pool>,
        until: Instant,
        reason: Reason,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Self, bool), Unserved> {
        let dialed = tokio::select! {
            biased;
            () = pool.shared.life.terminated() => Err(Error::closed().into()),
            () = pool.until_forbidden() => Err(Unserved::relocate()),
            dialed = pool.open_direct(until, reason) => dialed,
        };
        pool.check_allowed()?; // it may have been forbidden since the login
        let (dialed, woke) = dialed?;
        Ok((Self::new(&pool, dialed, permit)?, woke))
    }

    fn new(
        pool: &Arc<Pool>,
        dialed: Dialed,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, Error> {
        let Dialed {
            client,
            status,
            endpoint,
            task,
            notifications,
            ..
        } = dialed;
        let client = start(pool, client, task, &status, permit);
        let (Some(client), Some(notifications)) = (client, notifications) else {
            status.mark_closing();
            return Err(Error::closed());
        };
        Ok(Self {
            client,
            notifications,
            status,
            endpoint,
            pool: Arc::clone(pool),
        })
    }
}

impl Deref for DirectClient {
    type Target = deadpool_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for DirectClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

impl Drop for DirectClient {
    fn drop(&mut self) {
        if !self.status.is_clean() && !self.client.is_closed() {
            // Postgres notices that a client is gone only when it next writes to it.
            let token = self.cancel_token();
            let runtime = &self.pool.shared.runtime;
            runtime.spawn(async move { token.cancel_now().await });
        }
        self.status.mark_closing();
    }
}

impl fmt::Debug for DirectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectClient")
            .field("tenant", self.tenant())
            .finish_non_exhaustive()
    }
}
