//! The projects that exist, and what is being done to them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::{
    api_fault::ApiFaults,
    compute::{Compute, Machine},
    contents::Contents,
    names::{REGIONS, domain_of, new_id},
    witness::Witness,
};

/// What is not written plainly in a URI.
const OUTSIDE_A_WORD: &AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// Everything the emulator knows.
#[derive(Debug)]
pub(super) struct World {
    pub(super) machine: Arc<Machine>,
    pub(super) settings: Settings,
    // Guards all projects; held for a look or a change, never across an await.
    projects: Mutex<Vec<Project>>,
    pub(super) api_faults: ApiFaults,
    /// For how long the search misses a new project, in milliseconds.
    search_lag: AtomicU64,
    // Every compute that ever was, so that each is reaped at the end.
    computes: Mutex<Vec<Arc<Compute>>>,
}

/// How this emulator differs from Neon.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// How long each operation takes, besides the start of a compute.
    pub(super) operation_time: Duration,
    /// Suspend window of endpoints that ask for the default.
    pub(super) suspend_after: Duration,
    /// Whether a new project's compute starts at once, as at Neon.
    pub(super) start_on_create: bool,
    /// Whether errors before a session exists carry a code of their own.
    pub(super) live_codes: bool,
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: Option<String>,
    pub(super) region: String,
    pub(super) pg_version: u64,
    pub(super) org_id: Option<String>,
    pub(super) branch_name: String,
    pub(super) contents: Contents,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) compute_units: (f64, f64),
    pub(super) suspend_timeout_seconds: i64,
    pub(super) quota: Option<serde_json::Value>,
}

/// A project with its one branch and its one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Project {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) wanted: Wanted,
    pub(super) created_at: SystemTime,
    pub(super) branch_id: String,
    pub(super) endpoint_id: String,
    pub(super) compute: Arc<Compute>,
    /// Newest last.
    pub(super) operations: Vec<Operation>,
}

/// Something being done to a project.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) action: &'static str,
    pub(super) status: Status,
    pub(super) created_at: SystemTime,
    pub(super) updated_at: SystemTime,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    Scheduling,
    Running,
    Finished,
    Failed,
}

