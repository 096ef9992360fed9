//! The projects that exist, and every change to them.

pub(in crate::emulator) mod operation;
pub(in crate::emulator) mod project;
pub(in crate::emulator) mod usage;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use self::{
    operation::{Operation, Status, Step, Work},
    project::{Branch, Endpoint, Project, Size},
    usage::Ledger,
};
use super::{
    api::{
        bodies::{NewBranch, NewProject},
        fault::ApiFaults,
        limit::ApiLimit,
        requests::Requests,
    },
    compute::{Compute, Machine, Terms, contents::Contents},
    names::{REGIONS, domain_of, new_id, new_password},
    witness::{Log, Total, Witness},
};
use crate::model::secret::Secret;

/// The state of an emulator.
#[derive(Debug)]
pub(super) struct World {
    pub(super) machine: Arc<Machine>,
    pub(super) settings: Settings,
    // Guards all projects. Held only for short reads and writes, never across an await.
    projects: Mutex<Vec<Project>>,
    pub(super) api_faults: ApiFaults,
    pub(super) api_limit: Option<ApiLimit>,
    pub(super) requests: Requests,
    pub(super) sessions: Arc<Total>,
    /// Time for which the search misses a new project, in milliseconds.
    search_lag: AtomicU64,
    // Every compute ever created, so that each is reaped at the end.
    computes: Mutex<Vec<Arc<Compute>>>,
}

/// The settings in which this emulator differs from Neon.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Duration of each operation, besides the start of a compute.
    pub(super) operation_time: Duration,
    /// Suspend window of endpoints that ask for the default.
    pub(super) suspend_after: Duration,
    /// `true` if a new project's compute starts at once, as at Neon.
    pub(super) start_on_create: bool,
    /// `true` if errors before a session exists carry SQLSTATEs of their own.
    pub(super) live_codes: bool,
    /// Most API requests in a minute, and in a second on one route.
    pub(super) api_limit: Option<(u32, u32)>,
}

/// The reason for which a change was not made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hindrance {
    /// The object does not exist.
    Missing,
    /// Operations are in progress.
    Locked,
}

impl World {
    pub(super) fn new(machine: Machine, settings: Settings) -> Arc<Self> {
        let limit = settings.api_limit;
        Arc::new(Self {
            machine: Arc::new(machine),
            settings,
            projects: Mutex::default(),
            api_faults: ApiFaults::default(),
            api_limit: limit.map(|(minute, second)| ApiLimit::new(minute, second)),
            requests: Requests::default(),
            sessions: Arc::default(),
            search_lag: AtomicU64::new(0),
            computes: Mutex::default(),
        })
    }

    /// Locks all projects, including deleted ones.
    pub(super) fn projects(&self) -> MutexGuard<'_, Vec<Project>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the time for which the search misses a new project.
    pub(super) fn set_search_lag(&self, lag: Duration) {
        let milliseconds = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.search_lag.store(milliseconds, Relaxed);
    }

    /// Returns whether the search finds the project by now.
    pub(super) fn is_listed(&self, project: &Project) -> bool {
        let lag = Duration::from_millis(self.search_lag.load(Relaxed));
        project.created_at.elapsed().unwrap_or_default() >= lag
    }

    fn computes(&self) -> MutexGuard<'_, Vec<Arc<Compute>>> {
        self.computes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps the processes that the watchdog has stopped. Blocks the thread.
    pub(super) fn reap(&self) {
        self.computes().iter().for_each(|compute| compute.reap());
    }

    /// Returns a copy of a project that is not deleted.
    pub(super) fn project(&self, id: &str) -> Option<Project> {
        let projects = self.projects();
        let found = projects.iter().find(|project| project.id == id);
        found.filter(|it| it.deleted_at.is_none()).cloned()
    }

    /// Returns the compute of an endpoint.
    pub(super) fn compute(&self, endpoint_id: &str) -> Option<Arc<Compute>> {
        let projects = self.projects();
        let mut endpoints = projects
            .iter()
            .filter(|project| project.deleted_at.is_none())
            .flat_map(|project| &project.endpoints);
        let found = endpoints.find(|endpoint| endpoint.id == endpoint_id)?;
        Some(Arc::clone(&found.compute))
    }

    /// Forgets the errors that the proxy repeats.
    pub(super) fn forget(&self) {
        let computes = self.computes();
        computes.iter().for_each(|compute| compute.faults.forget());
    }

    /// Changes a project that is not deleted.
    pub(super) fn change<T>(&self, id: &str, change: impl FnOnce(&mut Project) -> T) -> Option<T> {
        let mut projects = self.projects();
        let found = projects.iter_mut().find(|project| project.id == id);
        let project = found.filter(|it| it.deleted_at.is_none())?;
        project.updated_at = SystemTime::now();
        Some(change(project))
    }

