//! The order of callers when a connection turns out to be dead, and what a lost connection says of the others.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;

use crate::support::{Backend, Gate, Step, TestEnv, eventually, query_text};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_caller_that_was_handed_a_dead_connection_is_still_the_first() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    drop(router.get("acme").await.unwrap());
    sleep(31 * SECOND).await; // so that the server is asked whether it lives
    backend.set(Step::Verify, Gate::Stuck);
    let served = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..3)
        .map(|number| {
            let (router, served) = (router.clone(), Arc::clone(&served));
            tokio::spawn(async move {
                sleep(Duration::from_millis(number)).await;
                let client = router.get("acme").await.unwrap();
                served.lock().unwrap().push(number);
                sleep(SECOND).await;
                drop(client);
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test]
async fn a_connection_that_serves_after_another_was_lost_proves_the_database_awake() {
    let env = TestEnv::new().await;
    let router = env.router();
    let (lost, serves) = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    lost.batch_execute("BEGIN").await.unwrap();
    let pid = query_text(&lost, "SELECT pg_backend_pid()").await;
    let kill = format!("SELECT pg_terminate_backend({pid})");
    serves.batch_execute(&kill).await.unwrap();
    eventually("the pooler has closed it", || lost.is_closed()).await;
    drop(lost);
    eventually("the router knows", || router.status().connections == 1).await;
    let is_asleep = || router.explain("acme").unwrap().pool.unwrap().asleep;
    assert!(is_asleep());
    sleep(Duration::from_millis(5)).await; // what is heard is known to the millisecond
    assert_eq!(query_text(&serves, "SELECT 1").await, "1");
    drop(serves);
    assert!(!is_asleep());
    let clients = tokio::join!(router.get("acme"), router.get("acme"));
    assert!(clients.0.is_ok() && clients.1.is_ok());
    assert_eq!(router.status().wakes_by_request.started, 1);
}