impl World {
    pub(super) fn new(machine: Machine, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            machine: Arc::new(machine),
            settings,
            projects: Mutex::default(),
            api_faults: ApiFaults::default(),
            search_lag: AtomicU64::new(0),
            computes: Mutex::default(),
        })
    }

    pub(super) fn projects(&self) -> MutexGuard<'_, Vec<Project>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets for how long the search misses a new project.
    pub(super) fn set_search_lag(&self, lag: Duration) {
        let milliseconds = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.search_lag.store(milliseconds, Relaxed);
    }

    /// Whether the search sees it by now.
    pub(super) fn is_listed(&self, project: &Project) -> bool {
        let lag = Duration::from_millis(self.search_lag.load(Relaxed));
        project.created_at.elapsed().unwrap_or_default() >= lag
    }

    fn computes(&self) -> MutexGuard<'_, Vec<Arc<Compute>>> {
        self.computes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps what the watchdog has stopped. Blocks the thread.
    pub(super) fn reap(&self) {
        self.computes().iter().for_each(|compute| compute.reap());
    }

    pub(super) fn project(&self, id: &str) -> Option<Project> {
        self.projects()
            .iter()
            .find(|project| project.id == id)
            .cloned()
    }

    /// The compute of an endpoint.
    pub(super) fn compute(&self, endpoint_id: &str) -> Option<Arc<Compute>> {
        self.projects()
            .iter()
            .find(|project| project.endpoint_id == endpoint_id)
            .map(|project| Arc::clone(&project.compute))
    }

    /// Creates a project; its operations go on after this returns.
    pub(super) fn create(self: &Arc<Self>, wanted: Wanted) -> Project {
        let (id, endpoint_id) = (new_id(), format!("ep-{}", new_id()));
        let window = match wanted.suspend_timeout_seconds {
            0 => Some(self.settings.suspend_after),
            seconds => u64::try_from(seconds).ok().map(Duration::from_secs),
        };
        let compute = Compute::new(
            Arc::clone(&self.machine),
            &endpoint_id,
            wanted.contents.clone(),
            window,
        );
        self.computes().push(Arc::clone(&compute));
        let mut actions = vec!["create_timeline"];
        if self.settings.start_on_create {
            actions.push("start_compute");
        }
        let project = Project {
            name: wanted.name.clone().unwrap_or_else(|| id.clone()),
            id,
            wanted,
            created_at: SystemTime::now(),
            branch_id: format!("br-{}", new_id()),
            endpoint_id,
            compute,
            operations: Vec::new(),
        };
        self.projects().push(project.clone());
        self.operate(&project.id, &actions);
        self.project(&project.id).unwrap_or(project)
    }

    /// Begins operations, one after the other; `None` if others go on. Returns the new ones.
    pub(super) fn operate(
        self: &Arc<Self>,
        project_id: &str,
        actions: &[&'static str],
    ) -> Option<Vec<Operation>> {
        let mut projects = self.projects();
        let project = projects
            .iter_mut()
            .find(|project| project.id == project_id)?;
        if project.is_locked() {
            return None;
        }
        let begun: Vec<_> = actions
            .iter()
            .map(|action| Operation::new(action))
            .collect();
        project.operations.extend(begun.iter().cloned());
        let (world, compute, id) = (
            Arc::clone(self),
            Arc::clone(&project.compute),
            project_id.to_owned(),
        );
        let works: Vec<_> = begun
            .iter()
            .map(|operation| (operation.id.clone(), operation.action))
            .collect();
        tokio::spawn(async move {
            for (operation, action) in works {
                world.set(&id, &operation, Status::Running);
                tokio::time::sleep(world.settings.operation_time).await;
                let done = match action {
                    "start_compute" => compute.wake().await.is_ok(),
                    "suspend_compute" => {
                        compute.suspend().await;
                        true
                    }
                    _ => true,
                };
                world.set(
                    &id,
                    &operation,
                    if done {
                        Status::Finished
                    } else {
                        Status::Failed
                    },
                );
            }
        });
        Some(begun)
    }

    fn set(&self, project_id: &str, operation_id: &str, status: Status) {
        let mut projects = self.projects();
        let project = projects.iter_mut().find(|project| project.id == project_id);
        let operation = project.and_then(|project| {
            project
                .operations
                .iter_mut()
                .find(|it| it.id == operation_id)
        });
        if let Some(operation) = operation {
            operation.status = status;
            operation.updated_at = SystemTime::now();
        }
    }

    /// Removes a project; its compute stops and its data goes after this returns.
    pub(super) fn delete(self: &Arc<Self>, id: &str) -> Option<Project> {
        let mut projects = self.projects();
        let place = projects.iter().position(|project| project.id == id)?;
        let project = projects.remove(place);
        let compute = Arc::clone(&project.compute);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            compute.delete().await;
            world.computes().retain(|it| !Arc::ptr_eq(it, &compute));
        });
        Some(project)
    }

    pub(super) fn witnesses(&self) -> Vec<Witness> {
        self.projects().iter().map(Project::witness).collect()
    }

    /// Every name that the proxy's certificate must be valid for.
    pub(super) fn host_names() -> impl Iterator<Item = String> {
        REGIONS
            .iter()
            .map(|region| format!("*.{}", domain_of(region)))
    }

    pub(super) fn folder(&self) -> &PathBuf {
        &self.machine.folder
    }
}

impl Project {
    /// Whether operations go on, so that others must wait.
    pub(super) fn is_locked(&self) -> bool {
        self.operations
            .iter()
            .any(|operation| matches!(operation.status, Status::Scheduling | Status::Running))
    }

    pub(super) fn host(&self) -> String {
        format!("{}.{}", self.endpoint_id, domain_of(&self.wanted.region))
    }

    pub(super) fn pooler_host(&self) -> String {
        format!(
            "{}-pooler.{}",
            self.endpoint_id,
            domain_of(&self.wanted.region)
        )
    }

    pub(super) fn proxy_host(&self) -> String {
        domain_of(&self.wanted.region)
    }

    /// The whole connection string, password included.
    pub(super) fn uri(&self, pooled: bool) -> String {
        let Contents {
            database,
            role,
            password,
            ..
        } = &self.wanted.contents;
        let host = if pooled {
            self.pooler_host()
        } else {
            self.host()
        };
        let encoded = |part| utf8_percent_encode(part, OUTSIDE_A_WORD);
        let (role, database) = (encoded(role), encoded(database));
        let password = password.expose();
        format!(
            "postgresql://{role}:{password}@{host}/{database}?sslmode=require&channel_binding=require"
        )
    }

    fn witness(&self) -> Witness {
        let log = self.compute.log.entries();
        Witness {
            endpoint_id: self.endpoint_id.clone(),
            host: self.host(),
            project_id: self.id.clone(),
            project_name: self.name.clone(),
            annotations: self.wanted.annotations.clone(),
            is_awake: self.compute.is_awake(),
            wakes: log.wakes.clone(),
            suspends: log.suspends.clone(),
            auth_attempts: log.auth_attempts.clone(),
            sessions: log.sessions.clone(),
            open_sessions: log.open_sessions,
            most_open_sessions: log.most_open_sessions,
        }
    }
}

impl Operation {
    fn new(action: &'static str) -> Self {
        let now = SystemTime::now();
        let id = uuid::Uuid::new_v4().to_string();
        Self {
            id,
            action,
            status: Status::Scheduling,
            created_at: now,
            updated_at: now,
        }
    }
}
