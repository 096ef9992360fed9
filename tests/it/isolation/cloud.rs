//! A cloud by script: databases that are created, moved, copied, traded, deleted and taken back, on a scripted backend.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tenantry::{
    ControlPlane, Endpoint, Error, ErrorKind, Login,
    catalog::Placement,
    control_plane::{Database, Found, Order, Progress},
};
use tokio::time::sleep;

use crate::support::{Backend, FakeDatabase, Gate, Intrusions};

/// The time that it takes to answer.
const LATENCY: Duration = Duration::from_millis(3);

type Tags = BTreeMap<String, String>;

/// A tenant of a namespace, as its row has it.
pub(super) fn owner(namespace: &str, tenant: &str) -> String {
    let hex: Vec<_> = tenant.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{namespace}/{}", hex.concat())
}

/// One account, whatever namespaces use it.
#[derive(Clone)]
pub(super) struct Cloud {
    pub(super) backend: Backend,
    state: Arc<Mutex<State>>,
    intrusions: Intrusions,
}

#[derive(Default)]
struct State {
    /// Oldest first. Their ids are their numbers.
    projects: Vec<Project>,
    /// The number of hosts and passwords that there have been.
    names_made: u64,
}

struct Project {
    name: String,
    tags: Tags,
    db: Arc<FakeDatabase>,
    host: String,
    is_deleted: bool,
}

impl State {
    fn fresh_name(&mut self, what: &str) -> String {
        self.names_made += 1;
        format!("{what}-{}", self.names_made)
    }
}

impl Cloud {
    pub(super) fn new() -> Self {
        let backend = Backend::default();
        // Hosts are not but names here, also before there is any.
        let intrusions = Intrusions::default();
        let placeholder = FakeDatabase::new(u64::MAX, "nobody".to_owned(), "none".to_owned());
        backend.databases().set("nobody's", &placeholder);
        Self {
            backend,
            state: Arc::default(),
            intrusions,
        }
    }

    /// Cuts the sessions of `project` off.
    pub(super) fn suspend(&self, project: &str) {
        if let Some(db) = self.db(project) {
            db.suspend();
        }
    }

    /// Gives `project` another password. Sessions go on.
    pub(super) fn rotate(&self, project: &str) {
        let password = self.state().fresh_name("password");
        if let Some(db) = self.db(project) {
            db.set_password(password);
        }
    }

    /// Gives `project` another host.
    pub(super) fn move_host(&self, project: &str) {
        let mut state = self.state();
        let host = state.fresh_name("host");
        let Some(project) = project_mut(&mut state, project) else {
            return;
        };
        self.backend.databases().remove(&project.host);
        project.host = host;
        self.backend.databases().set(&project.host, &project.db);
        project.db.suspend();
    }

    /// Gives two projects the host of the other.
    pub(super) fn swap_hosts(&self, one: &str, other: &str) {
        let mut state = self.state();
        let host = |state: &mut State, id| project_mut(state, id).map(|it| it.host.clone());
        let (Some(first), Some(second)) = (host(&mut state, one), host(&mut state, other)) else {
            return;
        };
        for (id, host) in [(one, second), (other, first)] {
            if let Some(project) = project_mut(&mut state, id) {
                self.backend.databases().set(&host, &project.db);
                project.host = host;
                project.db.suspend();
            }
        }
    }

    /// Copies `project` into another one, which is the tenant's from now on. Sessions of the old one go on.
    pub(super) fn copy(&self, project: &str) -> Option<Database> {
        let mut state = self.state();
        let (host, password) = (state.fresh_name("host"), state.fresh_name("password"));
        let number = state.projects.len() as u64;
        let old = project_mut(&mut state, project)?;
        let copy = Project {
            name: std::mem::replace(&mut old.name, "left behind".to_owned()),
            tags: std::mem::take(&mut old.tags),
            db: old.db.copy(number, password),
            host,
            is_deleted: false,
        };
        self.backend.databases().set(&copy.host, &copy.db);
        let database = database(&copy);
        state.projects.push(copy);
        Some(database)
    }

    /// Returns the project that replaces those in `condemned`: one that exists already, or else a copy of the last.
    pub(super) fn replacement(&self, condemned: &[String]) -> Option<Database> {
        let mut state = self.state();
        let (host, password) = (state.fresh_name("host"), state.fresh_name("password"));
        let (number, at) = (state.projects.len() as u64, condemned.last()?);
        let old = &state.projects[at.parse::<usize>().ok()?];
        let is_there = |it: &&Project| {
            let id = it.db.number.to_string();
            it.name == old.name && !it.is_deleted && !condemned.contains(&id)
        };
        if let Some(there) = state.projects.iter().find(is_there) {
            return Some(database(there));
        }
        let new = Project {
            name: old.name.clone(),
            tags: old.tags.clone(),
            db: old.db.copy(number, password),
            host,
            is_deleted: false,
        };
        self.backend.databases().set(&new.host, &new.db);
        let database = database(&new);
        state.projects.push(new);
        Some(database)
    }

