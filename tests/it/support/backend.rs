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
    fake_database::{FakeDatabase, FakeDatabases},
    gate::{Failure, Gate, Gates, Step},
    session::Session,
};

/// Bytes that a pipe holds in each direction.
const PIPE_CAPACITY: usize = 16 * 1024;
/// Longer than anything that a router does by itself. Takes no time while time is paused.
const STALL_TIMEOUT: Duration = Duration::from_secs(3600);

/// The server of every tenant. A connection belongs to the tenant that its database is named after.
#[derive(Clone, Default)]
pub(crate) struct Backend(Arc<Inner>);

#[derive(Default)]
struct Inner {
    gates: Arc<Gates>,
    /// Of the hosts that have gates of their own.
    hosts: Mutex<HashMap<String, Arc<Gates>>>,
    /// The databases behind the hosts, if the hosts differ.
    databases: FakeDatabases,
    /// Notified when all open streams are cut off.
    disconnect: Notify,
    counts: watch::Sender<Counts>,
    last_pid: AtomicI32,
    /// The steps of tenants' schemas, in the order in which they were applied.
    steps: Mutex<Vec<AppliedStep>>,
    /// Notified when a client asks to cancel the query of the session with that number.
    cancel_signals: Mutex<HashMap<i32, Arc<Notify>>>,
}

/// A step of a schema that was applied to a tenant's database.
#[derive(Clone, Debug)]
pub(crate) struct AppliedStep {
    pub(crate) tenant: String,
    pub(crate) version: i64,
    checksum: String,
    pub(crate) at: Instant,
}

/// The counts of what has happened so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Streams opened, by host.
    pub(crate) opened: HashMap<String, u64>,
    /// Streams open now.
    pub(crate) open: u64,
    /// Most streams open at the same time.
    pub(crate) most_open: u64,
    pub(crate) logins_started: u64,
    /// The times at which they were started.
    pub(crate) login_times: Vec<Instant>,
    pub(crate) logins_done: u64,
    /// Databases created.
    pub(crate) created: u64,
    /// Requests to stop a query.
    pub(crate) cancels: u64,
    /// Connections whose end the client announced.
    pub(crate) terminates: u64,
    /// Transactions committed, whether or not the client got the answer.
    pub(crate) commits: u64,
    /// Simple queries and executions, by their text.
    pub(crate) queries: HashMap<String, u64>,
    reached: [u64; Step::ALL.len()],
    waiting: [u64; Step::ALL.len()],
}

impl Counts {
    /// Returns how often a call has come to `step`.
    pub(crate) fn reached(&self, step: Step) -> u64 {
        self.reached[step as usize]
    }

    /// Returns how many calls wait at the gate of `step` now.
    pub(crate) fn waiting(&self, step: Step) -> u64 {
        self.waiting[step as usize]
    }

    /// Returns whether no stream is open or waited for.
    pub(crate) fn is_empty(&self) -> bool {
        self.open == 0 && self.waiting(Step::Open) == 0
    }

    /// Returns how often `sql` was asked, letter by letter.
    pub(crate) fn query_count(&self, sql: &str) -> u64 {
        self.queries.get(sql).copied().unwrap_or_default()
    }
}

impl Backend {
    /// A router whose tenants all exist, and live here at hosts and in databases of their own names.
    pub(crate) fn router(&self) -> RouterBuilder {
        self.router_with_lookup(|tenant| Some(Self::endpoint(tenant)))
    }

    /// A router whose tenants live where `catalog` says.
    pub(crate) fn router_with_lookup(
        &self,
        catalog: impl Fn(&str) -> Option<Endpoint> + Send + Sync + 'static,
    ) -> RouterBuilder {
        let (backend, catalog) = (self.clone(), Arc::new(catalog));
        self.configure(TenantRouter::builder(move |tenant: TenantId| {
            let (backend, catalog) = (backend.clone(), Arc::clone(&catalog));
            async move {
                let passed = backend.wait_at(Step::Lookup).await;
                passed.map_err(Failure::into_io)?;
                Ok(catalog(tenant.as_str()))
            }
        }))
    }

    /// Returns the endpoint of `tenant`: at a host and in a database of its own name, and never asleep.
    pub(crate) fn endpoint(tenant: &str) -> Endpoint {
        Endpoint::postgres(tenant, tenant, "app", "secret").without_tls()
    }

    /// `builder`, pointed here. Its endpoints have to be without TLS.
    pub(crate) fn configure(&self, builder: RouterBuilder) -> RouterBuilder {
        let backend = self.clone();
        builder.open_streams(move |host, _| backend.clone().open(host.to_owned()))
    }

    /// Sets what happens at `step` from now on, also to calls that are stuck there.
    pub(crate) fn set(&self, step: Step, gate: Gate) {
        self.0.gates.set(step, gate);
    }

    /// Sets the gate for connections to `host` from now on. The gates of all hosts do not apply to them.
    pub(crate) fn set_at(&self, host: &str, step: Step, gate: Gate) {
        let mut hosts = self.0.hosts.lock().unwrap();
        let gates = hosts.entry(host.to_owned()).or_default();
        gates.set(step, gate);
    }

    /// The databases behind the hosts. While there is none, each host serves a database with the name that is asked
    /// for.
    pub(crate) fn databases(&self) -> &FakeDatabases {
        &self.0.databases
    }

    /// Cuts all sessions off, as when their computes fall asleep.
    pub(crate) fn suspend(&self) {
        self.0.disconnect.notify_waiters();
    }

    /// Returns the counts of what has happened so far.
    pub(crate) fn counts(&self) -> Counts {
        self.0.counts.borrow().clone()
    }

