//! deadpool-postgres's client of a bare connection.

use std::{pin::Pin, sync::Mutex};

use deadpool_postgres::{Client, Manager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::sync::lock;

/// Makes deadpool-postgres's client of a bare one.
///
/// Its `GenericClient` is implemented for pooled objects only, and only its own manager makes those. So a pool of one
/// makes the one object and is dropped; the object lives on by itself, and the pooling is ours.
pub(crate) fn into_pooled_client(
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

/// Takes what a finished dial has brought, once.
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
        // The driver's errors cannot be made by hand; a setting that it refuses gives one.
        let empty = || {
            "port=none"
                .parse::<tokio_postgres::Config>()
                .map(|_| unreachable!("not a port"))
        };
        let taken = lock(&self.0).take().map_or_else(empty, Ok);
        Box::pin(std::future::ready(taken))
    }
}
