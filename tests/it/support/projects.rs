//! A control plane by script, whose databases live on a scripted backend.

use std::sync::Mutex;

use tenantry::{
    ControlPlane, Created, Endpoint, Error, Found, Order, Progress, Provisioner, RouterBuilder,
    TenantId, TenantRouter, records::Memory,
};

use super::{backend::Backend, gate::Step};

/// The databases that were created, oldest first.
pub(crate) struct Projects {
    backend: Backend,
    orders: Mutex<Vec<Order>>,
}

impl Projects {
    /// A router that creates the databases of its tenants on `backend`.
    pub(crate) fn router(backend: &Backend) -> RouterBuilder {
        let projects = Self {
            backend: backend.clone(),
            orders: Mutex::default(),
        };
        let provisioner = Provisioner::new(Memory::new(), projects, "test");
        backend.at(TenantRouter::provisioning(provisioner))
    }
}

impl ControlPlane for Projects {
    async fn find(&self, name: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        let orders = self.orders.lock().unwrap();
        let named = orders.iter().filter(|order| order.name == name);
        Ok(named
            .map(|order| Found::new(tenant(order), order.tags.clone()))
            .collect())
    }

    async fn create(&self, order: &Order, _: &Progress) -> Result<Created, Error> {
        if self.backend.come_to(Step::Create).await.is_err() {
            // Of a kind that says that none was created.
            return Err(TenantId::parse("").unwrap_err().into());
        }
        self.backend.note(|counts| counts.created += 1);
        self.orders.lock().unwrap().push(order.clone());
        let tenant = tenant(order);
        Ok(Created::new(tenant, Backend::endpoint(tenant)))
    }

    async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
        Ok(())
    }

    async fn endpoint(&self, id: &str, _: &Progress) -> Result<Endpoint, Error> {
        Ok(Backend::endpoint(id))
    }
}

/// Whose database it is, which is its id here.
fn tenant(order: &Order) -> &str {
    &order.tags["tenantry-tenant"]
}