    /// Waits until `condition` holds; the test has failed if all else stands still before it does.
    pub(crate) async fn until(&self, what: &str, condition: impl FnMut(&Counts) -> bool) {
        let mut counts = self.0.counts.subscribe();
        let reached = timeout(STALL_TIMEOUT, counts.wait_for(condition))
            .await
            .is_ok();
        assert!(reached, "never: {what}: {:#?}", self.counts());
    }

    /// Waits until a call is held up at `step`.
    pub(crate) async fn until_waiting(&self, step: Step) {
        self.until(&format!("a call waits at {step:?}"), |counts| {
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
        let waiting = self.arrive(Step::Open);
        let own = self.0.hosts.lock().unwrap().get(&host).cloned();
        let gates = own.unwrap_or_else(|| Arc::clone(&self.0.gates));
        let passed = gates.pass(Step::Open).await;
        passed.map_err(Failure::into_io)?;
        let (server_end, client_end) = duplex(PIPE_CAPACITY);
        let db = self.0.databases.at(&host);
        self.update_counts(|counts| {
            *counts.opened.entry(host).or_default() += 1;
            counts.open += 1;
            counts.most_open = counts.most_open.max(counts.open);
        });
        drop(waiting); // not before it is counted as open: a test may wait until there is neither
        let pid = self.0.last_pid.fetch_add(1, Relaxed) + 1;
        let cancel_signal = Arc::<Notify>::default();
        self.0
            .cancel_signals
            .lock()
            .unwrap()
            .insert(pid, Arc::clone(&cancel_signal));
        let stream = OpenStream {
            backend: self.clone(),
            gates,
            pid,
            opened: Instant::now(),
            db: db.clone(),
        };
        let backend = self.clone();
        let disconnected = async move {
            match db {
                Ok(Some(db)) => db.disconnected().await,
                Ok(None) | Err(_) => std::future::pending().await,
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = backend.0.disconnect.notified() => {}
                () = disconnected => {}
                () = Session::new(server_end, stream, cancel_signal).run() => {}
            }
        });
        Ok(client_end)
    }

    /// Comes to `step`, and waits until it may be taken, or has failed.
    pub(super) async fn wait_at(&self, step: Step) -> Result<(), Failure> {
        let _waiting = self.arrive(step);
        self.0.gates.pass(step).await
    }

    /// Counts a call that has come to `step`, and that waits there until the result is dropped.
    pub(super) fn arrive(&self, step: Step) -> WaitGuard {
        self.update_counts(|counts| {
            counts.reached[step as usize] += 1;
            counts.waiting[step as usize] += 1;
        });
        WaitGuard {
            backend: self.clone(),
            step,
        }
    }

    /// Stops what session `pid` is doing, if it is doing anything.
    pub(super) fn cancel(&self, pid: i32) {
        self.update_counts(|counts| counts.cancels += 1);
        if let Some(cancel_signal) = self.0.cancel_signals.lock().unwrap().get(&pid) {
            cancel_signal.notify_waiters();
        }
    }

    /// Returns the steps of schemas that were applied, in order.
    pub(crate) fn steps(&self) -> Vec<AppliedStep> {
        self.0.steps.lock().unwrap().clone()
    }

    /// Returns the answer to a statement of a migration, and remembers a step that it records.
    pub(super) fn answer_migration(&self, tenant: &str, sql: &str) -> Option<String> {
        let mut steps = self.0.steps.lock().unwrap();
        if let Some((_, values)) = sql.split_once("INSERT INTO tenantry.schema_history") {
            let (_, values) = values.split_once("SELECT ")?;
            let (version, values) = values.split_once(',')?;
            let (_, checksum) = values.split_once("decode('")?;
            steps.push(AppliedStep {
                tenant: tenant.to_owned(),
                version: version.parse().ok()?,
                checksum: checksum.split('\'').next()?.to_owned(),
                at: Instant::now(),
            });
            return None;
        }
        let is_true = ["pg_try_advisory_lock", "to_regnamespace"];
        if sql.contains("FROM tenantry.schema_history") {
            let own = steps.iter().filter(|it| it.tenant == tenant);
            let rows = own.map(|it| format!("{}:{}:1", it.version, it.checksum));
            Some(rows.collect::<Vec<_>>().join(","))
        } else if is_true.iter().any(|it| sql.contains(it)) {
            Some("true".to_owned())
        } else {
            sql.contains("SELECT txid_current()")
                .then(|| "1".to_owned())
        }
    }

    pub(super) fn update_counts(&self, change: impl FnOnce(&mut Counts)) {
        self.0.counts.send_modify(change);
    }
}

/// A stream that is open. Its drop says that it is not any more.
pub(super) struct OpenStream {
    pub(super) backend: Backend,
    gates: Arc<Gates>,
    pub(super) pid: i32,
    pub(super) opened: Instant,
    /// The database at its host, if databases were set; or the reason why there is none.
    pub(super) db: Result<Option<Arc<FakeDatabase>>, Failure>,
}

impl OpenStream {
    /// Takes note of a login.
    pub(super) fn count_login(&self) {
        self.backend.update_counts(|counts| {
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
        let db = self.db.as_ref().ok().cloned().flatten();
        async move {
            gates.pass(step).await?;
            match db {
                Some(db) => db.gates().pass(step).await,
                None => Ok(()),
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.backend
            .0
            .cancel_signals
            .lock()
            .unwrap()
            .remove(&self.pid);
        self.backend.update_counts(|counts| counts.open -= 1);
    }
}

/// A call at a gate. Dropping it means that the call has passed, or has gone.
pub(super) struct WaitGuard {
    backend: Backend,
    step: Step,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.backend
            .update_counts(|counts| counts.waiting[self.step as usize] -= 1);
    }
}
