//! Regions.

use serde::Deserialize;

use super::tolerant;

/// A region in which projects can be created.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct Region {
    /// Its id, such as `aws-us-east-2`, which a plan names.
    pub region_id: String,
    /// Its name, for people.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub name: String,
    /// `true` for the region of projects that name none.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub default: bool,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct RegionsAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) regions: Vec<Region>,
}
