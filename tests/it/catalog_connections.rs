//! The connections that a catalog in Postgres has: what is heard on them, how old they get, and what ends them.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tenantry::{
    Catalog,
    catalog::{AfterWrite, Leased, Postgres, PostgresBuilder},
    emulator::CatalogServer,
    tokio_postgres::Client,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    ConnectionLoss, LEASE, LONG, LossyProxy, catalog_builder, column, error_chain, keys, publish,
    session, take_lease, tenant,
};

const SECOND: Duration = Duration::from_secs(1);
/// A moment in which nothing must be heard.
const QUIET: Duration = Duration::from_millis(300);

/// Listens until nothing is heard any more.
async fn drain_notifications(catalog: &Postgres) {
    timeout(LONG, catalog.changed()).await.expect("it listens");
    while timeout(QUIET, catalog.changed()).await.is_ok() {}
}

#[tokio::test]
async fn every_clone_of_a_catalog_is_notified_of_a_write_even_if_it_was_not_waiting() {
    let server = CatalogServer::start().await.unwrap();
    let writer = catalog_builder(&server).build().unwrap();
    let waits = catalog_builder(&server).build().unwrap();
    let busy = waits.clone(); // as a second router of the process has it
    drain_notifications(&waits).await;
    drain_notifications(&busy).await;
    publish(&writer, "acme").await;
    drain_notifications(&waits).await;
    timeout(LONG, busy.changed())
        .await
        .expect("a ring that another clone has heard");
}

/// A catalog by way of `proxy`, with as many sessions as its pool has.
async fn with_full_pool(proxy: &LossyProxy, builder: PostgresBuilder) -> Postgres {
    let catalog = builder.build().unwrap();
    while proxy.opened() < 4 {
        find_eight_times(&catalog).await;
    }
    catalog
}

fn builder_through(proxy: &LossyProxy) -> PostgresBuilder {
    let catalog = Postgres::builder(proxy.url()).namespace("test");
    catalog.keys(keys()).listen(false)
}

async fn find_eight_times(catalog: &Postgres) {
    let acme = tenant("acme");
    for found in join_all((0..8).map(|_| catalog.find(&acme))).await {
        found.unwrap();
    }
}

#[tokio::test]
async fn silent_sockets_time_out_one_call_and_delay_no_other() {
    let server = CatalogServer::start().await.unwrap();
    let proxy = LossyProxy::to(&server).await;
    let catalog = with_full_pool(&proxy, builder_through(&proxy).timeout(2 * SECOND)).await;
    proxy.lose_open_connections(ConnectionLoss::Silent);
    let err = catalog.find(&tenant("acme")).await.unwrap_err();
    assert!(err.to_string().contains("did not answer within 2s"));
    for _ in 0..3 {
        find_eight_times(&catalog).await;
    }
}

#[tokio::test]
async fn a_call_on_a_closed_socket_succeeds_on_a_new_one() {
    let server = CatalogServer::start().await.unwrap();
    let proxy = LossyProxy::to(&server).await;
    let catalog = with_full_pool(&proxy, builder_through(&proxy)).await;
    let (lease, mut record) = take_lease(&catalog, "acme").await;
    for loss in [ConnectionLoss::Reset, ConnectionLoss::Unanswered] {
        for turn in 0..4 {
            find_eight_times(&catalog).await;
            let opened = proxy.opened();
            proxy.lose_open_connections(loss);
            match turn {
                0 => assert!(catalog.find(&tenant("acme")).await.unwrap().is_some()),
                1 => assert_eq!(take_lease(&catalog, "acme").await.0, lease, "{loss:?}"),
                2 => {
                    record.schema.version += 1;
                    let wrote = catalog.write(&lease, &record, AfterWrite::Keep).await;
                    assert!(wrote.unwrap(), "{loss:?}");
                }
                _ => assert_eq!(catalog.list(None, 10).await.unwrap().len(), 1),
            }
            assert_eq!(
                proxy.opened(),
                opened + 1,
                "{loss:?}: the siblings are gone, too"
            );
        }
    }
    let found = catalog.find(&tenant("acme")).await.unwrap().unwrap();
    assert_eq!(found.schema.version, record.schema.version);
}

