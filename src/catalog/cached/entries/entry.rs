//! The cached entry of one tenant.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    model::{endpoint::Endpoint, error::Error},
    schema::Standing,
};

/// A moment in the order of events of this process. Later ones are greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Stamp(pub(super) u64);

/// The cached entry of one tenant.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// The tenant has an endpoint.
    Known(Known),
    /// The tenant cannot be served.
    Denied(Denied),
}

/// The endpoint of a tenant, as it was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) freshness: Freshness,
}

/// The age of a known endpoint, and doubts about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Freshness {
    /// The record's generation, if the endpoint came with one.
    pub(crate) generation: Option<u64>,
    pub(super) stored: Stamp,
    pub(super) expires: Instant,
    /// `true` if the endpoint may be wrong, so that it is used only if no newer one can be read.
    pub(crate) is_untrusted: bool,
    /// `true` if the catalog no longer has a record of the tenant.
    pub(super) is_missing: bool,
    /// The schema of the tenant, compared with this program's.
    pub(crate) standing: Standing,
}

/// The reason for which a tenant cannot be served, as it was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    pub(crate) denial: Denial,
    /// Generation of the tenant's record; `None` if the catalog never had one.
    pub(super) generation: Option<u64>,
    pub(super) stored: Stamp,
    pub(super) until: Instant,
}

/// The reason for which a tenant cannot be served.
#[derive(Clone, Debug)]
pub(crate) enum Denial {
    /// The catalog has no record of the tenant. The error, if the policy was asked, says why none may be made.
    Unknown(Option<Error>),
    /// The tenant's database is being created.
    Unfinished,
    /// The tenant's record forbids its use.
    Refused(Error),
    /// The tenant's record is invalid.
    Broken(Error),
}

impl Denial {
    /// Returns whether the tenant's record forbids its use or is invalid.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Broken(_) => true,
            Self::Unknown(_) | Self::Unfinished => false,
        }
    }
}
