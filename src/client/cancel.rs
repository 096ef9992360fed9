//! Stopping what runs on a connection, from elsewhere.

use std::{fmt, sync::Arc};

use crate::{
    connection::status::ConnectionStatus,
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, ErrorKind, Stage},
    },
    pool::shared::Shared,
};

/// Stops the query that runs on a connection, from another task. Of
/// [`TenantClient::cancel_token`](crate::TenantClient::cancel_token) and its like.
///
/// tokio-postgres's own `cancel_query` cannot work here: it would look for the server's address in settings that do not
/// have one, because the router opens the sockets itself.
#[derive(Clone)]
#[must_use = "it stops nothing until `cancel` is called"]
pub struct CancelToken {
    token: tokio_postgres::CancelToken,
    endpoint: Arc<Endpoint>,
    route: Route,
    watch: Arc<ConnectionStatus>,
    loan: u64,
    shared: Arc<Shared>,
}

impl CancelToken {
    pub(crate) fn new(
        client: &tokio_postgres::Client,
        endpoint: &Arc<Endpoint>,
        route: Route,
        watch: &Arc<ConnectionStatus>,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            token: client.cancel_token(),
            endpoint: Arc::clone(endpoint),
            route,
            watch: Arc::clone(watch),
            loan: watch.loan(),
            shared: Arc::clone(shared),
        }
    }

    /// Asks the server to stop what runs on the connection now, at the address at which the connection was opened. The
    /// query then fails with SQLSTATE 57014, if it was not done already; nobody tells whether it was. Does nothing once the
    /// connection was given back.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] if the request did not reach the server within 2 seconds.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the request unsent.
    pub async fn cancel(&self) -> Result<(), Error> {
        // A connection that is given back after this goes to nobody else: the request may still be under way.
        if self.watch.is_closing() || !self.watch.mark_cancelled(self.loan) {
            return Ok(());
        }
        self.cancel_now().await
    }

    /// The same without a look at whose the connection is now.
    pub(crate) async fn cancel_now(&self) -> Result<(), Error> {
        let Self {
            token,
            endpoint,
            route,
            watch,
            shared,
            ..
        } = self;
        let sent = shared
            .dialer
            .cancel(token.clone(), endpoint, *route, watch.peer.get());
        sent.await.map_err(|err| {
            Error::new(ErrorKind::Connect, "the cancel request did not get through")
                .with_stage(Stage::Query)
                .with_source(err)
        })
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").finish_non_exhaustive()
    }
}