    /// Creates a project. Its operations continue after this returns.
    pub(super) fn create(self: &Arc<Self>, wanted: NewProject) -> Project {
        let id = new_id();
        let ledger = Ledger::new(wanted.quota);
        let branch = wanted.branch;
        let branch = self.new_branch(&branch, None, wanted.contents, &ledger, wanted.size);
        let endpoint = new_endpoint(&branch, wanted.size);
        let begin = Step::on_branch("create_timeline", &branch.id, Work::Nothing);
        let mut steps = vec![begin];
        if self.settings.start_on_create {
            steps.push(start(&endpoint));
        }
        let now = SystemTime::now();
        let project = Project {
            name: wanted.name.unwrap_or_else(|| id.clone()),
            id,
            region: wanted.region,
            pg_version: wanted.pg_version,
            org_id: wanted.org_id,
            defaults: wanted.size,
            ledger,
            created_at: now,
            updated_at: now,
            deleted_at: None,
            branches: vec![branch],
            endpoints: vec![endpoint],
            operations: Vec::new(),
        };
        self.projects().push(project.clone());
        drop(self.operate(&project.id, steps));
        self.project(&project.id).unwrap_or(project)
    }

    /// Creates a branch with a copy of `parent`'s data. Its operations continue after this returns.
    pub(super) fn create_branch(
        self: &Arc<Self>,
        project: &Project,
        parent: &Branch,
        wanted: &NewBranch,
    ) -> Result<(Branch, Option<Endpoint>, Vec<Operation>), Hindrance> {
        let size = wanted.endpoint.unwrap_or(project.defaults);
        let contents = parent.compute.contents();
        let branch = self.new_branch(wanted, Some(&parent.id), contents, &project.ledger, size);
        let endpoint = wanted.endpoint.map(|size| new_endpoint(&branch, size));
        // A client that connects before the branch has its data waits.
        let unborn = branch.compute.unborn().ok_or(Hindrance::Locked)?;
        let copy = Work::Copy(unborn, Arc::clone(&parent.compute));
        let mut steps = vec![Step::on_branch("create_branch", &branch.id, copy)];
        steps.extend(endpoint.as_ref().map(start));
        let operations = self.operate_with(&project.id, steps, |project| {
            project.branches.push(branch.clone());
            project.endpoints.extend(endpoint.clone());
        })?;
        Ok((branch, endpoint, operations))
    }

    fn new_branch(
        &self,
        wanted: &NewBranch,
        parent_id: Option<&str>,
        contents: Contents,
        ledger: &Arc<Ledger>,
        size: Size,
    ) -> Branch {
        let id = format!("br-{}", new_id());
        let compute = Compute::new(
            Arc::clone(&self.machine),
            &id,
            contents,
            self.terms(size, false),
            Arc::clone(ledger),
            Log::new(&self.sessions),
        );
        self.computes().push(Arc::clone(&compute));
        Branch {
            name: wanted.name.clone().unwrap_or_else(|| id.clone()),
            id,
            parent_id: parent_id.map(str::to_owned),
            default: parent_id.is_none(),
            annotations: wanted.annotations.clone(),
            created_at: SystemTime::now(),
            compute,
        }
    }

    /// Returns the terms for a compute of that size.
    pub(super) fn terms(&self, size: Size, disabled: bool) -> Terms {
        let suspend_window = match size.suspend_timeout_seconds {
            0 => Some(self.settings.suspend_after),
            seconds => u64::try_from(seconds).ok().map(Duration::from_secs),
        };
        Terms {
            suspend_window,
            units: size.units.0,
            disabled,
        }
    }

    /// Begins operations, which run one after the other. Returns them.
    pub(super) fn operate(
        self: &Arc<Self>,
        project_id: &str,
        steps: Vec<Step>,
    ) -> Result<Vec<Operation>, Hindrance> {
        self.operate_with(project_id, steps, |_| {})
    }

    /// Begins operations, and applies `change` to the project in the same step.
    pub(super) fn operate_with(
        self: &Arc<Self>,
        project_id: &str,
        steps: Vec<Step>,
        change: impl FnOnce(&mut Project),
    ) -> Result<Vec<Operation>, Hindrance> {
        let (begun, works): (Vec<_>, Vec<_>) = steps.into_iter().map(Step::begun).unzip();
        self.change(project_id, |project| {
            if project.is_locked() {
                return Err(Hindrance::Locked);
            }
            project.operations.extend(begun.iter().cloned());
            change(project);
            Ok(())
        })
        .ok_or(Hindrance::Missing)
        .flatten()?;
        let works: Vec<_> = begun.iter().map(|it| it.id.clone()).zip(works).collect();
        let (world, project_id) = (Arc::clone(self), project_id.to_owned());
        tokio::spawn(async move {
            let mut failed = false;
            for (operation, work) in works {
                if failed {
                    world.set(&project_id, &operation, Status::Cancelled, None);
                    continue;
                }
                world.set(&project_id, &operation, Status::Running, None);
                tokio::time::sleep(world.settings.operation_time).await;
                let done = work.run().await;
                failed = done.is_err();
                let status = if failed {
                    Status::Failed
                } else {
                    Status::Finished
                };
                let error = done.err().map(|err| err.to_string());
                world.set(&project_id, &operation, status, error);
            }
        });
        Ok(begun)
    }

