//! What a comparison of the catalog with what is really there has found.

use crate::error::Error;

/// What a [comparison](crate::Fleet::reconcile) has found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Records in the catalog, tombstones included.
    pub records: u64,
    /// Databases whose name begins as those of this namespace do.
    pub databases: u64,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// What it is.
    pub trouble: Trouble,
    /// Whose it is, if that is known: the id as the record or the database's tag has it.
    pub tenant: Option<String>,
    /// The database concerned, if there is one.
    pub project: Option<String>,
    /// What was done about it.
    pub outcome: Outcome,
}

impl Finding {
    /// Whether a person has to look at it: it was not mended, and the next comparison will not mend it by itself.
    pub fn needs_attention(&self) -> bool {
        match self.outcome {
            Outcome::Reported | Outcome::Failed(_) => true,
            Outcome::Mended | Outcome::Left => false,
        }
    }
}

/// What is not as it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// The record says that the endpoint is another than the control plane does. Mended in the record.
    Drift,
    /// A second database of a tenant, created by a known attempt. Deleted.
    Duplicate,
    /// A database of our name without our tags. Never touched.
    Foreign,
    /// The tenant's database is gone. Never replaced: that would be a new and empty one. Undelete it or restore it at the
    /// control plane, or delete the tenant.
    Missing,
    /// A database with a tenant's tags that the catalog has no record of, or none of its creation: the catalog has lost it.
    /// Import it. Deleted only if [asked for](crate::Reconcile::remove_unrecorded).
    Orphan,
    /// The tenant is deleted, its database is there. Deleted only if [asked for](crate::Reconcile::remove_undead).
    Undead,
    /// Somebody began to create or delete the database and has not finished. Finished; nothing is created for it.
    Unfinished,
}

/// What was done about a finding.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: it was only looked for, or is for a person to decide.
    Reported,
    /// It is as it should be now.
    Mended,
    /// Nothing yet: it is too young, or somebody is at it. The next comparison will tell.
    Left,
    /// It could not be mended.
    Failed(Error),
}
