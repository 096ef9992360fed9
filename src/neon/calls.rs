//! The API's calls, one module for each kind of resource.

pub(crate) mod branches;
pub(crate) mod consumption;
pub(crate) mod endpoints;
pub(crate) mod operations;
pub(crate) mod projects;
pub(crate) mod regions;
pub(crate) mod roles;
