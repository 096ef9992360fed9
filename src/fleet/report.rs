//! The report of a comparison of the catalog with the databases that exist.

use std::fmt;

use crate::model::error::Error;

/// The report of a [comparison](crate::Fleet::reconcile).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Records in the catalog, tombstones included.
    pub records: u64,
    /// Databases whose names have the prefix of this namespace.
    pub databases: u64,
    /// The problems that were found.
    pub findings: Vec<Finding>,
}

/// One problem that was found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The kind of problem.
    pub trouble: Trouble,
    /// The tenant, if it is known: the id as the record or the database's tag has it.
    pub tenant: Option<String>,
    /// The database concerned, if there is one.
    pub project: Option<String>,
    /// The action taken.
    pub outcome: Outcome,
}

impl Finding {
    /// Returns whether a person has to look at it: it was not repaired, and the next comparison will not repair it by
    /// itself.
    pub fn needs_attention(&self) -> bool {
        match self.outcome {
            Outcome::Reported | Outcome::Failed(_) => true,
            Outcome::Repaired | Outcome::Left => false,
        }
    }
}

/// The kind of problem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// The tenant lives at another endpoint than the record says. Repaired in the record.
    Drift,
    /// A second database of a tenant, created by an attempt that the record knows. Repaired by deleting it.
    Duplicate,
    /// A database whose name has the prefix of this namespace, without tenantry's tags. Never touched.
    Foreign,
    /// The tenant's database is gone. Never repaired: a new one would be empty. Recover it at the control plane, or
    /// delete the tenant.
    Missing,
    /// A database with a tenant's tags whose creation the catalog does not know, for example after a restore of the
    /// catalog from a backup. [Import](crate::Fleet::import) it if the tenant has no other. Repaired, by deleting it,
    /// only if [allowed](crate::Reconcile::remove_unrecorded).
    Orphan,
    /// The tenant is deleted, but its database exists, for example after an operator recovered it by hand. Repaired, by
    /// deleting it, only if [allowed](crate::Reconcile::remove_deleted).
    DeletedButPresent,
    /// A creation or a deletion of the database was begun and not finished. Repaired by finishing it; nothing is
    /// created for that.
    Unfinished,
}

/// The action taken on a finding.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// None: the comparison was a dry run, or a person has to decide.
    Reported,
    /// The problem is repaired.
    Repaired,
    /// None yet: the database is too young, or another process works on the tenant. The next comparison will tell.
    Left,
    /// The check or the repair failed.
    Failed(Error),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Repaired => f.write_str("repaired"),
            Self::Left => f.write_str("left for now"),
            Self::Failed(err) => write!(f, "failed: {err}"),
        }
    }
}
