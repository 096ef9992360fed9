//! What the tests share: a stage with an emulator and routers on it, a scripted API, and a scripted
//! Postgres over pipes.

mod backend;
mod balancer;
mod crew;
mod gate;
mod gateway;
mod half;
mod held_up;
mod house;
mod ledger;
mod packet;
mod project;
mod projects;
mod raw;
mod relay;
mod replica;
mod scene;
mod script;
mod session;
mod shared;
mod silent;
mod stage;
mod statement;
mod table;
mod watchdog;

pub(crate) use backend::{Backend, Counts};
pub(crate) use balancer::{Balancer, Fate};
pub(crate) use crew::{Crew, is_own};
pub(crate) use gate::{Failure, Gate, Step};
pub(crate) use gateway::{Gateway, folder};
pub(crate) use half::{Half, Trouble};
pub(crate) use held_up::HeldUp;
pub(crate) use house::{GONE, House, Intrusions, WRONG_PASSWORD};
pub(crate) use ledger::{DOWN, Ledger, place, place_of};
pub(crate) use project::{Project, told};
pub(crate) use projects::Projects;
pub(crate) use raw::{End, RawClient, Seen};
pub(crate) use relay::{Relay, ThroughRelay};
pub(crate) use replica::{Answer, MOMENT, Replica, Site, WINDOW, serve};
pub(crate) use scene::{Call, Case, Place, Scene};
pub(crate) use script::{Reply, ScriptedApi};
pub(crate) use shared::{
    LEASE, PASSWORD, chain, column, keys, leased, publish, replica, session, superuser, tenant,
};
pub(crate) use silent::Silent;
pub(crate) use stage::{Stage, eventually, in_the_end, run_on};
pub(crate) use table::Table;
pub(crate) use watchdog::{Pulse, watched, without_spinning};

use std::time::Duration;

/// Longer than anything here takes. A test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);
