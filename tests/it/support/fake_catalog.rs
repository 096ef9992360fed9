//! A fake catalog, shared by several routers: it can fail, be slow, get stuck and hold back answers, and it counts
//! calls.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    BoxError, Catalog, Endpoint, Lookup, Namespace, TenantClient, TenantId, TenantRouter,
    catalog::{
        AfterWrite, Changes, InvalidRecord, Lease, Leased, Memory, Note, Placement, Process,
        Record, State,
    },
};
use tokio::{sync::watch, time::sleep};

use super::{
    backend::Backend,
    gate::{Failure, Gate},
};

/// One replica's way to the catalog that all of them share.
#[derive(Clone)]
pub(crate) struct FakeCatalog {
    shared: Arc<Shared>,
    gate: watch::Sender<Gate>,
    /// `true` while the answers of `find`, read already, are kept back.
    answers_held: watch::Sender<bool>,
    calls: Arc<AtomicU64>,
    finds: Arc<AtomicU64>,
    /// The version of the last notification.
    notified_version: Arc<AtomicU64>,
    notifies: bool,
    /// The number of questions for changes that are still to panic.
    panics: Arc<AtomicU64>,
}

#[derive(Default)]
struct Shared {
    memory: Memory,
    /// Tenants whose record the catalog has lost.
    lost: Mutex<HashSet<String>>,
    /// Tenants whose record cannot be read.
    broken: Mutex<HashSet<String>>,
    /// The number by which the versions are lower since a backup was restored.
    version_offset: AtomicU64,
    written: watch::Sender<u64>,
    calls: AtomicU64,
}

pub(crate) const DOWN: Gate = Gate::Fail(Failure::Cut);

impl FakeCatalog {
    /// An empty catalog, which says when there is news.
    pub(crate) fn new() -> Self {
        Self::with_shared(Arc::default(), true)
    }

    /// An empty catalog, which has to be asked for news.
    pub(crate) fn without_notifications() -> Self {
        Self::with_shared(Arc::default(), false)
    }

    /// Another replica's way to the same catalog.
    pub(crate) fn replica(&self) -> Self {
        Self::with_shared(Arc::clone(&self.shared), self.notifies)
    }

    fn with_shared(shared: Arc<Shared>, notifies: bool) -> Self {
        Self {
            shared,
            gate: watch::Sender::new(Gate::Open),
            answers_held: watch::Sender::new(false),
            calls: Arc::default(),
            finds: Arc::default(),
            notified_version: Arc::default(),
            notifies,
            panics: Arc::default(),
        }
    }

    /// Says what becomes of calls this way from now on.
    pub(crate) fn set(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }

    /// Says whether answers about one tenant are kept back from now on, as they were read.
    pub(crate) fn hold_answers(&self, keep: bool) {
        self.answers_held.send_replace(keep);
    }

    /// Panics in the next `count` questions for changes.
    pub(crate) fn panic_in_changes(&self, count: u64) {
        self.panics.store(count, Relaxed);
    }

    /// Calls this way so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Calls of the catalog so far, by all replicas.
    pub(crate) fn total_calls(&self) -> u64 {
        self.shared.calls.load(Relaxed)
    }

    /// Those among [`calls`](Self::calls) that asked for one tenant.
    pub(crate) fn finds(&self) -> u64 {
        self.finds.load(Relaxed)
    }

    /// Loses the record of `tenant`.
    pub(crate) fn lose_record(&self, tenant: &str) {
        self.shared.lost.lock().unwrap().insert(tenant.to_owned());
    }

    /// Makes the record of `tenant` one that cannot be read.
    pub(crate) fn break_record(&self, tenant: &str) {
        self.shared.broken.lock().unwrap().insert(tenant.to_owned());
    }

    /// Counts its versions from the beginning again, as after a restore.
    pub(crate) fn restore(&self) {
        let version = *self.shared.written.borrow();
        self.shared.version_offset.store(version, Relaxed);
    }

    /// Has another process publish `tenant`, who lives at `host`.
    pub(crate) async fn publish(&self, tenant: &str, host: &str) {
        let mut record = self.lease_record(tenant).await;
        record.placement = Some(Placement::new(tenant));
        record.endpoint = Some(Backend::endpoint(host));
        record.state = State::Preparing;
        self.write_record(&record).await;
        record.state = State::Ready;
        self.write_record(&record).await;
    }

    /// Has another process lead `tenant` to another project, whose password only the control plane has.
    pub(crate) async fn set_project(&self, tenant: &str, project: &str) {
        let mut record = self.lease_record(tenant).await;
        record.placement = Some(Placement::new(project));
        record.endpoint = Some(Backend::endpoint(project));
        record.endpoint.as_mut().unwrap().password = "".into();
        self.write_record(&record).await;
    }

    /// Has another process change where `tenant` lives.
    pub(crate) async fn change_endpoint(&self, tenant: &str, change: impl FnOnce(&mut Endpoint)) {
        let mut record = self.lease_record(tenant).await;
        change(record.endpoint.as_mut().unwrap());
        self.write_record(&record).await;
    }

    /// Has another process change how many connections `tenant` may have.
    pub(crate) async fn set_max_connections(&self, tenant: &str, max_connections: Option<usize>) {
        let mut record = self.lease_record(tenant).await;
        record.max_connections = max_connections;
        self.write_record(&record).await;
    }

    /// Has another process bring `tenant` to `state`.
    pub(crate) async fn set_state(&self, tenant: &str, state: State) {
        let mut record = self.lease_record(tenant).await;
        record.state = state;
        self.write_record(&record).await;
    }

