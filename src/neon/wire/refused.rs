//! The body of an answer that is not a success.

use serde::Deserialize;

use super::tolerant;

/// Neon's `GeneralError`, whose code is often empty; or, from the transfer of projects, one of the two lists.
#[derive(Debug, Default, Deserialize)]
pub(in crate::neon) struct RefusedBody {
    #[serde(default)]
    pub(in crate::neon) request_id: Option<String>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) code: String,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) message: String,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) limits: Vec<UnmetLimit>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) projects: Vec<IntegratedProject>,
}

/// What the receiving organization lacks.
#[derive(Debug, Deserialize)]
pub(in crate::neon) struct UnmetLimit {
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) name: String,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) expected: String,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) actual: String,
}

/// A project that is tied to something outside of Neon.
#[derive(Debug, Deserialize)]
pub(in crate::neon) struct IntegratedProject {
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) id: String,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) integration: String,
}
