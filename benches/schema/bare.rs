//! A migration by hand: no more than any code needs.

use std::time::Duration;

use tenantry::{BoxError, emulator::Witness};
use tokio::time::Instant;

use crate::{
    setup::Setup,
    support::{QUERY, Target},
};

/// One tenant's database, and how bare code reaches it.
pub(crate) struct Bare {
    direct: Target,
    pooled: Target,
}

impl Bare {
    pub(crate) async fn new(setup: &Setup, it: &Witness) -> Result<Self, BoxError> {
        let neon = setup.neon()?;
        Ok(Self {
            direct: Target::of(&setup.emulator, &neon, it, false).await?,
            pooled: Target::of(&setup.emulator, &neon, it, true).await?,
        })
    }

    /// Wakes the database, applies `step` with its row, and asks the pooled host.
    pub(crate) async fn migrate(&self, step: &str) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let (mut client, task) = self.direct.open().await?;
        client.batch_execute("SELECT pg_advisory_lock(1)").await?;
        let versions = client.query("SELECT version FROM versions", &[]).await?;
        if versions.len() != 1 {
            return Err("the database has other versions than expected".into());
        }
        let transaction = client.transaction().await?;
        transaction.batch_execute(step).await?;
        let row = "INSERT INTO versions VALUES (2)";
        transaction.execute(row, &[]).await?;
        transaction.commit().await?;
        drop(client);
        let (pooled, pooled_task) = self.pooled.open().await?;
        pooled.query_typed(QUERY, &[]).await?;
        let took = start.elapsed();
        drop(pooled);
        task.await??;
        pooled_task.await??;
        Ok(took)
    }

    /// Runs `sql` past the pooler.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), BoxError> {
        let (client, task) = self.direct.open().await?;
        client.batch_execute(sql).await?;
        drop(client);
        Ok(task.await??)
    }
}
