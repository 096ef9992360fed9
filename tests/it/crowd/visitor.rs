//! Those who want something of a tenant, again and again, and behave as callers do.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tenantry::{Error, TenantRouter, TransactionOptions, deadpool_postgres::Client};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{PATIENCE, Town};

/// What a visitor does.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// Asks something.
    Query,
    /// Keeps a connection for a while.
    Hold,
    Read,
    Transaction,
    Direct,
    Warm,
    Hint,
    /// Leaves before it is served, or a moment after.
    Leave,
    /// Drops a query half-way.
    Abandon,
    AbandonDirect,
}

/// As often as they stand here.
const CALLS: [Call; 20] = [
    Call::Query,
    Call::Query,
    Call::Query,
    Call::Query,
    Call::Hold,
    Call::Hold,
    Call::Hold,
    Call::Hold,
    Call::Read,
    Call::Transaction,
    Call::Transaction,
    Call::Transaction,
    Call::Direct,
    Call::Direct,
    Call::Warm,
    Call::Hint,
    Call::Leave,
    Call::Leave,
    Call::Abandon,
    Call::AbandonDirect,
];

/// Comes again and again, as long as the town is open.
pub(super) async fn come(town: Arc<Town>, mut rng: Rng) {
    while town.is_open() {
        let tenant = town.pick(&mut rng);
        let call = *rng.choice(&CALLS).unwrap();
        let began = Instant::now();
        let end = call.make(&town.router, &town.tenants[tenant].id, &mut rng);
        let end = end.await;
        town.note(tenant, &format!("{call:?}"), began, &end);
        moment(&mut rng, 100).await;
    }
}

/// Keeps one connection until it `is_over`, and comes again if the tenant cannot be had in time.
pub(super) async fn stay(
    town: Arc<Town>,
    tenant: usize,
    direct: bool,
    mut is_over: watch::Receiver<bool>,
) {
    let (router, id) = (&town.router, &town.tenants[tenant].id);
    router.evict(id); // and with it what was refused
    while !*is_over.borrow() {
        let began = Instant::now();
        let end = keep(router, id, direct, &mut is_over).await;
        town.note(tenant, "Stay", began, &end);
    }
}

async fn keep(
    router: &TenantRouter,
    tenant: &str,
    direct: bool,
    is_over: &mut watch::Receiver<bool>,
) -> Result<(), Error> {
    let over = is_over.wait_for(|over| *over);
    if direct {
        let _client = router.direct(tenant).await?;
        over.await.unwrap();
    } else {
        let _client = router.get(tenant).await?;
        over.await.unwrap();
    }
    Ok(())
}

impl Call {
    async fn make(self, router: &TenantRouter, tenant: &str, rng: &mut Rng) -> Result<(), Error> {
        let options = TransactionOptions::new().timeout(PATIENCE);
        match self {
            Self::Query => ask(&*router.get(tenant).await?).await,
            Self::Hold => hold(&*router.get(tenant).await?, rng).await,
            Self::Direct => hold(&*router.direct(tenant).await?, rng).await,
            Self::Read => {
                let time = rng.u64(..100);
                let read = router.read_with(tenant, &options, |tx| async move {
                    tx.batch_execute("SELECT 1").await?;
                    sleep(Duration::from_millis(time)).await;
                    Ok(())
                });
                read.await
            }
            Self::Transaction => {
                let time = rng.u64(..300);
                let transaction = router.transaction_with(tenant, &options, |tx| async move {
                    tx.batch_execute("SELECT pg_current_xact_id()").await?;
                    sleep(Duration::from_millis(time)).await;
                    Ok(())
                });
                transaction.await
            }
            Self::Warm if rng.bool() => router.warm(tenant).wait().await,
            Self::Warm => {
                drop(router.warm(tenant));
                Ok(())
            }
            Self::Hint => {
                router.hint(tenant);
                Ok(())
            }
            Self::Leave => {
                let patience = Duration::from_millis(rng.u64(..100));
                let served = async { ask(&*router.get(tenant).await?).await };
                timeout(patience, served).await.unwrap_or(Ok(()))
            }
            Self::Abandon => abandon(&*router.get(tenant).await?, rng).await,
            Self::AbandonDirect => abandon(&*router.direct(tenant).await?, rng).await,
        }
    }
}

async fn ask(client: &Client) -> Result<(), Error> {
    let row = client.query_typed("SELECT 1", &[]).await?;
    assert_eq!(row[0].get::<_, i32>(0), 1);
    Ok(())
}

async fn hold(client: &Client, rng: &mut Rng) -> Result<(), Error> {
    ask(client).await?;
    moment(rng, 1200).await;
    ask(client).await
}

/// Drops a query that would take longer.
async fn abandon(client: &Client, rng: &mut Rng) -> Result<(), Error> {
    let patience = Duration::from_millis(rng.u64(..50));
    let query = client.batch_execute("SELECT pg_sleep(0.3)");
    Ok(timeout(patience, query).await.unwrap_or(Ok(()))?)
}

async fn moment(rng: &mut Rng, most: u64) {
    sleep(Duration::from_millis(rng.u64(..most))).await;
}
