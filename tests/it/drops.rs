//! Everything that an application holds may be dropped anywhere: on a thread without a runtime, and after the runtime
//! has ended.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use tenantry::{Error, TenantRouter, Tx, tokio_postgres::Client};
use tokio::{runtime::Runtime, time::timeout};

use crate::support::{LONG, TestEnv, eventually, query_text};

const SLOW: &str = "SELECT pg_sleep(600)";

/// Something to be dropped, and what it is.
type Droppable = (&'static str, Box<dyn Send>);
type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends a query that nobody waits for.
fn send_slow_query(client: &Client) {
    let query = client.batch_execute(SLOW);
    assert!(query.now_or_never().is_none());
}

/// `call`, polled until it is `done`, before it ends.
async fn poll_until<Fut>(call: Fut, what: &str, done: impl Fn() -> bool) -> Pending
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut call: Pending = Box::pin(call);
    tokio::select! {
        biased;
        () = &mut call => panic!("it ended: {what}"),
        () = eventually(what, done) => {}
    }
    call
}

/// Connections, in all states in which they can be left.
async fn open_connections(router: &TenantRouter) -> Vec<Droppable> {
    let mut droppables: Vec<Droppable> = Vec::new();
    for (what, sql) in [
        ("an idle connection", "SELECT 1"),
        ("a connection in a transaction", "BEGIN"),
    ] {
        let (pooled, direct) = (router.get("acme").await, router.direct("acme").await);
        let (pooled, direct) = (pooled.unwrap(), direct.unwrap());
        pooled.batch_execute(sql).await.unwrap();
        direct.batch_execute(sql).await.unwrap();
        let statement = pooled.prepare("SELECT 1").await.unwrap();
        droppables.push(("a statement", Box::new(statement)));
        droppables.push(("a token", Box::new(pooled.cancel_token())));
        droppables.push(("a token past the pooler", Box::new(direct.cancel_token())));
        droppables.push((what, Box::new(pooled)));
        droppables.push((what, Box::new(direct)));
    }
    let (pooled, direct) = (router.get("acme").await, router.direct("acme").await);
    let (pooled, direct) = (pooled.unwrap(), direct.unwrap());
    send_slow_query(&pooled);
    send_slow_query(&direct);
    droppables.push(("a busy connection", Box::new(pooled)));
    droppables.push(("a busy connection past the pooler", Box::new(direct)));
    droppables
}

/// Calls that go on.
async fn pending_calls(env: &TestEnv, router: &TenantRouter) -> Vec<Droppable> {
    let mut droppables: Vec<Droppable> = Vec::new();
    let ours = router.clone();
    let began = Arc::<AtomicBool>::default();
    let begins = Arc::clone(&began);
    let transaction = async move {
        let work = |tx: Tx| {
            begins.store(true, SeqCst);
            async move { Ok::<_, Error>(tx.batch_execute(SLOW).await?) }
        };
        let _ = ours.transaction("acme", work).await;
    };
    let has_begun = || began.load(SeqCst);
    let transaction = poll_until(transaction, "it has a connection", has_begun).await;
    droppables.push(("a transaction under way", Box::new(transaction)));
    env.emulator.set_wake_delay(Duration::from_secs(600));
    let ours = router.clone();
    let mut waits = |what, call: Pending| {
        let mut call = call;
        assert!(call.as_mut().now_or_never().is_none(), "{what} has ended");
        droppables.push((what, Box::new(call)));
    };
    let get = |tenant: &'static str| -> Pending {
        let router = ours.clone();
        Box::pin(async move { drop(router.get(tenant).await) })
    };
    waits("a call in the queue", get("acme"));
    waits("a call that wakes", get("globex"));
    waits("a call that creates", get("initech"));
    let router = ours.clone();
    waits(
        "a direct call that wakes",
        Box::pin(async move { drop(router.direct("globex").await) }),
    );
    let router = ours.clone();
    waits(
        "a deletion",
        Box::pin(async move { drop(router.fleet().unwrap().delete("globex").await) }),
    );
    droppables.push(("a warm-up", Box::new(ours.warm("globex"))));
    let mut warm: Pending = Box::pin(ours.warm("globex").wait().map(drop));
    assert!(warm.as_mut().now_or_never().is_none());
    droppables.push(("a warm-up that is waited for", Box::new(warm)));
    droppables.push(("a handle", Box::new(ours.handle("acme").unwrap())));
    droppables
}

