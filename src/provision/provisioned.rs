//! What an order for a tenant's database has come to.

/// What an order for a tenant's database has come to. From [`Fleet::provision_with`](crate::Fleet::provision_with).
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "a tenant that has a database keeps the plan that it has"]
#[non_exhaustive]
pub enum Provisioned {
    /// This call has created the database, by the plan that it was given.
    Created,
    /// The tenant has a database that this call did not create: it was there, or another call has created or begun it.
    /// It is ready for use, and of the plan that this call was given nothing holds.
    Existing {
        /// Name of the plan that it was created with, as far as the catalog knows.
        plan: Option<String>,
    },
}
