//! The policy that decides which tenants get a database on first access.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::model::{
    error::{BoxError, Error, ErrorKind},
    plan::Plan,
    tenant::TenantId,
};

/// The [decision](crate::Provisioner::decide) about a tenant without a database.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Decision {
    /// The tenant gets a database by this plan.
    Create(Plan),
    /// There is no such tenant.
    Refuse,
}

type Answer = Pin<Box<dyn Future<Output = Result<Decision, BoxError>> + Send>>;

/// The policy that decides which tenants get a database on first access.
#[derive(Clone)]
pub(super) enum Policy {
    /// Every tenant.
    OnFirstAccess,
    /// No tenant: databases are created by explicit calls.
    Explicit,
    /// The tenants that the application allows.
    Ask(Arc<dyn Fn(TenantId) -> Answer + Send + Sync>),
}

impl Policy {
    pub(super) fn ask<Fut>(decide: impl Fn(TenantId) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<Decision, BoxError>> + Send + 'static,
    {
        Self::Ask(Arc::new(move |tenant| Box::pin(decide(tenant))))
    }

    /// Returns the plan for an accessed tenant without a database. `usual` applies if the application names no other.
    /// `begun` is `true` if an earlier call was allowed to create the database.
    pub(super) async fn plan(
        &self,
        tenant: &TenantId,
        usual: &Plan,
        begun: bool,
    ) -> Result<Plan, Error> {
        match self {
            Self::OnFirstAccess => Ok(usual.clone()),
            Self::Explicit if begun => Ok(usual.clone()),
            Self::Explicit => Err(unknown(
                "no such tenant, and no policy creates it on access; create it with `Fleet::provision`, or set a \
                 policy: `Provisioner::decide` or `on_first_access`",
            )),
            Self::Ask(decide) => match decide(tenant.clone()).await {
                Ok(Decision::Create(plan)) => Ok(plan),
                Ok(Decision::Refuse) => Err(unknown(
                    "no such tenant, and the policy of the application does not create it",
                )),
                Err(err) => {
                    let message = "the policy of the application failed to decide whether to create the tenant";
                    Err(Error::new(ErrorKind::Catalog, message).with_source(err))
                }
            },
        }
    }
}

fn unknown(message: &'static str) -> Error {
    Error::new(ErrorKind::UnknownTenant, message)
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnFirstAccess => "OnFirstAccess",
            Self::Explicit => "Explicit",
            Self::Ask(_) => "Ask",
        })
    }
}