/// Everything that an application can hold, but the router.
async fn all_droppables(env: &TestEnv, router: &TenantRouter) -> Vec<Droppable> {
    env.create_suspended(router, "globex").await;
    let mut droppables = open_connections(router).await;
    droppables.extend(pending_calls(env, router).await);
    droppables
}

/// Drops each in a thread that has no runtime.
fn drop_on_plain_thread(droppables: impl IntoIterator<Item = Droppable>) {
    for (what, droppable) in droppables {
        let dropped = thread::spawn(move || drop(droppable)).join();
        assert!(dropped.is_ok(), "the drop of {what} panicked");
    }
}

async fn router(env: &TestEnv) -> TenantRouter {
    let builder = env.builder("test").direct_connections(4);
    let router = builder.build().unwrap();
    drop(router.get("acme").await.unwrap());
    router
}

#[test]
fn everything_may_be_dropped_on_a_thread_without_a_runtime() {
    let runtime = Runtime::new().unwrap();
    let env = runtime.block_on(TestEnv::new());
    let router = runtime.block_on(router(&env));
    let pid = "SELECT pg_backend_pid()";
    let (first, last) = runtime.block_on(async {
        let client = router.get("acme").await.unwrap();
        (query_text(&client, pid).await, client)
    });
    drop_on_plain_thread([("the only connection", Box::new(last) as Box<dyn Send>)]);
    let again =
        runtime.block_on(async { query_text(&router.get("acme").await.unwrap(), pid).await });
    assert_eq!(again, first, "it came back to the pool");

    let droppables = runtime.block_on(all_droppables(&env, &router));
    drop_on_plain_thread(droppables);
    env.emulator.set_wake_delay(Duration::ZERO);
    let answers = runtime.block_on(async {
        let calls = (0..4).map(|_| async {
            let client = timeout(LONG, router.get("acme")).await.unwrap().unwrap();
            query_text(&client, "SELECT 1").await
        });
        futures_util::future::join_all(calls).await
    });
    assert_eq!(answers, ["1"; 4], "every place in the pool is free again");
    let all_are_closed = async {
        let counts = || env.witness("acme").open_sessions as u64;
        eventually("no more is open than pooled", || counts() <= 4).await;
    };
    runtime.block_on(all_are_closed);
    drop_on_plain_thread([("the router", Box::new(router) as Box<dyn Send>)]);
    runtime.block_on(eventually("its connections are closed", || {
        env.witness("acme").open_sessions == 0
    }));
}

#[test]
fn everything_may_be_dropped_after_its_runtime_has_ended() {
    for waits in [true, false] {
        let (runtime, other) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        let env = other.block_on(TestEnv::new());
        let router = runtime.block_on(router(&env));
        let droppables = runtime.block_on(all_droppables(&env, &router));
        if waits {
            runtime.shutdown_timeout(LONG);
        } else {
            runtime.shutdown_background();
        }
        drop_on_plain_thread(droppables);
        drop_on_plain_thread([("the router", Box::new(router) as Box<dyn Send>)]);
        // Postgres does not notice that the client of a query has gone, and nothing is left to tell it.
        let are_closed = || env.witness("acme").open_sessions <= 1;
        other.block_on(eventually("its connections are closed", are_closed));
    }
}

#[test]
fn a_router_that_was_never_used_may_be_dropped_after_its_runtime() {
    let runtime = Runtime::new().unwrap();
    let env = runtime.block_on(TestEnv::new());
    let router = runtime.block_on(async { env.router() });
    let fleet = router.fleet().unwrap();
    drop(runtime);
    drop_on_plain_thread([
        ("the router", Box::new(router) as Box<dyn Send>),
        ("its fleet", Box::new(fleet)),
        ("the environment", Box::new(env)),
    ]);
}
