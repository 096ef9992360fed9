//! Callers that use a tenant again and again, in every way that an application does.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tenantry::{Error, TenantRouter, TransactionOptions, deadpool_postgres::Client};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{GET_TIMEOUT, LoadTest};

/// An action of a caller.
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

/// Makes calls until the load test is over.
pub(super) async fn run(load_test: Arc<LoadTest>, mut rng: Rng) {
    while load_test.is_open() {
        let tenant = load_test.pick_tenant(&mut rng);
        let call = *rng.choice(&CALLS).unwrap();
        let began = Instant::now();
        let end = call.run_once(&load_test.router, &load_test.tenants[tenant].id, &mut rng);
        let end = end.await;
        load_test.record_result(tenant, &format!("{call:?}"), began, &end);
        random_pause(&mut rng, 100).await;
    }
}

/// Holds one connection until it `is_over`, and tries again if it gets none in time.
pub(super) async fn hold_until_over(
    load_test: Arc<LoadTest>,
    tenant: usize,
    direct: bool,
    mut is_over: watch::Receiver<bool>,
) {
    let (router, id) = (&load_test.router, &load_test.tenants[tenant].id);
    router.evict(id); // and with it what was refused
    while !*is_over.borrow() {
        let began = Instant::now();
        let end = hold_connection(router, id, direct, &mut is_over).await;
        load_test.record_result(tenant, "Stay", began, &end);
    }
}

async fn hold_connection(
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
    async fn run_once(
        self,
        router: &TenantRouter,
        tenant: &str,
        rng: &mut Rng,
    ) -> Result<(), Error> {
        let options = TransactionOptions::new().timeout(GET_TIMEOUT);
        match self {
            Self::Query => select_one(&*router.get(tenant).await?).await,
            Self::Hold => hold_for_a_while(&*router.get(tenant).await?, rng).await,
            Self::Direct => hold_for_a_while(&*router.direct(tenant).await?, rng).await,
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
                let served = async { select_one(&*router.get(tenant).await?).await };
                timeout(patience, served).await.unwrap_or(Ok(()))
            }
            Self::Abandon => abandon_query(&*router.get(tenant).await?, rng).await,
            Self::AbandonDirect => abandon_query(&*router.direct(tenant).await?, rng).await,
        }
    }
}

async fn select_one(client: &Client) -> Result<(), Error> {
    let row = client.query_typed("SELECT 1", &[]).await?;
    assert_eq!(row[0].get::<_, i32>(0), 1);
    Ok(())
}

async fn hold_for_a_while(client: &Client, rng: &mut Rng) -> Result<(), Error> {
    select_one(client).await?;
    random_pause(rng, 1200).await;
    select_one(client).await
}

/// Drops a query that would take longer.
async fn abandon_query(client: &Client, rng: &mut Rng) -> Result<(), Error> {
    let patience = Duration::from_millis(rng.u64(..50));
    let query = client.batch_execute("SELECT pg_sleep(0.3)");
    Ok(timeout(patience, query).await.unwrap_or(Ok(()))?)
}

async fn random_pause(rng: &mut Rng, most: u64) {
    sleep(Duration::from_millis(rng.u64(..most))).await;
}
