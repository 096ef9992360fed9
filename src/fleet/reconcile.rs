//! How the catalog is compared with the databases that are really there.

use std::time::Duration;

use super::{Fleet, Report, Trouble};
use crate::model::error::Error;

/// How [`Fleet::reconcile`] goes about it. By default it changes nothing.
///
/// ```no_run
/// # use tenantry::{Error, Reconcile, TenantRouter};
/// # async fn f(router: &TenantRouter) -> Result<(), Error> {
/// if let Some(fleet) = router.fleet() {
///     let report = fleet.reconcile(&Reconcile::dry_run()).await?;
///     println!("{} findings", report.findings.len());
///     let report = fleet.reconcile(&Reconcile::mend()).await?;
///     for finding in report.findings.iter().filter(|it| it.needs_attention()) {
///         eprintln!("{finding:?}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it says how, and does nothing until `Fleet::reconcile` has it"]
pub struct Reconcile {
    pub(super) mend: bool,
    pub(super) grace: Duration,
    pub(super) endpoints: bool,
    /// What is removed that is only reported otherwise.
    pub(super) removed: Vec<Trouble>,
}

impl Reconcile {
    /// Looks, and changes nothing.
    pub fn dry_run() -> Self {
        Self {
            mend: false,
            grace: Duration::from_secs(3600),
            endpoints: false,
            removed: vec![Trouble::Duplicate],
        }
    }

    /// Mends what can be mended without losing anything that was ever served: finishes what was begun, and deletes databases
    /// that a known attempt has created beside the one that is served.
    pub fn repair() -> Self {
        Self {
            mend: true,
            ..Self::dry_run()
        }
    }

    /// Leaves databases alone that are younger. Defaults to an hour, which is more than any creation takes and any two
    /// clocks differ.
    pub fn grace(mut self, age: Duration) -> Self {
        self.grace = age;
        self
    }

    /// Also compares where each tenant lives ([`Trouble::Drift`]). Defaults to no: that takes three calls of Neon's API for
    /// each, where all else takes one for 400, and a router that meets a moved endpoint mends the record by itself.
    pub fn endpoints(mut self) -> Self {
        self.endpoints = true;
        self
    }

    /// Deletes databases of deleted tenants that are there all the same ([`Trouble::DeletedButPresent`]). Defaults to no: somebody may
    /// have recovered one on purpose, and a catalog that was restored from a backup has forgotten what was undeleted.
    pub fn remove_deleted(mut self) -> Self {
        self.removed.push(Trouble::DeletedButPresent);
        self
    }

    /// Also deletes databases that carry our tags and that the catalog knows nothing of ([`Trouble::Orphan`]). Defaults to
    /// no: a catalog that was restored from a backup has forgotten databases that are in use.
    pub fn remove_unrecorded(mut self) -> Self {
        self.removed.push(Trouble::Orphan);
        self
    }
}

impl Fleet {
    /// Compares the catalog with the databases that are there: duplicates, orphans, what is missing, what was left
    /// unfinished. What fails for one tenant stands in the report and stops nothing.
    ///
    /// Takes one call of the control plane for 400 databases and a few for each finding, one after another.
    ///
    /// # Errors
    /// If the catalog or the control plane cannot list what there is.
    ///
    /// # Cancel safety
    /// May be dropped at any moment and run again; a deletion that was sent is not taken back.
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
