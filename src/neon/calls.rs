//! The API's calls, one module for each kind of resource.

pub(super) mod branches;
pub(super) mod consumption;
pub(super) mod endpoints;
pub(super) mod operations;
pub(super) mod projects;
pub(super) mod regions;
pub(super) mod roles;
