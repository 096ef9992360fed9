//! Neon's management API.
//!
//! This module uses Neon's own nouns (project, branch, endpoint, operation), and no other module does. Its facts are
//! from Neon's OpenAPI description (v2) and from recorded answers. Unknown fields and values are accepted, because the
//! live service is ahead of its description.

mod builder;
mod calls;
mod client;
mod limiter;
mod redact;
mod refusal;
mod request;
mod wire;

pub use builder::NeonBuilder;
pub use client::Neon;
pub use wire::{
    Branch, ConnectionDetails, ConnectionParameters, ConsumptionMetric, ConsumptionPage,
    ConsumptionPeriod, ConsumptionQuery, ConsumptionTimeframe, CreateBranch, CreateProject,
    CreatedBranch, CreatedProject, Endpoint, Granularity, ListProjects, Operation, Project,
    ProjectConsumption, ProjectsPage, Region, UpdateEndpoint, UpdateProject,
};

pub(crate) use redact::excerpt;
