//! What an application holds may be dropped anywhere: on a thread without a runtime, and after the runtime has ended.

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

use crate::support::{LONG, Stage, eventually, run_on};

const SLOW: &str = "SELECT pg_sleep(600)";

/// Something to be dropped, and what it is.
type Thing = (&'static str, Box<dyn Send>);
type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends a query that nobody waits for.
fn send(client: &Client) {
    let query = client.batch_execute(SLOW);
    assert!(query.now_or_never().is_none());
}

/// `call`, polled until it is `done`, before it ends.
async fn under_way<Fut>(call: Fut, what: &str, done: impl Fn() -> bool) -> Pending
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
async fn connections(router: &TenantRouter) -> Vec<Thing> {
    let mut things: Vec<Thing> = Vec::new();
    for (what, sql) in [
        ("an idle connection", "SELECT 1"),
        ("a connection in a transaction", "BEGIN"),
    ] {
        let (pooled, direct) = (router.get("acme").await, router.direct("acme").await);
        let (pooled, direct) = (pooled.unwrap(), direct.unwrap());
        pooled.batch_execute(sql).await.unwrap();
        direct.batch_execute(sql).await.unwrap();
        let statement = pooled.prepare("SELECT 1").await.unwrap();
        things.push(("a statement", Box::new(statement)));
        things.push(("a token", Box::new(pooled.cancel_token())));
        things.push(("a token past the pooler", Box::new(direct.cancel_token())));
        things.push((what, Box::new(pooled)));
        things.push((what, Box::new(direct)));
    }
    let (pooled, direct) = (router.get("acme").await, router.direct("acme").await);
    let (pooled, direct) = (pooled.unwrap(), direct.unwrap());
    send(&pooled);
    send(&direct);
    things.push(("a busy connection", Box::new(pooled)));
    things.push(("a busy connection past the pooler", Box::new(direct)));
    things
}

/// Calls that go on.
async fn calls(stage: &Stage, router: &TenantRouter) -> Vec<Thing> {
    let mut things: Vec<Thing> = Vec::new();
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
    let transaction = under_way(transaction, "it has a connection", has_begun).await;
    things.push(("a transaction under way", Box::new(transaction)));
    stage.emulator.set_wake_delay(Duration::from_secs(600));
    let ours = router.clone();
    let mut waits = |what, call: Pending| {
        let mut call = call;
        assert!(call.as_mut().now_or_never().is_none(), "{what} has ended");
        things.push((what, Box::new(call)));
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
    things.push(("a warm-up", Box::new(ours.warm("globex"))));
    let mut warm: Pending = Box::pin(ours.warm("globex").wait().map(drop));
    assert!(warm.as_mut().now_or_never().is_none());
    things.push(("a warm-up that is waited for", Box::new(warm)));
    things.push(("a handle", Box::new(ours.handle("acme").unwrap())));
    things
}

/// Everything that an application can hold, but the router.
async fn things(stage: &Stage, router: &TenantRouter) -> Vec<Thing> {
    stage.asleep(router, "globex").await;
    let mut things = connections(router).await;
    things.extend(calls(stage, router).await);
    things
}

/// Drops each in a thread that has no runtime.
fn drop_apart(things: impl IntoIterator<Item = Thing>) {
    for (what, thing) in things {
        let dropped = thread::spawn(move || drop(thing)).join();
        assert!(dropped.is_ok(), "the drop of {what} panicked");
    }
}

async fn router(stage: &Stage) -> TenantRouter {
    let builder = stage.builder("test").direct_connections(4);
    let router = builder.build().unwrap();
    drop(router.get("acme").await.unwrap());
    router
}

#[test]
fn all_that_is_held_may_be_dropped_on_a_thread_without_a_runtime() {
    let home = Runtime::new().unwrap();
    let stage = home.block_on(Stage::new());
    let router = home.block_on(router(&stage));
    let pid = "SELECT pg_backend_pid()";
    let (first, last) = home.block_on(async {
        let client = router.get("acme").await.unwrap();
        (run_on(&client, pid).await, client)
    });
    drop_apart([("the only connection", Box::new(last) as Box<dyn Send>)]);
    let again = home.block_on(async { run_on(&router.get("acme").await.unwrap(), pid).await });
    assert_eq!(again, first, "it came back to the pool");

    let things = home.block_on(things(&stage, &router));
    drop_apart(things);
    stage.emulator.set_wake_delay(Duration::ZERO);
    let answers = home.block_on(async {
        let calls = (0..4).map(|_| async {
            let client = timeout(LONG, router.get("acme")).await.unwrap().unwrap();
            run_on(&client, "SELECT 1").await
        });
        futures_util::future::join_all(calls).await
    });
    assert_eq!(answers, ["1"; 4], "every place in the pool is free again");
    let all_are_closed = async {
        let counts = || stage.witness("acme").open_sessions as u64;
        eventually("no more is open than pooled", || counts() <= 4).await;
    };
    home.block_on(all_are_closed);
    drop_apart([("the router", Box::new(router) as Box<dyn Send>)]);
    home.block_on(eventually("its connections are closed", || {
        stage.witness("acme").open_sessions == 0
    }));
}

#[test]
fn and_after_its_runtime_has_ended() {
    for waits in [true, false] {
        let (home, other) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        let stage = other.block_on(Stage::new());
        let router = home.block_on(router(&stage));
        let things = home.block_on(things(&stage, &router));
        if waits {
            home.shutdown_timeout(LONG);
        } else {
            home.shutdown_background();
        }
        drop_apart(things);
        drop_apart([("the router", Box::new(router) as Box<dyn Send>)]);
        // Postgres does not notice that the client of a query has gone, and nothing is left to tell it.
        let are_closed = || stage.witness("acme").open_sessions <= 1;
        other.block_on(eventually("its connections are closed", are_closed));
    }
}

#[test]
fn a_router_that_was_never_used_may_be_dropped_after_its_runtime() {
    let home = Runtime::new().unwrap();
    let stage = home.block_on(Stage::new());
    let router = home.block_on(async { stage.router() });
    let fleet = router.fleet().unwrap();
    drop(home);
    drop_apart([
        ("the router", Box::new(router) as Box<dyn Send>),
        ("its fleet", Box::new(fleet)),
        ("the stage", Box::new(stage)),
    ]);
}
