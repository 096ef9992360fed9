//! The application's schema: its steps, the files they come from, their checks, and the run on one database.
//!
//! The run knows neither pool nor catalog. It gets its sessions from an implementation of [`OpenSession`].

mod access;
mod adopt;
mod builder;
mod checked;
mod client;
mod failure;
mod files;
mod history;
mod migrated;
mod runner;
mod session;
mod sql;
mod state;
mod statements;
mod step;

pub use access::OnAccess;
pub use builder::{Baseline, Schema};
pub use client::MigrationClient;
pub use migrated::{AppliedStep, Migrated};
pub use session::Moment;
pub use state::{SchemaFailure, SchemaState};

pub(crate) use access::Standing;
pub(crate) use adopt::prepare_history;
pub(crate) use checked::CheckedSchema;
pub(crate) use runner::run;
pub(crate) use session::{Journal, OpenSession, Opened, Ran, RunError, Terms};
