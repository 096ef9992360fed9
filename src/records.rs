//! The catalog that tenantry keeps itself: tenant → endpoint, and who may create one.

mod memory;

use std::future::Future;

pub use memory::Memory;

use crate::{
    endpoint::Endpoint,
    error::BoxError,
    lookup::{Answer, Lookup},
    tenant::{Namespace, TenantId},
};

/// A catalog in which tenantry records the databases that it creates.
///
/// [`Memory`] needs no set-up and serves one process: after a restart it is empty, and each tenant's project is found
/// again by its name. One value serves one namespace.
pub trait Records: Lookup {
    /// Claims the right to create the database of `tenant`. Every claim outdates the ones before it.
    fn claim(
        &self,
        namespace: &Namespace,
        tenant: &TenantId,
    ) -> impl Future<Output = Result<Claim, BoxError>> + Send;

    /// Records that `tenant` lives at `endpoint`. Must fail if `claim` is not the latest one.
    fn publish(
        &self,
        tenant: &TenantId,
        claim: Claim,
        endpoint: Endpoint,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// The right to create one tenant's database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Claim {
    /// Rises with every claim on the tenant, so that a late writer is told from the present one.
    pub token: u64,
    /// Whether it is certain that nobody has tried to create the database before. If so, nobody looks for one.
    pub fresh: bool,
}

impl Claim {
    /// A claim for implementors to hand out.
    pub fn new(token: u64, fresh: bool) -> Self {
        Self { token, fresh }
    }
}

/// [`Records`] with its type erased.
pub(crate) trait AnyRecords: Send + Sync {
    fn lookup<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Endpoint>>;
    fn claim<'a>(&'a self, namespace: &'a Namespace, tenant: &'a TenantId) -> Answer<'a, Claim>;
    fn publish<'a>(
        &'a self,
        tenant: &'a TenantId,
        claim: Claim,
        endpoint: Endpoint,
    ) -> Answer<'a, ()>;
}

impl<R: Records> AnyRecords for R {
    fn lookup<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<Endpoint>> {
        Box::pin(Lookup::lookup(self, tenant))
    }

    fn claim<'a>(&'a self, namespace: &'a Namespace, tenant: &'a TenantId) -> Answer<'a, Claim> {
        Box::pin(Records::claim(self, namespace, tenant))
    }

    fn publish<'a>(
        &'a self,
        tenant: &'a TenantId,
        claim: Claim,
        endpoint: Endpoint,
    ) -> Answer<'a, ()> {
        Box::pin(Records::publish(self, tenant, claim, endpoint))
    }
}
