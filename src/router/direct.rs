//! Direct connections of a tenant, which bypass the pooler.

use tokio::time::Instant;

use tracing::Instrument;

use super::{Inner, TenantRouter};
use crate::{
    client::direct::DirectClient,
    model::{error::Error, tenant::TenantId},
    pool::Unserved,
    provision::source::OnMissing,
    telemetry::spans,
};

impl TenantRouter {
    /// Opens a connection to the database of `tenant` that bypasses the pooler, for what transaction pooling cannot do:
    /// migrations, `LISTEN`, `COPY`, session state. It is opened for this caller, and closed when it is dropped. At
    /// most [`direct_connections`](crate::RouterBuilder::direct_connections) of a tenant are open at once.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get). If no place is free within `get_timeout`, returns `ErrorKind::Timeout`
    /// at [`Stage::Checkout`](crate::Stage::Checkout).
    ///
    /// # Cancel safety
    /// Dropping the future closes a connection that was opened; a look-up, a creation or a wake under way goes on.
    pub async fn direct<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<DirectClient, Error> {
        let inner = &self.inner;
        inner.direct(tenant.as_ref(), OnMissing::AskPolicy).await
    }
}

impl Inner {
    pub(super) async fn direct(
        &self,
        tenant: &str,
        on_missing: OnMissing,
    ) -> Result<DirectClient, Error> {
        let Self { pools, shared, .. } = self;
        let tenant = TenantId::parse(tenant).map_err(Error::from);
        let tenant = tenant.inspect_err(|err| shared.stats.broke(err))?;
        let until = Instant::now() + shared.config.get_timeout;
        let span = spans::direct(tenant.as_str());
        let open = async {
            if shared.life.is_stopping() {
                return Err(Error::closed());
            }
            let slot = self.take_caller_slot(&tenant, None, self.shared.clock.now().nanos)?;
            let mut known = pools.find(tenant.as_str());
            let opened = loop {
                let pool = if let Some(pool) = known.take() {
                    pool
                } else {
                    let left = until.saturating_duration_since(Instant::now());
                    self.locate(&tenant, on_missing, left).await?.pool
                };
                match DirectClient::open(pool, until).await {
                    Err(Unserved::Relocate(_)) if Instant::now() < until => {}
                    opened => break opened.map_err(Unserved::into_error)?,
                }
            };
            slot.served(self.shared.clock.now().nanos);
            Ok(opened)
        };
        let opened = tokio::select! {
            biased;
            () = shared.life.terminated() => Err(Error::closed()),
            opened = open.instrument(span.clone()) => opened,
        };
        let opened = opened.map_err(|err| err.with_tenant(&tenant));
        spans::end_direct(&span, opened.as_ref().err());
        if let Err(err) = &opened {
            shared.stats.broke(err);
            self.note_failing(err);
        }
        opened
    }
}
