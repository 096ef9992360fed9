//! A Postgres server by script, at the other end of pipes inside the process. For paused time.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{Endpoint, RouterBuilder, TenantId, TenantRouter};
use tokio::{
    io::{DuplexStream, duplex},
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::{
    gate::{Failure, Gate, Gates, Step},
    house::{House, Houses},
    session::Session,
};

/// Bytes that a pipe holds in each direction.
const PIPE: usize = 16 * 1024;
/// Longer than anything that a router does by itself. Takes no time while time is paused.
const NEVER: Duration = Duration::from_secs(3600);

/// The server of every tenant. A connection belongs to the tenant after whom its database is named.
#[derive(Clone, Default)]
pub(crate) struct Backend(Arc<Inner>);

#[derive(Default)]
struct Inner {
    gates: Arc<Gates>,
    /// Of the hosts that have gates of their own.
    hosts: Mutex<HashMap<String, Arc<Gates>>>,
    /// What is behind the hosts, if they are not all the same.
    houses: Houses,
    /// Rung when all that is open is cut off.
    cut: Notify,
    counts: watch::Sender<Counts>,
    last_pid: AtomicI32,
    /// Rung when somebody asks to stop what the session of that number does.
    bells: Mutex<HashMap<i32, Arc<Notify>>>,
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Streams opened, by host.
    pub(crate) opened: HashMap<String, u64>,
    /// Streams open now.
    pub(crate) open: u64,
    /// Most streams open at the same time.
    pub(crate) most_open: u64,
    pub(crate) logins_started: u64,
    /// When they were started.
    pub(crate) login_times: Vec<Instant>,
    pub(crate) logins_done: u64,
    /// Databases created.
    pub(crate) created: u64,
    /// Requests to stop a query.
    pub(crate) cancels: u64,
    /// Connections whose end the client announced.
    pub(crate) terminates: u64,
    /// Transactions committed, whoever was told.
    pub(crate) commits: u64,
    /// Simple queries and executions, by their text.
    pub(crate) queries: HashMap<String, u64>,
    reached: [u64; Step::ALL.len()],
    waiting: [u64; Step::ALL.len()],
}

impl Counts {
    /// How often somebody has come to `step`.
    pub(crate) fn reached(&self, step: Step) -> u64 {
        self.reached[step as usize]
    }

    /// How many wait at the gate of `step` now.
    pub(crate) fn waiting(&self, step: Step) -> u64 {
        self.waiting[step as usize]
    }

    /// Whether nobody has or waits for a stream.
    pub(crate) fn is_empty(&self) -> bool {
        self.open == 0 && self.waiting(Step::Open) == 0
    }

    /// How often `sql` was asked, letter by letter.
    pub(crate) fn asked(&self, sql: &str) -> u64 {
        self.queries.get(sql).copied().unwrap_or_default()
    }
}

impl Backend {
    /// A router whose tenants all exist, and live here at hosts and in databases of their own names.
    pub(crate) fn router(&self) -> RouterBuilder {
        self.router_to(|tenant| Some(Self::endpoint(tenant)))
    }

    /// A router whose tenants live where `catalog` says.
    pub(crate) fn router_to(
        &self,
        catalog: impl Fn(&str) -> Option<Endpoint> + Send + Sync + 'static,
    ) -> RouterBuilder {
        let (backend, catalog) = (self.clone(), Arc::new(catalog));
        self.at(TenantRouter::builder(move |tenant: TenantId| {
            let (backend, catalog) = (backend.clone(), Arc::clone(&catalog));
            async move {
                let passed = backend.come_to(Step::Lookup).await;
                passed.map_err(Failure::into_io)?;
                Ok(catalog(tenant.as_str()))
            }
        }))
    }

    /// Where `tenant` lives: at a host and in a database of its own name, and never asleep.
    pub(crate) fn endpoint(tenant: &str) -> Endpoint {
        Endpoint::postgres(tenant, tenant, "app", "secret").without_tls()
    }

    /// `builder`, pointed here. Its endpoints have to be without TLS.
    pub(crate) fn at(&self, builder: RouterBuilder) -> RouterBuilder {
        let backend = self.clone();
        builder.open_streams(move |host, _| backend.clone().open(host.to_owned()))
    }

    /// Says what happens at `step` from now on, also to those that are stuck there.
    pub(crate) fn set(&self, step: Step, gate: Gate) {
        self.0.gates.set(step, gate);
    }

    /// Says the same of those who connect to `host` from now on. What was said of all does not hold for them.
    pub(crate) fn set_at(&self, host: &str, step: Step, gate: Gate) {
        let mut hosts = self.0.hosts.lock().unwrap();
        let gates = hosts.entry(host.to_owned()).or_default();
        gates.set(step, gate);
    }

    /// What is behind the hosts. As long as that is nothing, each host has the database of whoever asks.
    pub(crate) fn houses(&self) -> &Houses {
        &self.0.houses
    }

    /// Cuts all sessions off, as when their computes fall asleep.
    pub(crate) fn suspend(&self) {
        self.0.cut.notify_waiters();
    }

    /// What has happened so far.
    pub(crate) fn counts(&self) -> Counts {
        self.0.counts.borrow().clone()
    }

    /// Waits until `condition` holds; the test has failed if all else stands still before it does.
    pub(crate) async fn until(&self, what: &str, condition: impl FnMut(&Counts) -> bool) {
        let mut counts = self.0.counts.subscribe();
        let held = timeout(NEVER, counts.wait_for(condition)).await.is_ok();
        assert!(held, "never: {what}: {:#?}", self.counts());
    }

    /// Waits until somebody is held up at `step`.
    pub(crate) async fn until_waiting(&self, step: Step) {
        self.until(&format!("somebody waits at {step:?}"), |counts| {
            counts.waiting(step) > 0
        })
        .await;
    }

    /// Waits until nothing is open. It must have been closed by then; this only lets the server notice.
    pub(crate) async fn until_empty(&self) {
        self.until("nothing is open", Counts::is_empty).await;
    }

    /// A stream to `host`.
    pub(crate) async fn open(self, host: String) -> io::Result<DuplexStream> {
        let waiting = self.reach(Step::Open);
        let own = self.0.hosts.lock().unwrap().get(&host).cloned();
        let gates = own.unwrap_or_else(|| Arc::clone(&self.0.gates));
        let passed = gates.pass(Step::Open).await;
        passed.map_err(Failure::into_io)?;
        let (near, far) = duplex(PIPE);
        let house = self.0.houses.at(&host);
        self.note(|counts| {
            *counts.opened.entry(host).or_default() += 1;
            counts.open += 1;
            counts.most_open = counts.most_open.max(counts.open);
        });
        drop(waiting); // not before it is counted as open: somebody may watch for neither
        let pid = self.0.last_pid.fetch_add(1, Relaxed) + 1;
        let bell = Arc::<Notify>::default();
        self.0.bells.lock().unwrap().insert(pid, Arc::clone(&bell));
        let place = Place {
            backend: self.clone(),
            gates,
            pid,
            opened: Instant::now(),
            house: house.clone(),
        };
        let backend = self.clone();
        let is_cut = async move {
            match house {
                Ok(Some(house)) => house.is_cut().await,
                Ok(None) | Err(_) => std::future::pending().await,
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = backend.0.cut.notified() => {}
                () = is_cut => {}
                () = Session::new(near, place, bell).run() => {}
            }
        });
        Ok(far)
    }

    /// Comes to `step`, and waits until it may be taken, or has failed.
    pub(super) async fn come_to(&self, step: Step) -> Result<(), Failure> {
        let _waiting = self.reach(step);
        self.0.gates.pass(step).await
    }

    /// Notes that somebody has come to `step`, where it waits until the result is dropped.
    pub(super) fn reach(&self, step: Step) -> Waiting {
        self.note(|counts| {
            counts.reached[step as usize] += 1;
            counts.waiting[step as usize] += 1;
        });
        Waiting {
            backend: self.clone(),
            step,
        }
    }

    /// Stops what session `pid` is doing, if it is doing anything.
    pub(super) fn cancel(&self, pid: i32) {
        self.note(|counts| counts.cancels += 1);
        if let Some(bell) = self.0.bells.lock().unwrap().get(&pid) {
            bell.notify_waiters();
        }
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Counts)) {
        self.0.counts.send_modify(change);
    }
}

