//! The rehearsal of a migration: on a copy of a tenant's database, which is deleted afterwards.

use std::{sync::Arc, time::Duration};

use super::{
    ProvisionEngine,
    prepare::{Connections, Preparation},
};
use crate::{
    catalog::Record,
    model::error::{Error, ErrorKind, Stage},
    schema::{CheckedSchema, Migrated, RunError},
    sync::progress::Progress,
    telemetry::stats::Stats,
};

/// Time after which a copy deletes itself, on top of the longest time for its migration.
const SPARE_TIME: Duration = Duration::from_secs(3600);
/// Longest time to delete a copy.
const CLEAN_UP: Duration = Duration::from_secs(60);

impl ProvisionEngine {
    /// Migrates a copy of the database of `record`, and deletes it whatever comes of it.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the copy, which deletes itself after some hours.
    pub(crate) async fn rehearse(
        &self,
        record: &Record,
        schema: &CheckedSchema,
        stats: &Stats,
    ) -> Result<Migrated, Error> {
        let (Some(placement), Some(endpoint)) = (&record.placement, &record.endpoint) else {
            let message = "the tenant's record has no database, so nothing can be copied";
            return Err(Error::new(ErrorKind::BadRecord, message));
        };
        let progress = Progress::new(Stage::Provision, schema.timeout());
        let lifetime = schema.timeout() + SPARE_TIME;
        let login = endpoint.login();
        let copied = self
            .control_plane
            .copy(placement, &login, lifetime, &progress);
        let Some(copy) = copied.await? else {
            let message = "the tenant's database is gone, so it cannot be copied";
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        let preparation = Preparation {
            dialer: &self.dialer,
            tenant: &record.tenant,
            endpoint: &Arc::new(copy.endpoint),
            progress: &progress,
            stats,
            connections: Connections::default(),
        };
        let migrated = preparation.run(None, Some(schema), &record.schema).await;
        drop(preparation);
        let clean_up = Progress::new(Stage::Provision, CLEAN_UP);
        let deleted = self
            .control_plane
            .delete_copy(&copy.placement, &clean_up)
            .await;
        if let Err(err) = deleted {
            let tenant = record.tenant.as_str();
            tracing::warn!(tenant, %err, "a copy of a database is left; it deletes itself later");
        }
        match migrated {
            Ok(ran) => {
                let nothing = || Migrated::nothing(record.schema.version, Duration::ZERO);
                Ok(ran.map_or_else(nothing, |ran| ran.migrated))
            }
            Err(RunError::Failed(failed)) => Err(failed.into_error()),
            Err(RunError::Later(err)) => Err(err),
            Err(RunError::Moved) => Err(Error::new(ErrorKind::Connect, "the copy has moved")),
        }
    }
}
