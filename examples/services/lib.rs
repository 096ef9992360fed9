//! Complete services, and the crates that they need besides tenantry.
