//! Stand-ins without the feature `metrics`. They do nothing.

use std::time::Duration;

use crate::{
    model::error::{ErrorKind, Stage},
    telemetry::labels::Reason,
};

#[derive(Debug, Default)]
pub(crate) struct Meters;

impl Meters {
    pub(crate) fn new(_: &str) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn stage(&self, _: Stage, _: bool, _: Duration) {}

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn waited(&self, _: Duration) {}

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn woke(&self, _: Reason, _: Duration) {}

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn connected(&self, _: Duration) {}

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn failed(&self, _: ErrorKind) {}

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn refused(&self, _: ErrorKind) {}
}

pub(crate) fn answered(_: &'static str, _: Option<u16>, _: Duration) {}

pub(crate) fn limited(_: Duration) {}

#[derive(Debug)]
pub(crate) struct CatalogMeters;

impl CatalogMeters {
    pub(crate) fn new(_: &[&'static str]) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "needed with metrics")]
    pub(crate) fn answered(&self, _: &'static str, _: bool, _: Duration) {}
}
