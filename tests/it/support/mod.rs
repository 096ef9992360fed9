//! What the tests share: a stage with an emulator and routers on it, and a scripted API.

mod project;
mod raw;
mod relay;
mod script;
mod stage;

pub(crate) use project::{Project, told};
pub(crate) use raw::{End, RawClient, Seen};
pub(crate) use relay::Relay;
pub(crate) use script::{Reply, ScriptedApi};
pub(crate) use stage::{Stage, eventually, run_on};

use std::time::Duration;

/// Longer than anything here takes. A test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);
