//! An operator's calls about the schemas of tenants. They read and write the catalog, and wake no database.

use std::time::Duration;

use super::{Fleet, Job};
use crate::{
    catalog::{SchemaFailure, SchemaState, SchemaTally},
    model::{
        endpoint::Login,
        error::{Error, ErrorKind},
    },
    schema::CheckedSchema,
};

/// The catalog's knowledge of one tenant's schema, compared with this program's. Returned by
/// [`Fleet::schema_of`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TenantSchema {
    /// The highest applied version. `None` if the database has no step, or if the catalog does not know: after an
    /// import, an undelete or a move to another branch, the next migration finds out.
    pub version: Option<i64>,
    /// The highest version of this program's schema; 0 if the router has none.
    pub latest: i64,
    /// `true` if a migration would find nothing to do, and wake nothing.
    pub is_current: bool,
    /// The steps above `version`, in order: those that a migration applies, unless the database has them already.
    pub pending: Vec<PendingStep>,
    /// The version up to which the next migration records steps as applied, without running them.
    pub baseline: Option<i64>,
    /// The last failure, until a migration succeeds.
    pub failure: Option<SchemaFailure>,
}

/// One step that a tenant's database lacks, as far as the catalog knows.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PendingStep {
    /// The version.
    pub version: i64,
    /// The name.
    pub name: String,
}

impl Fleet {
    /// Returns the catalog's knowledge of the schema of `tenant`.
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if the catalog has no record of the tenant; errors of the catalog, and
    /// `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn schema_of<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
    ) -> Result<TenantSchema, Error> {
        let Some(record) = self.record(tenant).await? else {
            let message = "no such tenant; the catalog has no record of it";
            return Err(Error::new(ErrorKind::UnknownTenant, message));
        };
        let schema = self.provisioning().schema.as_deref();
        Ok(TenantSchema::of(record.schema, schema))
    }

    /// Counts the tenants by the states of their databases and schemas, in the order of the versions. The catalog reads
    /// all its records for this: call it at a deploy or every few minutes, not in a request. The metrics
    /// `tenantry.schema.tenants` have the last answer.
    ///
    /// ```no_run
    /// # async fn f(fleet: tenantry::Fleet) -> Result<(), tenantry::Error> {
    /// let counts = fleet.schema_versions().await?;
    /// let failed: u64 = counts.iter().filter(|it| it.failed).map(|it| it.tenants).sum();
    /// println!("{failed} tenants stand at a step that failed");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of the catalog, and `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn schema_versions(&self) -> Result<Vec<SchemaTally>, Error> {
        if self.inner.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let mut counts = self.provisioning().catalog.tally().await?;
        if let Some(schema) = self.provisioning().schema.as_deref() {
            self.inner.campaigns.note_versions(&counts, schema);
        }
        counts.sort_by_key(|it| (it.version, it.state.as_str(), it.failed, it.quarantined));
        Ok(counts)
    }

    /// Forgets the failure of the schema of `tenant`, so that the next migration tries again at once. Call this after
    /// you have mended the tenant's data, or the code of a step. (A changed text or limit of a step is noticed without
    /// it.)
    ///
    /// # Errors
    /// `ErrorKind::UnknownTenant` if the catalog has no record of the tenant; errors of the catalog, and
    /// `ErrorKind::Timeout`, also while a migration of the tenant is running.
    pub async fn retry_schema<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        let forget = |schema: &mut SchemaState| schema.failure = None;
        self.change_schema(tenant.as_ref(), forget).await
    }

    /// Forgets the version of the schema of `tenant`, and its failure. Call this after you have replaced the database
    /// without tenantry, for example by a restore in Neon's console: the next migration reads the history in the
    /// database. After an [`undelete`](Self::undelete) or an [`import`](Self::import), tenantry does so by itself.
    ///
    /// # Errors
    /// Those of [`retry_schema`](Self::retry_schema).
    pub async fn forget_schema<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<(), Error> {
        self.change_schema(tenant.as_ref(), SchemaState::forget)
            .await
    }

    /// Takes the steps up to `version` for applied in the database of `tenant`, which has their tables already. The
    /// next migration records them in the history, without running them, and goes on from there.
    ///
    /// # Errors
    /// `ErrorKind::Misused` if the router's schema has no such step, and those of [`retry_schema`](Self::retry_schema).
    pub async fn baseline<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        version: i64,
    ) -> Result<(), Error> {
        let state = self.state_at(version)?;
        self.change_schema(tenant.as_ref(), move |schema| *schema = state)
            .await
    }

    /// Makes an existing project the database of `tenant` as [`import`](Self::import) does, and takes the steps of the
    /// schema up to `version` for applied, as [`baseline`](Self::baseline) does.
    ///
    /// # Errors
    /// Those of both.
    pub async fn import_at<T: AsRef<str> + ?Sized>(
        &self,
        tenant: &T,
        project: &str,
        login: Option<Login>,
        version: i64,
    ) -> Result<(), Error> {
        let state = self.state_at(version)?;
        self.import_with(tenant.as_ref(), project, login, state)
            .await
    }

    /// Returns the state of a schema whose steps up to `version` are applied.
    fn state_at(&self, version: i64) -> Result<SchemaState, Error> {
        let schema = self.provisioning().schema.as_deref();
        schema.and_then(|schema| schema.state_at(version)).ok_or_else(|| {
            let message = format!("the router's schema has no step {version}; set one with `RouterBuilder::schema`");
            Error::new(ErrorKind::Misused, message)
        })
    }

    /// Changes the state of the schema in the tenant's record, under its lease.
    async fn change_schema(
        &self,
        tenant: &str,
        change: impl FnOnce(&mut SchemaState) + Clone + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let job = self.job(tenant, Duration::ZERO)?;
        job.run(|job: Job| async move {
            let on = job.fleet.provisioning();
            on.change_schema(&job.tenant, change, &job.progress, job.stats())
                .await
        })
        .await
    }
}

impl TenantSchema {
    fn of(state: SchemaState, schema: Option<&CheckedSchema>) -> Self {
        let steps = schema.into_iter().flat_map(CheckedSchema::steps);
        let pending = steps.filter(|(version, _)| *version > state.version);
        Self {
            version: (state.version != 0).then_some(state.version),
            latest: schema.map_or(0, CheckedSchema::latest),
            is_current: schema.is_none_or(|schema| schema.is_current(&state)),
            pending: pending
                .map(|(version, name)| PendingStep {
                    version,
                    name: name.to_owned(),
                })
                .collect(),
            baseline: state.baseline,
            failure: state.failure,
        }
    }
}
