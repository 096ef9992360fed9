//! What is remembered of one tenant.

use std::sync::Arc;

use tokio::time::Instant;

use crate::model::{endpoint::Endpoint, error::Error};

/// A moment in the order of events of this process. Later ones are greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Stamp(pub(super) u64);

/// What is remembered of one tenant.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// Where it lives.
    Known(Known),
    /// Why it cannot be had.
    Denied(Denied),
}

/// Where a tenant lives, as it was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) endpoint: Arc<Endpoint>,
    /// The record's generation, if the endpoint came with one.
    pub(crate) generation: Option<u64>,
    pub(super) stored: Stamp,
    pub(super) expires: Instant,
    /// Whether something was changed, so that this is used only if nobody can be asked.
    pub(crate) is_untrusted: bool,
    /// Whether the catalog has no record of the tenant any more.
    pub(super) is_missing: bool,
}

/// Why a tenant cannot be had, as it was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    pub(crate) denial: Denial,
    /// The generation of its record; none if the catalog never had one.
    pub(super) generation: Option<u64>,
    pub(super) stored: Stamp,
    pub(super) until: Instant,
}

/// Why a tenant cannot be had.
#[derive(Clone, Debug)]
pub(crate) enum Denial {
    /// The catalog has no record of it. With why none may be made, if the policy was asked.
    Unknown(Option<Error>),
    /// Its database is being made.
    Unfinished,
    /// Its record says that it must not be used.
    Refused(Error),
    /// Its record makes no sense.
    Broken(Error),
}

impl Denial {
    /// Whether the record said that the tenant must not be used.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Broken(_) => true,
            Self::Unknown(_) | Self::Unfinished => false,
        }
    }
}

impl Entry {
    pub(super) fn stored(&self) -> Stamp {
        match self {
            Self::Known(known) => known.stored,
            Self::Denied(denied) => denied.stored,
        }
    }

    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Self::Known(known) => known.generation,
            Self::Denied(denied) => denied.generation,
        }
    }
}