    /// Takes `project` away, or nothing if it is gone.
    pub(super) fn destroy(&self, project: &str) {
        if let Some(project) = project_mut(&mut self.state(), project) {
            project.is_deleted = true;
            self.backend.databases().remove(&project.host);
            project.db.suspend();
        }
    }

    /// Says what becomes of logins to `project`, also a deleted one, from now on, besides what becomes of all.
    pub(super) fn set_login_gate(&self, project: &str, gate: Gate) {
        let at: usize = project.parse().unwrap();
        self.state().projects[at].db.set_login_gate(gate);
    }

    /// Says whether `project`, also a deleted one, must not be opened from now on.
    pub(super) fn set_closed(&self, project: &str, closed: bool) {
        let at: usize = project.parse().unwrap();
        self.state().projects[at].db.set_closed(closed);
    }

    /// Everything that was done to databases that must not be.
    pub(super) fn intrusions(&self) -> Vec<String> {
        self.intrusions.all()
    }

    fn db(&self, project: &str) -> Option<Arc<FakeDatabase>> {
        project_mut(&mut self.state(), project).map(|it| Arc::clone(&it.db))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn found(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Found> {
        let state = self.state();
        let there = state.projects.iter().filter(|it| !it.is_deleted);
        there
            .filter(|it| is_wanted(&it.name))
            .map(|it| Found::new(it.db.number.to_string(), &it.name, None))
            .collect()
    }
}

fn project_mut<'a>(state: &'a mut State, id: &str) -> Option<&'a mut Project> {
    let at: usize = id.parse().ok()?;
    state.projects.get_mut(at).filter(|it| !it.is_deleted)
}

/// Returns the database of `project`, as the control plane describes it.
fn database(project: &Project) -> Database {
    let password = project.db.password();
    let endpoint = Endpoint::postgres(&project.host, "neondb", "app", password).without_tls();
    let window = Duration::from_secs(300);
    let placement = Placement::new(project.db.number.to_string());
    Database::new(placement, endpoint.suspend_window(window))
}

impl ControlPlane for Cloud {
    async fn find(&self, name: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        sleep(LATENCY).await;
        Ok(self.found(|it| it == name))
    }

    async fn list(&self, prefix: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        sleep(LATENCY).await;
        Ok(self.found(|it| it.starts_with(prefix)))
    }

    async fn tags(&self, id: &str, _: &Progress) -> Result<Option<Tags>, Error> {
        sleep(LATENCY).await;
        Ok(project_mut(&mut self.state(), id).map(|it| it.tags.clone()))
    }

    async fn create(&self, order: &Order, _: &Progress) -> Result<Database, Error> {
        sleep(LATENCY).await;
        let mut state = self.state();
        let (host, password) = (state.fresh_name("host"), state.fresh_name("password"));
        let [namespace, tenant] =
            ["tenantry-namespace", "tenantry-tenant"].map(|tag| order.tags[tag].as_str());
        let owner = owner(namespace, tenant);
        let number = state.projects.len() as u64;
        let project = Project {
            name: order.name.clone(),
            tags: order.tags.clone(),
            db: FakeDatabase::with_intrusions(number, owner, password, &self.intrusions),
            host,
            is_deleted: false,
        };
        self.backend.databases().set(&project.host, &project.db);
        let database = database(&project);
        state.projects.push(project);
        Ok(database)
    }

    async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
        sleep(LATENCY).await;
        Ok(())
    }

    async fn database(
        &self,
        id: &str,
        _: Option<&Login>,
        _: &Progress,
    ) -> Result<Option<Database>, Error> {
        let now = project_mut(&mut self.state(), id).map(|it| database(it));
        sleep(LATENCY).await;
        Ok(now)
    }

    async fn delete(&self, id: &str, _: &Progress) -> Result<(), Error> {
        sleep(LATENCY).await;
        self.destroy(id);
        Ok(())
    }

    async fn recover(&self, id: &str, _: &Progress) -> Result<(), Error> {
        sleep(LATENCY).await;
        let mut state = self.state();
        let at = id.parse::<usize>().ok();
        let Some(project) = at.and_then(|at| state.projects.get_mut(at)) else {
            return Err(Error::new(ErrorKind::NotFound, "there was never one"));
        };
        project.is_deleted = false;
        self.backend.databases().set(&project.host, &project.db);
        Ok(())
    }
}
