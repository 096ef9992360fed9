//! Neon's management API.
//!
//! Everything here speaks Neon's own nouns (project, branch, endpoint, operation) and nothing outside does. Facts are
//! from Neon's OpenAPI description (v2) and from recorded answers; unknown fields and values are let through, because
//! the live service is ahead of its description.

mod builder;
mod client;
mod limiter;
mod refusal;
mod wire;

pub use builder::NeonBuilder;
pub use client::Neon;
pub use wire::{
    Branch, ConnectionDetails, ConnectionParameters, CreateProject, CreatedProject, Endpoint,
    Operation, Project,
};
