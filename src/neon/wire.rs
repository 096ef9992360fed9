//! The bodies of requests and answers, with Neon's names.
//!
//! Answers are read tolerantly: only the fields in use are required, unknown fields are skipped, `null` counts as
//! missing, and every enumeration is a string. Passwords are [`Secret`](crate::model::secret::Secret)s from the first
//! byte. The connection URIs beside them contain a password too, so they are not read at all.

mod branch;
mod connection;
mod consumption;
mod endpoint;
mod operation;
mod project;
mod refused;
mod region;
mod settings;
mod tolerant;

pub use branch::{Branch, CreateBranch, CreatedBranch};
pub use connection::{ConnectionDetails, ConnectionParameters};
pub use consumption::{
    ConsumptionMetric, ConsumptionPage, ConsumptionPeriod, ConsumptionQuery, ConsumptionTimeframe,
    Granularity, ProjectConsumption,
};
pub use endpoint::{Endpoint, UpdateEndpoint};
pub use operation::Operation;
pub use project::{
    CreateProject, CreatedProject, ListProjects, Project, ProjectsPage, UpdateProject,
};
pub use region::Region;

pub(super) use branch::{BranchAnswer, BranchesAnswer};
pub(super) use connection::{ConnectionUriAnswer, PasswordAnswer, ResetAnswer};
pub(super) use consumption::ConsumptionAnswer;
pub(super) use endpoint::{EndpointAnswer, EndpointsAnswer};
pub(super) use operation::{OperationAnswer, OperationsAnswer};
pub(super) use project::{DATABASE, ProjectAnswer, ProjectsAnswer, ROLE};
pub(super) use refused::RefusedBody;
pub(super) use region::RegionsAnswer;
