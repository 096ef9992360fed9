//! The rehearsal of a campaign on copies of some tenants' databases.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use futures_util::{StreamExt, stream};

use super::Fleet;
use crate::{
    catalog::{Record, State},
    model::{error::Error, tenant::TenantId},
    router::campaign::Campaign,
    schema::{CheckedSchema, Migrated},
};

/// Records per read.
const PAGE: usize = 500;
/// Copies that are migrated at the same time.
const AT_ONCE: usize = 4;

/// The outcome of a rehearsal on the copy of one tenant's database. Returned by [`Fleet::rehearse`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rehearsed {
    /// The tenant.
    pub tenant: TenantId,
    /// The steps and the times that they took, or the error.
    pub result: Result<Migrated, Error>,
}

impl Fleet {
    /// Migrates copies of the databases of `count` tenants as `campaign` would migrate the tenants, and deletes the
    /// copies. At Neon, a copy is a branch of the present with a compute of its own: the tenant's compute is not woken,
    /// and its data does not change. The tenants are chosen by chance among those that lack steps; another target
    /// chooses others. Call this before [`migrate`](Self::migrate) to see failures and times on real data.
    ///
    /// A copy costs the compute time of its migration, and counts against the limits on branches and computes of your
    /// plan. Four are migrated at a time.
    ///
    /// ```no_run
    /// use tenantry::fleet::Campaign;
    ///
    /// # async fn f(fleet: tenantry::Fleet) -> Result<(), tenantry::Error> {
    /// for rehearsed in fleet.rehearse(&Campaign::new(), 10).await? {
    ///     match rehearsed.result {
    ///         Ok(migrated) => println!("{}: {:?}", rehearsed.tenant, migrated.took),
    ///         Err(err) => println!("{}: {err}", rehearsed.tenant),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `ErrorKind::Misused` if the router has no schema, or for settings that cannot work; errors of the catalog, and
    /// `ErrorKind::Closed`. An error about one tenant is part of the result, also if the control plane makes no copies.
    ///
    /// # Cancel safety
    /// Dropping the future may leave copies. They delete themselves 1 hour after
    /// [`Schema::timeout`](crate::Schema::timeout).
    pub async fn rehearse(
        &self,
        campaign: &Campaign,
        count: usize,
    ) -> Result<Vec<Rehearsed>, Error> {
        self.check_running()?;
        let schema = self.inner.schema_for_rehearsal(campaign)?;
        let chosen = self.choose(&schema, count).await?;
        let (engine, stats) = (self.provisioning(), &self.inner.shared.stats);
        let rehearsals = stream::iter(chosen).map(|record| {
            let schema = &schema;
            async move {
                let result = engine.rehearse(&record, schema, stats).await;
                let result = result.map_err(|err| err.with_tenant(&record.tenant));
                let tenant = record.tenant;
                Rehearsed { tenant, result }
            }
        });
        Ok(rehearsals.buffer_unordered(AT_ONCE).collect().await)
    }

    /// Returns the records of `count` tenants that lack steps of `schema`.
    async fn choose(&self, schema: &CheckedSchema, count: usize) -> Result<Vec<Record>, Error> {
        let catalog = &self.provisioning().catalog;
        let mut chosen = BTreeMap::new();
        let mut after = None;
        loop {
            let page = catalog.list(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(chosen.into_values().collect());
            };
            after = Some(last.tenant.clone());
            for record in page {
                if record.state == State::Ready && !schema.is_current(&record.schema) {
                    let mut hasher = DefaultHasher::new();
                    (schema.latest(), record.tenant.as_str()).hash(&mut hasher);
                    chosen.insert(hasher.finish(), record);
                }
                if chosen.len() > count {
                    chosen.pop_last();
                }
            }
        }
    }
}
