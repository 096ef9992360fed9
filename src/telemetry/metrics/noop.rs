//! Stand-ins without the feature `metrics`. They do nothing.

use std::time::Duration;

use crate::{
    model::error::{ErrorKind, Stage},
    telemetry::labels::Reason,
};

#[derive(Debug, Default)]
pub(crate) struct Meters;

impl Meters {
    pub(in crate::telemetry) fn new(_: &str) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(super) fn stage(&self, _: Stage, _: bool, _: Duration) {}

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(super) fn waited(&self, _: Duration) {}

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(super) fn woke(&self, _: Reason, _: Duration) {}

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(super) fn connected(&self, _: Duration) {}

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(in crate::telemetry) fn failed(&self, _: ErrorKind) {}

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(super) fn refused(&self, _: ErrorKind) {}
}

pub(in crate::telemetry) fn answered(_: &'static str, _: Option<u16>, _: Duration) {}

pub(in crate::telemetry) fn limited(_: Duration) {}

#[derive(Debug)]
pub(in crate::telemetry) struct CatalogMeters;

impl CatalogMeters {
    pub(in crate::telemetry) fn new(_: &[&'static str]) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "the other one needs it")]
    pub(in crate::telemetry) fn answered(&self, _: &'static str, _: bool, _: Duration) {}
}