/// Waits until nothing but this session is at the server and waits for a lock.
async fn wait_for_one_blocked(admin: &Client) -> String {
    let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let one = async {
        loop {
            if let [pid] = &*column(admin, waiting).await {
                return pid.clone();
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, one).await.unwrap()
}

#[tokio::test]
async fn a_statement_whose_session_the_operator_ends_is_run_on_another_one() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).timeout(LONG).build().unwrap();
    publish(&catalog, "acme").await;
    let (admin, holder) = (session(&server.url()).await, session(&server.url()).await);
    let lock = "BEGIN; SELECT FROM tenantry.tenants WHERE tenant = 'acme' FOR UPDATE";
    holder.batch_execute(lock).await.unwrap();
    let acme = tenant("acme");
    let end = async {
        let first = wait_for_one_blocked(&admin).await;
        column(&admin, &format!("SELECT pg_terminate_backend({first})")).await;
        while wait_for_one_blocked(&admin).await == first {}
        holder.batch_execute("COMMIT").await.unwrap();
    };
    let (answer, ()) = tokio::join!(catalog.lease(&acme, "it", LEASE), end);
    assert!(matches!(answer.unwrap(), Leased::Granted(..)));
}

#[tokio::test]
async fn sessions_opened_while_the_server_was_read_only_are_replaced() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    publish(&catalog_builder(&server).build().unwrap(), "acme").await;
    let role = |change: &str| format!("ALTER ROLE neondb_owner {change}");
    let read_only = role("SET default_transaction_read_only = on");
    admin.batch_execute(&read_only).await.unwrap();
    let catalog = catalog_builder(&server).listen(false).build().unwrap();
    find_eight_times(&catalog).await;
    let id = tenant("acme");
    let err = catalog.lease(&id, "it", LEASE).await.unwrap_err();
    assert!(err.to_string().contains("accepts no writes"), "{err}");
    // None of its sessions was opened just now.
    let (youngest, began) = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenantry catalog'
            AND backend_start > clock_timestamp() - interval '1.5 seconds'",
        Instant::now(),
    );
    let writing = session(&server.url()).await;
    while !column(&writing, youngest).await.is_empty() {
        assert!(began.elapsed() < LONG);
        sleep(Duration::from_millis(20)).await;
    }
    let reset = role("RESET default_transaction_read_only");
    admin.batch_execute(&reset).await.unwrap();
    for _ in 0..8 {
        let answer = catalog.lease(&id, "it", LEASE).await;
        let answer = answer.unwrap_or_else(|err| panic!("{}", error_chain(&err)));
        assert!(matches!(answer, Leased::Granted(..)));
    }
}

/// The processes that serve the catalog's sessions.
async fn pids(admin: &Client) -> BTreeSet<String> {
    let pids = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenantry catalog'";
    column(admin, pids).await.into_iter().collect()
}

#[tokio::test]
async fn a_session_is_replaced_when_it_is_old_and_not_before() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    let one = catalog_builder(&server).listen(false).pool_size(1);
    let catalog = one.clone().build().unwrap();
    publish(&catalog, "acme").await;
    let first = pids(&admin).await;
    for _ in 0..10 {
        find_eight_times(&catalog).await;
    }
    assert_eq!((pids(&admin).await, first.len()), (first, 1));
    drop(catalog);
    let catalog = one.max_lifetime(SECOND / 2).build().unwrap();
    let mut seen = BTreeSet::new();
    let replaced = async {
        while seen.len() < 4 {
            find_eight_times(&catalog).await;
            seen.extend(pids(&admin).await);
        }
    };
    timeout(LONG, replaced).await.unwrap();
}

#[tokio::test]
async fn changes_say_which_server_answered_and_whether_it_was_started_again() {
    let (server, standby) = tokio::join!(CatalogServer::start(), CatalogServer::start());
    let (server, standby) = (server.unwrap(), standby.unwrap());
    let catalog = catalog_builder(&server).listen(false).build().unwrap();
    let incarnation = async |catalog: &Postgres, since: Option<u64>| {
        let changes = catalog.changes(since, 10).await;
        changes.unwrap().incarnation
    };
    let first = incarnation(&catalog, None).await;
    assert_ne!(first, 0);
    publish(&catalog, "acme").await;
    assert_eq!(incarnation(&catalog, Some(0)).await, first);
    let pooled = Postgres::builder(server.pooled_url().await.unwrap());
    let pooled = pooled.namespace("other").listen(false).build().unwrap();
    assert_eq!(incarnation(&pooled, None).await, first, "to every replica");
    let elsewhere = catalog_builder(&standby).listen(false).build().unwrap();
    assert_ne!(incarnation(&elsewhere, None).await, first);
    for stop in [true, false] {
        let before = incarnation(&catalog, None).await;
        if stop {
            server.stop().await;
        } else {
            server.crash().await;
        }
        server.resume().await.unwrap();
        assert_ne!(incarnation(&catalog, None).await, before);
    }
}
