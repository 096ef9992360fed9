//! The conversion of a bare client into deadpool-postgres's `Client`.

use std::{pin::Pin, sync::Mutex};

use deadpool_postgres::{Client, Manager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::sync::lock;

/// Converts a bare client into deadpool-postgres's `Client`.
///
/// deadpool-postgres implements `GenericClient` for pooled objects only, and only its own manager creates those. So a
/// deadpool pool of size one creates the object and is dropped. The object outlives that pool, and tenantry does the
/// pooling.
pub(super) fn into_pooled_client(
    client: tokio_postgres::Client,
    stand_in: JoinHandle<()>,
) -> Option<Client> {
    let config = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_connect(
        tokio_postgres::Config::new(),
        OneShotConnect(Mutex::new(Some((client, stand_in)))),
        config,
    );
    let pool = deadpool_postgres::Pool::builder(manager)
        .max_size(1)
        .build()
        .ok()?;
    pool.get().now_or_never()?.ok()
}

/// Returns the client of a finished dial, once.
struct OneShotConnect(Mutex<Option<(tokio_postgres::Client, JoinHandle<()>)>>);

type Connected<'a> = Pin<
    Box<
        dyn Future<Output = Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>>
            + Send
            + 'a,
    >,
>;

impl deadpool_postgres::Connect for OneShotConnect {
    fn connect(&self, _: &tokio_postgres::Config) -> Connected<'_> {
        // The driver's errors cannot be constructed. A setting that the driver refuses yields one.
        let empty = || {
            "port=none"
                .parse::<tokio_postgres::Config>()
                .map(|_| unreachable!("not a port"))
        };
        let taken = lock(&self.0).take().map_or_else(empty, Ok);
        Box::pin(std::future::ready(taken))
    }
}
