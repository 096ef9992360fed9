//! The outcome of an order for a tenant's database.

/// The outcome of an order for a tenant's database. Returned by
/// [`Fleet::provision_with`](crate::Fleet::provision_with).
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "a tenant that already has a database keeps its plan"]
#[non_exhaustive]
pub enum Provisioned {
    /// This call created the database, by the plan that it was given.
    Created,
    /// The tenant has a database that this call did not create: it existed, or another call created it or began to. It
    /// is ready for use. Nothing of the plan that this call was given applies to it.
    Existing {
        /// Name of the plan that the database was created with, as far as the catalog knows.
        plan: Option<String>,
    },
}