    fn set(&self, project_id: &str, operation_id: &str, status: Status, error: Option<String>) {
        let mut projects = self.projects();
        let project = projects.iter_mut().find(|project| project.id == project_id);
        let mut operations = project.into_iter().flat_map(|it| &mut it.operations);
        if let Some(operation) = operations.find(|it| it.id == operation_id) {
            (operation.status, operation.error) = (status, error);
            operation.updated_at = SystemTime::now();
        }
    }

    /// Deletes a project so that it can be recovered. Its computes stop after this returns.
    pub(super) fn delete(&self, id: &str) -> Option<Project> {
        let project = self.change(id, |project| {
            project.deleted_at = Some(SystemTime::now());
            for branch in &project.branches {
                branch.compute.set_gone(true);
            }
            project.clone()
        })?;
        for branch in project.branches.clone() {
            tokio::spawn(async move { branch.compute.retire().await });
        }
        Some(project)
    }

    /// Recovers a deleted project.
    pub(super) fn recover(&self, id: &str) -> Option<Project> {
        let mut projects = self.projects();
        let found = projects.iter_mut().find(|project| project.id == id);
        let project = found.filter(|it| it.deleted_at.is_some())?;
        (project.deleted_at, project.updated_at) = (None, SystemTime::now());
        for branch in &project.branches {
            branch.compute.set_gone(false);
        }
        Some(project.clone())
    }

    /// Gives an endpoint's compute a new endpoint id, which no client knows. The old id is gone.
    pub(super) fn move_endpoint(&self, endpoint_id: &str) -> Option<(Arc<Compute>, String)> {
        let mut projects = self.projects();
        let present = projects.iter_mut().filter(|it| it.deleted_at.is_none());
        let mut endpoints = present.flat_map(|it| &mut it.endpoints);
        let endpoint = endpoints.find(|endpoint| endpoint.id == endpoint_id)?;
        endpoint.id = format!("ep-{}", new_id());
        endpoint.compute.faults.forget();
        Some((Arc::clone(&endpoint.compute), endpoint.id.clone()))
    }

    /// Changes the password of an endpoint's role.
    pub(super) async fn rotate_password(&self, endpoint_id: &str) -> Option<Secret> {
        let compute = self.compute(endpoint_id)?;
        let password = new_password();
        let reset = compute.reset_password(password.clone()).await;
        reset
            .inspect_err(|err| tracing::warn!(%err, "emulator: cannot reset a password"))
            .ok()?;
        Some(password)
    }

    /// Returns the witness of each endpoint that is not deleted, oldest first.
    pub(super) fn witnesses(&self) -> Vec<Witness> {
        let projects = self.projects();
        let present = projects.iter().filter(|it| it.deleted_at.is_none());
        present
            .flat_map(|project| project.endpoints.iter().map(|it| project.witness(it)))
            .collect()
    }

    /// Returns every name that the proxy's certificate must be valid for.
    pub(super) fn host_names() -> impl Iterator<Item = String> {
        REGIONS
            .iter()
            .map(|region| format!("*.{}", domain_of(region)))
    }

    pub(super) fn folder(&self) -> &PathBuf {
        &self.machine.folder
    }
}

fn new_endpoint(branch: &Branch, size: Size) -> Endpoint {
    let now = SystemTime::now();
    Endpoint {
        id: format!("ep-{}", new_id()),
        branch_id: branch.id.clone(),
        size,
        disabled: false,
        created_at: now,
        updated_at: now,
        compute: Arc::clone(&branch.compute),
    }
}

/// Returns the operation that starts an endpoint's compute.
pub(super) fn start(endpoint: &Endpoint) -> Step {
    let work = Work::Start(Arc::clone(&endpoint.compute));
    Step::on_endpoint("start_compute", &endpoint.branch_id, &endpoint.id, work)
}

/// Returns the operation that suspends an endpoint's compute.
pub(super) fn suspend(endpoint: &Endpoint) -> Step {
    let work = Work::Suspend(Arc::clone(&endpoint.compute));
    Step::on_endpoint("suspend_compute", &endpoint.branch_id, &endpoint.id, work)
}
