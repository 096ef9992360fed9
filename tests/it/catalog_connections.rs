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
    Balancer, Fate, LEASE, LONG, chain, column, keys, leased, publish, replica, session, tenant,
};

const SECOND: Duration = Duration::from_secs(1);
/// A moment in which nothing must be heard.
const QUIET: Duration = Duration::from_millis(300);

/// Listens until nothing is heard any more.
async fn hear_all(catalog: &Postgres) {
    timeout(LONG, catalog.changed()).await.expect("it listens");
    while timeout(QUIET, catalog.changed()).await.is_ok() {}
}

#[tokio::test]
async fn every_clone_of_a_catalog_hears_of_a_write_also_one_that_was_not_waiting_then() {
    let server = CatalogServer::start().await.unwrap();
    let writer = replica(&server).build().unwrap();
    let waits = replica(&server).build().unwrap();
    let busy = waits.clone(); // as a second router of the process has it
    hear_all(&waits).await;
    hear_all(&busy).await;
    publish(&writer, "acme").await;
    hear_all(&waits).await;
    timeout(LONG, busy.changed())
        .await
        .expect("a ring that another clone has heard");
}

/// A catalog by way of `balancer`, with as many sessions as its pool has.
async fn warmed(balancer: &Balancer, builder: PostgresBuilder) -> Postgres {
    let catalog = builder.build().unwrap();
    while balancer.opened() < 4 {
        find_by_eight(&catalog).await;
    }
    catalog
}

fn through(balancer: &Balancer) -> PostgresBuilder {
    let catalog = Postgres::builder(balancer.url()).namespace("test");
    catalog.keys(keys()).listen(false)
}

async fn find_by_eight(catalog: &Postgres) {
    let acme = tenant("acme");
    for found in join_all((0..8).map(|_| catalog.find(&acme))).await {
        found.unwrap();
    }
}

#[tokio::test]
async fn sockets_that_lead_nowhere_cost_one_call_its_time_and_no_other() {
    let server = CatalogServer::start().await.unwrap();
    let balancer = Balancer::to(&server).await;
    let catalog = warmed(&balancer, through(&balancer).timeout(2 * SECOND)).await;
    balancer.doom(Fate::Silent);
    let err = catalog.find(&tenant("acme")).await.unwrap_err();
    assert!(err.to_string().contains("did not answer within 2s"));
    for _ in 0..3 {
        find_by_eight(&catalog).await;
    }
}

#[tokio::test]
async fn a_socket_that_is_found_closed_costs_no_call_anything() {
    let server = CatalogServer::start().await.unwrap();
    let balancer = Balancer::to(&server).await;
    let catalog = warmed(&balancer, through(&balancer)).await;
    let (lease, mut record) = leased(&catalog, "acme").await;
    for fate in [Fate::Reset, Fate::Unanswered] {
        for turn in 0..4 {
            find_by_eight(&catalog).await;
            let opened = balancer.opened();
            balancer.doom(fate);
            match turn {
                0 => assert!(catalog.find(&tenant("acme")).await.unwrap().is_some()),
                1 => assert_eq!(leased(&catalog, "acme").await.0, lease, "{fate:?}"),
                2 => {
                    record.schema_version += 1;
                    let wrote = catalog.write(&lease, &record, AfterWrite::Keep).await;
                    assert!(wrote.unwrap(), "{fate:?}");
                }
                _ => assert_eq!(catalog.list(None, 10).await.unwrap().len(), 1),
            }
            assert_eq!(
                balancer.opened(),
                opened + 1,
                "{fate:?}: the siblings are gone, too"
            );
        }
    }
    let found = catalog.find(&tenant("acme")).await.unwrap().unwrap();
    assert_eq!(found.schema_version, record.schema_version);
}

/// Waits until nothing but this session is at the server and waits for a lock.
async fn until_one_waits(admin: &Client) -> String {
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
    let catalog = replica(&server).timeout(LONG).build().unwrap();
    publish(&catalog, "acme").await;
    let (admin, holder) = (session(&server.url()).await, session(&server.url()).await);
    let lock = "BEGIN; SELECT FROM tenantry.tenants WHERE tenant = 'acme' FOR UPDATE";
    holder.batch_execute(lock).await.unwrap();
    let acme = tenant("acme");
    let end = async {
        let first = until_one_waits(&admin).await;
        column(&admin, &format!("SELECT pg_terminate_backend({first})")).await;
        while until_one_waits(&admin).await == first {}
        holder.batch_execute("COMMIT").await.unwrap();
    };
    let (answer, ()) = tokio::join!(catalog.lease(&acme, "it", LEASE), end);
    assert!(matches!(answer.unwrap(), Leased::Granted(..)));
}

#[tokio::test]
async fn sessions_of_a_time_in_which_the_server_took_no_writes_are_replaced() {
    let server = CatalogServer::start().await.unwrap();
    let admin = session(&server.url()).await;
    publish(&replica(&server).build().unwrap(), "acme").await;
    let role = |change: &str| format!("ALTER ROLE neondb_owner {change}");
    let read_only = role("SET default_transaction_read_only = on");
    admin.batch_execute(&read_only).await.unwrap();
    let catalog = replica(&server).listen(false).build().unwrap();
    find_by_eight(&catalog).await;
    let id = tenant("acme");
    let err = catalog.lease(&id, "it", LEASE).await.unwrap_err();
    assert!(err.to_string().contains("takes no writes"), "{err}");
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
        let answer = answer.unwrap_or_else(|err| panic!("{}", chain(&err)));
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
    let one = replica(&server).listen(false).pool_size(1);
    let catalog = one.clone().build().unwrap();
    publish(&catalog, "acme").await;
    let first = pids(&admin).await;
    for _ in 0..10 {
        find_by_eight(&catalog).await;
    }
    assert_eq!((pids(&admin).await, first.len()), (first, 1));
    drop(catalog);
    let catalog = one.max_lifetime(SECOND / 2).build().unwrap();
    let mut seen = BTreeSet::new();
    let replaced = async {
        while seen.len() < 4 {
            find_by_eight(&catalog).await;
            seen.extend(pids(&admin).await);
        }
    };
    timeout(LONG, replaced).await.unwrap();
}

#[tokio::test]
async fn changes_say_which_server_answered_and_whether_it_was_started_again() {
    let (server, standby) = tokio::join!(CatalogServer::start(), CatalogServer::start());
    let (server, standby) = (server.unwrap(), standby.unwrap());
    let catalog = replica(&server).listen(false).build().unwrap();
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
    let elsewhere = replica(&standby).listen(false).build().unwrap();
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
