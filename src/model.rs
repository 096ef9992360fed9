//! Types that every layer shares: tenants, endpoints, plans, secrets, settings and errors.

pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod current_tenant;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod plan;
pub(crate) mod resolve;
pub(crate) mod secret;
pub(crate) mod tenant;
pub(crate) mod tls;
