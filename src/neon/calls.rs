//! The API's calls, by the resource that they are about.

pub(crate) mod branches;
pub(crate) mod consumption;
pub(crate) mod endpoints;
pub(crate) mod operations;
pub(crate) mod projects;
pub(crate) mod regions;
pub(crate) mod roles;
