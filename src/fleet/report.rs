//! What a comparison of the catalog with what is really there has found.

use std::fmt;

use crate::model::error::Error;

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
            Outcome::Repaired | Outcome::Left => false,
        }
    }
}

/// What is not as it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// The tenant lives elsewhere than the record says. Mended in the record.
    Drift,
    /// A second database of a tenant, created by an attempt that the record knows. Mended by deleting it.
    Duplicate,
    /// A database whose name begins as ours do, without our tags. Never touched.
    Foreign,
    /// The tenant's database is gone. Never mended: a new one would be empty. Recover it at the control plane, or delete
    /// the tenant.
    Missing,
    /// A database with a tenant's tags whose creation the catalog knows nothing of, as after its restore from a backup.
    /// [Import](crate::Fleet::import) it if the tenant has no other. Mended, by deleting it, only if [asked
    /// for](crate::Reconcile::remove_unrecorded).
    Orphan,
    /// The tenant is deleted, and its database is there, as after somebody has recovered it by hand. Mended, by deleting it,
    /// only if [asked for](crate::Reconcile::remove_deleted).
    DeletedButPresent,
    /// Somebody began to create or to delete the database and has not finished. Mended by finishing it; nothing is
    /// created for that.
    Unfinished,
}

/// What was done about a finding.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: it was only looked for, or is for a person to decide.
    Reported,
    /// It is as it should be now.
    Repaired,
    /// Nothing yet: it is too young, or somebody is at it. The next comparison will tell.
    Left,
    /// It could not be mended.
    Failed(Error),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Repaired => f.write_str("mended"),
            Self::Left => f.write_str("left for now"),
            Self::Failed(err) => write!(f, "failed: {err}"),
        }
    }
}
