//! The end of a wake: a database that a campaign has woken is suspended if nobody else uses it.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;

use crate::{
    catalog::Placement,
    client::direct::DirectClient,
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::Unserved,
    router::Inner,
    sync::progress::Progress,
};

/// Longest time for the suspension of one database.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Every other session on the compute, in whatever database, but for Neon's own. A role without further rights sees
/// that they exist.
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity \
                      WHERE datname IS NOT NULL AND usename <> 'cloud_admin' AND pid <> pg_backend_pid()";

impl Inner {
    /// Suspends the database of `tenant` if it has no other session. Returns whether it did so.
    pub(super) async fn put_to_sleep(&self, tenant: &TenantId, placement: &Placement) -> bool {
        match self.try_put_to_sleep(tenant, placement).await {
            Ok(sleeps) => sleeps,
            Err(err) => {
                let tenant = tenant.as_str();
                tracing::debug!(tenant, %err, "cannot suspend a database after its migration");
                false // it sleeps by itself, only later
            }
        }
    }

    async fn try_put_to_sleep(
        &self,
        tenant: &TenantId,
        placement: &Placement,
    ) -> Result<bool, Error> {
        let (engine, _) = self.engine_and_schema()?;
        let Some(pool) = self.pools.live(tenant.as_str()) else {
            return Ok(false);
        };
        let progress = Progress::new(Stage::Migrate, TIMEOUT);
        let opened = DirectClient::open_for_migration(pool, Instant::now() + TIMEOUT).await;
        let (client, _) = opened.map_err(Unserved::into_error)?;
        let answer = client.simple_query(OTHERS).await.map_err(|err| {
            let message = "the sessions on the tenant's database cannot be counted";
            Error::new(ErrorKind::Connect, message).with_source(err)
        })?;
        let others = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        if others != Some("0") {
            return Ok(false);
        }
        drop(client);
        let suspended = engine.control_plane.suspend(placement, &progress).await;
        suspended.map(|()| true)
    }
}
