//! Options for the comparison of the catalog with the databases that exist.

use std::time::Duration;

use super::{Fleet, Report, Trouble};
use crate::model::error::Error;

/// Options of [`Fleet::reconcile`]. Only [`repair`](Self::repair) lets it change anything.
///
/// ```no_run
/// # use tenantry::{Error, Reconcile, TenantRouter};
/// # async fn f(router: &TenantRouter) -> Result<(), Error> {
/// if let Some(fleet) = router.fleet() {
///     let report = fleet.reconcile(&Reconcile::dry_run()).await?;
///     println!("{} findings", report.findings.len());
///     let report = fleet.reconcile(&Reconcile::repair()).await?;
///     for finding in report.findings.iter().filter(|it| it.needs_attention()) {
///         eprintln!("{finding:?}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "these options do nothing until they are passed to `Fleet::reconcile`"]
pub struct Reconcile {
    pub(super) mend: bool,
    pub(super) grace: Duration,
    pub(super) endpoints: bool,
    /// Troubles for which the surplus database is deleted; otherwise it is only reported.
    pub(super) removed: Vec<Trouble>,
}

impl Reconcile {
    /// Reports findings, and changes nothing.
    pub fn dry_run() -> Self {
        Self {
            mend: false,
            grace: Duration::from_secs(3600),
            endpoints: false,
            removed: vec![Trouble::Duplicate],
        }
    }

    /// Repairs what can be repaired without losing anything that was ever served: finishes what was begun, and deletes
    /// databases that a known attempt created beside the served one.
    pub fn repair() -> Self {
        Self {
            mend: true,
            ..Self::dry_run()
        }
    }

    /// Sets the age below which no database is deleted. Defaults to an hour, which is more than any creation takes and
    /// more than any two clocks differ.
    pub fn grace(mut self, age: Duration) -> Self {
        self.grace = age;
        self
    }

    /// Also compares each tenant's endpoint with the control plane's ([`Trouble::Drift`]). By default it does not: that
    /// takes three calls of Neon's API for each tenant, while the rest takes one for 400. A router that meets a moved
    /// endpoint repairs the record by itself.
    pub fn endpoints(mut self) -> Self {
        self.endpoints = true;
        self
    }

    /// Also deletes databases of deleted tenants that still exist ([`Trouble::DeletedButPresent`]). By default it does
    /// not: an operator may have recovered one on purpose, and a catalog that was restored from a backup does not know
    /// later undeletes.
    pub fn remove_deleted(mut self) -> Self {
        self.removed.push(Trouble::DeletedButPresent);
        self
    }

    /// Also deletes databases that carry tenantry's tags and are unknown to the catalog ([`Trouble::Orphan`]). By
    /// default it does not: a catalog that was restored from a backup does not know all databases that are in use.
    pub fn remove_unrecorded(mut self) -> Self {
        self.removed.push(Trouble::Orphan);
        self
    }
}

impl Fleet {
    /// Compares the catalog with the databases that exist, and reports duplicates, orphans, missing databases and
    /// unfinished work. An error for one tenant is in the report, and the comparison continues.
    ///
    /// Takes one call of the control plane for 400 databases and a few for each finding, one after another.
    ///
    /// # Errors
    /// Those of the catalog and of the control plane, if one of them cannot list its records or databases.
    ///
    /// # Cancel safety
    /// The call may be dropped at any moment and run again. A deletion that was sent is not reversed.
    pub async fn reconcile(&self, how: &Reconcile) -> Result<Report, Error> {
        if self.inner.shared.life.is_stopping() {
            return Err(Error::closed());
        }
        let _under_way = self.inner.shared.jobs.token();
        tokio::select! {
            biased;
            () = self.inner.shared.life.terminated() => Err(Error::closed()),
            report = self.compare(how) => report,
        }
    }
}