/// A stream that is open. Its drop says that it is not any more.
pub(super) struct Place {
    pub(super) backend: Backend,
    gates: Arc<Gates>,
    pub(super) pid: i32,
    pub(super) opened: Instant,
    /// The database at its host, if that is not simply whoever's it is; or why there is none.
    pub(super) house: Result<Option<Arc<House>>, Failure>,
}

impl Place {
    /// Takes note of a login.
    pub(super) fn note_login(&self) {
        self.backend.note(|counts| {
            counts.logins_started += 1;
            counts.login_times.push(Instant::now());
        });
    }

    /// Waits until `step` may be taken here, or has failed.
    pub(super) fn pass(
        &self,
        step: Step,
    ) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let gates = Arc::clone(&self.gates);
        let house = self.house.as_ref().ok().cloned().flatten();
        async move {
            gates.pass(step).await?;
            match house {
                Some(house) => house.gates().pass(step).await,
                None => Ok(()),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backend.0.bells.lock().unwrap().remove(&self.pid);
        self.backend.note(|counts| counts.open -= 1);
    }
}

/// Somebody at a gate. Its drop says that it has passed, or has gone.
pub(super) struct Waiting {
    backend: Backend,
    step: Step,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.backend
            .note(|counts| counts.waiting[self.step as usize] -= 1);
    }
}
