//! A control plane by script, whose databases live on a scripted backend.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    Catalog, ControlPlane, Error, ErrorKind, Login, Plan, Provisioner, RouterBuilder, TenantRouter,
    catalog::{Memory, Placement},
    control_plane::{Database, Found, Order, Progress},
};

use tokio::time::sleep;

use super::{backend::Backend, gate::Step};

/// The databases that were created, oldest first.
pub(crate) struct FakeControlPlane {
    backend: Backend,
    orders: Mutex<Vec<Order>>,
    /// The number of times that the control plane was asked where a database is.
    reads: Arc<AtomicU64>,
    /// `true` while it answers no question of where a database is.
    silent: Arc<AtomicBool>,
    /// The time that it takes to answer one.
    delay: Duration,
    /// `true` while it finds every plan misconfigured.
    misconfigured: Arc<AtomicBool>,
}

impl FakeControlPlane {
    /// A router that creates the databases of its tenants on `backend`.
    pub(crate) fn router(backend: &Backend) -> RouterBuilder {
        Self::router_with(backend, |provisioner| provisioner)
    }

    /// The same, with a provisioner that is set up first.
    pub(crate) fn router_with(
        backend: &Backend,
        set_up: impl FnOnce(Provisioner) -> Provisioner,
    ) -> RouterBuilder {
        let control_plane = Self {
            backend: backend.clone(),
            orders: Mutex::default(),
            reads: Arc::default(),
            silent: Arc::default(),
            delay: Duration::ZERO,
            misconfigured: Arc::default(),
        };
        let provisioner = Provisioner::new(Memory::new(), control_plane, "test").on_first_access();
        backend.configure(TenantRouter::provisioning(set_up(provisioner)))
    }

    /// A provisioner that creates on `backend` and records in `records`.
    pub(crate) fn provisioner(backend: &Backend, records: impl Catalog) -> Provisioner {
        Provisioner::new(
            records,
            Self::with_read_counter(backend, Arc::default()),
            "test",
        )
        .on_first_access()
    }

    /// One that counts in `reads` how often it is asked where a database is.
    pub(crate) fn with_read_counter(backend: &Backend, reads: Arc<AtomicU64>) -> Self {
        Self {
            backend: backend.clone(),
            orders: Mutex::default(),
            reads,
            silent: Arc::default(),
            delay: Duration::ZERO,
            misconfigured: Arc::default(),
        }
    }

    /// One that takes so long to answer a question of where a database is.
    pub(crate) fn slow(backend: &Backend, delay: Duration) -> Self {
        Self {
            delay,
            ..Self::with_read_counter(backend, Arc::default())
        }
    }

    /// One that answers no question of where a database is as long as `silent`.
    pub(crate) fn silent_while(backend: &Backend, silent: Arc<AtomicBool>) -> Self {
        Self {
            silent,
            ..Self::with_read_counter(backend, Arc::default())
        }
    }

    /// One that finds every plan misconfigured as long as `misconfigured`.
    pub(crate) fn misconfigured_while(backend: &Backend, misconfigured: Arc<AtomicBool>) -> Self {
        Self {
            misconfigured,
            ..Self::with_read_counter(backend, Arc::default())
        }
    }
}

impl ControlPlane for FakeControlPlane {
    async fn check(&self, _: &Plan, _: &Progress) -> Result<(), Error> {
        if self.misconfigured.load(Relaxed) {
            return Err(Error::new(ErrorKind::Misconfigured, "not like this"));
        }
        Ok(())
    }

    async fn find(&self, name: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Ok(self.found(|order| order.name == name))
    }

    async fn list(&self, prefix: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Ok(self.found(|order| order.name.starts_with(prefix)))
    }

    async fn tags(
        &self,
        id: &str,
        _: &Progress,
    ) -> Result<Option<BTreeMap<String, String>>, Error> {
        let orders = self.orders.lock().unwrap();
        let order_of_id = orders.iter().find(|order| tenant(order) == id);
        Ok(order_of_id.map(|order| order.tags.clone()))
    }

    async fn create(&self, order: &Order, _: &Progress) -> Result<Database, Error> {
        if self.backend.wait_at(Step::Create).await.is_err() {
            return Err(Error::new(ErrorKind::Refused, "none was created"));
        }
        self.backend.update_counts(|counts| counts.created += 1);
        self.orders.lock().unwrap().push(order.clone());
        Ok(database(tenant(order)))
    }

    async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Ok(())
    }

    async fn database(
        &self,
        id: &str,
        _: Option<&Login>,
        _: &Progress,
    ) -> Result<Option<Database>, Error> {
        self.reads.fetch_add(1, Relaxed);
        if self.silent.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        sleep(self.delay).await;
        Ok(Some(database(id)))
    }

    async fn delete(&self, id: &str, _: &Progress) -> Result<(), Error> {
        self.orders.lock().unwrap().retain(|it| tenant(it) != id);
        Ok(())
    }

    async fn recover(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Err(Error::new(ErrorKind::NotFound, "nothing is kept here"))
    }
}

impl FakeControlPlane {
    fn found(&self, is_wanted: impl Fn(&Order) -> bool) -> Vec<Found> {
        let orders = self.orders.lock().unwrap();
        let wanted = orders.iter().filter(|order| is_wanted(order));
        wanted
            .map(|order| Found::new(tenant(order), &order.name, None))
            .collect()
    }
}

fn database(id: &str) -> Database {
    Database::new(Placement::new(id), Backend::endpoint(id))
}

/// Returns the tenant that a database is for, which is the database's id here.
fn tenant(order: &Order) -> &str {
    &order.tags["tenantry-tenant"]
}
