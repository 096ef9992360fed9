//! Operations on a project. The project is locked while an operation is in progress.

use std::{sync::Arc, time::SystemTime};

use crate::emulator::{
    EmulatorError,
    compute::{Compute, Unborn, stop::Stop},
};
use crate::model::secret::Secret;

/// An operation on a project.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Operation {
    pub(in crate::emulator) id: String,
    pub(in crate::emulator) action: &'static str,
    pub(in crate::emulator) branch_id: Option<String>,
    pub(in crate::emulator) endpoint_id: Option<String>,
    pub(in crate::emulator) status: Status,
    pub(in crate::emulator) error: Option<String>,
    pub(in crate::emulator) created_at: SystemTime,
    pub(in crate::emulator) updated_at: SystemTime,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::emulator) enum Status {
    Scheduling,
    Running,
    Finished,
    Failed,
    /// An operation before it failed.
    Cancelled,
}

/// An operation before it begins: its name, its subject and its work.
#[derive(Debug)]
pub(in crate::emulator) struct Step {
    action: &'static str,
    branch_id: Option<String>,
    endpoint_id: Option<String>,
    work: Work,
}

/// The effect of an operation.
#[derive(Debug)]
pub(in crate::emulator) enum Work {
    Nothing,
    Start(Arc<Compute>),
    Suspend(Arc<Compute>),
    /// Copies the second compute's data to the first.
    Copy(Unborn, Arc<Compute>),
    ResetPassword(Arc<Compute>, Secret),
    Delete(Arc<Compute>),
}

impl Step {
    /// Creates a step on a branch.
    pub(in crate::emulator) fn on_branch(
        action: &'static str,
        branch_id: &str,
        work: Work,
    ) -> Self {
        Self {
            action,
            branch_id: Some(branch_id.to_owned()),
            endpoint_id: None,
            work,
        }
    }

    /// Creates a step on an endpoint of a branch.
    pub(in crate::emulator) fn on_endpoint(
        action: &'static str,
        branch_id: &str,
        endpoint_id: &str,
        work: Work,
    ) -> Self {
        Self {
            endpoint_id: Some(endpoint_id.to_owned()),
            ..Self::on_branch(action, branch_id, work)
        }
    }

    /// Returns the scheduled operation, and its work.
    pub(in crate::emulator) fn begun(self) -> (Operation, Work) {
        let now = SystemTime::now();
        let operation = Operation {
            id: uuid::Uuid::new_v4().to_string(),
            action: self.action,
            branch_id: self.branch_id,
            endpoint_id: self.endpoint_id,
            status: Status::Scheduling,
            error: None,
            created_at: now,
            updated_at: now,
        };
        (operation, self.work)
    }
}

impl Operation {
    pub(in crate::emulator) fn goes_on(&self) -> bool {
        matches!(self.status, Status::Scheduling | Status::Running)
    }
}

impl Work {
    pub(in crate::emulator) async fn run(self) -> Result<(), EmulatorError> {
        match self {
            Self::Nothing => Ok(()),
            Self::Start(compute) => compute.wake().await.map(drop),
            Self::Suspend(compute) => {
                compute.suspend(Stop::Neon).await;
                Ok(())
            }
            Self::Copy(child, parent) => child.copy_from(&parent).await,
            Self::ResetPassword(compute, password) => compute.reset_password(password).await,
            Self::Delete(compute) => {
                compute.delete().await;
                Ok(())
            }
        }
    }
}