    /// Has another process bring `tenant` to `state`, and go on working on it for a day.
    pub(crate) async fn set_state_and_lease(&self, tenant: &str, state: State) {
        self.set_state(tenant, state).await;
        let tenant = TenantId::parse(tenant).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let leased = self.shared.memory.lease(&tenant, "another", day).await;
        assert!(matches!(leased.unwrap(), Leased::Granted(..)));
    }

    async fn lease_record(&self, tenant: &str) -> Record {
        let tenant = TenantId::parse(tenant).unwrap();
        let minute = Duration::from_secs(60);
        let leased = self.shared.memory.lease(&tenant, "another", minute).await;
        match leased.unwrap() {
            Leased::Granted(_, record) => *record,
            leased => panic!("{leased:?}"),
        }
    }

    async fn write_record(&self, record: &Record) {
        let memory = &self.shared.memory;
        let minute = Duration::from_secs(60);
        let leased = memory.lease(&record.tenant, "another", minute).await;
        let Leased::Granted(lease, _) = leased.unwrap() else {
            panic!("another process has the lease");
        };
        assert!(
            memory
                .write(&lease, record, AfterWrite::Release)
                .await
                .unwrap()
        );
        self.shared.written.send_modify(|version| *version += 1);
    }

    async fn pass_gate(&self) -> Result<(), BoxError> {
        self.calls.fetch_add(1, Relaxed);
        self.shared.calls.fetch_add(1, Relaxed);
        let mut gate = self.gate.subscribe();
        loop {
            let now = *gate.borrow_and_update();
            match now {
                Gate::Open => return Ok(()),
                Gate::Fail(_) => return Err("the catalog is down".into()),
                Gate::Slow(time) => {
                    sleep(time).await;
                    return Ok(());
                }
                Gate::Stuck => gate.changed().await?,
            }
        }
    }
}

impl Lookup for FakeCatalog {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        self.shared.memory.lookup(tenant).await
    }
}

impl Catalog for FakeCatalog {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        self.shared.memory.bind(namespace, with_passwords)
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        self.finds.fetch_add(1, Relaxed);
        self.pass_gate().await?;
        let is_in = |set: &Mutex<HashSet<String>>| set.lock().unwrap().contains(tenant.as_str());
        if is_in(&self.shared.broken) {
            return Err(InvalidRecord::new("not to be read").into());
        }
        if is_in(&self.shared.lost) {
            return Ok(None);
        }
        let found = self.shared.memory.find(tenant).await;
        let mut answers_held = self.answers_held.subscribe();
        answers_held.wait_for(|answers_held| !answers_held).await?;
        found
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        self.pass_gate().await?;
        if self.shared.lost.lock().unwrap().contains(tenant.as_str()) {
            return Err("a tenant whose record is lost is about to be created again".into());
        }
        self.shared.memory.lease(tenant, owner, time).await
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        self.pass_gate().await?;
        let written = self.shared.memory.write(lease, record, then).await?;
        if written {
            self.shared.written.send_modify(|version| *version += 1);
        }
        Ok(written)
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        self.pass_gate().await?;
        self.shared.memory.release(lease).await
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        self.pass_gate().await?;
        let listed = self.shared.memory.list(after, limit).await;
        let mut answers_held = self.answers_held.subscribe();
        answers_held.wait_for(|answers_held| !answers_held).await?;
        listed
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        self.pass_gate().await?;
        let one_less = |left: u64| left.checked_sub(1);
        let panics = self.panics.fetch_update(Relaxed, Relaxed, one_less);
        assert!(panics.is_err(), "a panic in the application's own catalog");
        let offset = self.shared.version_offset.load(Relaxed);
        let mut changes = match since {
            Some(since) if since + offset <= *self.shared.written.borrow() => {
                let since = Some(since + offset);
                self.shared.memory.changes(since, limit).await?
            }
            Some(_) => {
                let mut changes = self.shared.memory.changes(None, limit).await?;
                changes.reset = true;
                changes
            }
            None => self.shared.memory.changes(None, limit).await?,
        };
        changes.version -= offset;
        Ok(changes)
    }

    fn keeps_notes(&self) -> bool {
        true
    }

    async fn note(&self, name: &str) -> Result<Option<Note>, BoxError> {
        self.pass_gate().await?;
        self.shared.memory.note(name).await
    }

    async fn write_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool, BoxError> {
        self.pass_gate().await?;
        self.shared.memory.write_note(name, text, replaces).await
    }

    async fn register(&self, process: &Process) -> Result<(), BoxError> {
        self.pass_gate().await?;
        self.shared.memory.register(process).await
    }

    async fn changed(&self) {
        if !self.notifies {
            std::future::pending::<()>().await;
        }
        let mut written = self.shared.written.subscribe();
        let news = written.wait_for(|version| *version > self.notified_version.load(Relaxed));
        let version = *news.await.unwrap();
        self.notified_version.store(version, Relaxed);
    }
}

/// The database in which `tenant` is served.
pub(crate) async fn served_database(
    router: &TenantRouter,
    tenant: &str,
) -> Result<String, tenantry::Error> {
    Ok(current_database(&router.get(tenant).await?).await)
}

/// The database that `client` is connected to.
pub(crate) async fn current_database(client: &TenantClient) -> String {
    let rows = client.query_typed("SELECT current_database()", &[]).await;
    rows.unwrap()[0].get(0)
}
