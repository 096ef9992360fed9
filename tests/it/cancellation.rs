//! Callers who meet trouble at each stage of a call, and callers who leave there: whatever happens, nothing stays
//! behind, and the next caller is served.

use std::{
    error::Error as _,
    sync::{
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use tenantry::{Error, ErrorKind, Stage};
use tokio::{
    runtime::Builder,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::support::{Backend, Call, Case, Failure, Gate, Place, Scene, Step};

const SECOND: Duration = Duration::from_secs(1);
/// How late a timer may be.
const MOMENT: Duration = Duration::from_millis(5);
const REFUSED: Gate = Gate::Fail(Failure::Error {
    code: "XX000",
    text: "Couldn't connect to compute node",
});
const CUT: Gate = Gate::Fail(Failure::Cut);
const GATES: [Gate; 5] = [
    Gate::Open,
    REFUSED,
    CUT,
    Gate::Slow(Duration::from_millis(500)),
    Gate::Stuck,
];

/// What a caller who stays must be told.
#[derive(Debug, Eq, PartialEq)]
enum End {
    Served,
    Failed(ErrorKind),
    /// Nothing, for as long as it waits: its own query has no answer.
    Nothing,
}

/// The answer to a call, and how long it may take.
fn expected(case: Case) -> (End, Duration) {
    use End::{Failed, Served};
    match (case.place, case.gate) {
        // The closure's own error.
        (Place::At(Step::Rollback), _) => (Failed(ErrorKind::InvalidTenant), SECOND),
        (_, Gate::Open) => (Served, Duration::ZERO),
        // Late, or by another connection.
        (_, Gate::Slow(_)) | (Place::Queue | Place::At(Step::Verify), Gate::Fail(_)) => {
            (Served, SECOND)
        }
        // Tried until the end.
        (Place::At(Step::Open | Step::Login), Gate::Fail(_)) | (_, Gate::Stuck) => {
            expected_if_stuck(case)
        }
        (Place::At(step), Gate::Fail(_)) => expected_if_failed(case, step),
    }
}

fn expected_if_failed(case: Case, step: Step) -> (End, Duration) {
    let kind = match (step, case.gate) {
        (Step::Lookup, _) => ErrorKind::Catalog,
        (Step::Create, _) => ErrorKind::Refused, // the control plane's own
        (Step::Commit, CUT) if case.call == Call::Transaction => ErrorKind::CommitUnknown,
        // Tried until the end, more and more slowly: a compute that ends what it has let in is not up yet.
        (Step::Begin, CUT) => {
            let kind = ErrorKind::Timeout(Stage::Wake);
            return (End::Failed(kind), 30 * SECOND);
        }
        (_, CUT) if !case.call.is_by_hand() => ErrorKind::Connect,
        _ => ErrorKind::Query,
    };
    (End::Failed(kind), SECOND)
}

fn expected_if_stuck(case: Case) -> (End, Duration) {
    let kind = match case.place {
        Place::At(Step::Create) => ErrorKind::Provisioning, // which goes on
        _ => ErrorKind::Timeout(stage_of(case)),
    };
    let limit = if case.call.is_in_transaction() {
        30 * SECOND
    } else {
        20 * SECOND
    };
    match (case.place, case.call) {
        (Place::At(Step::Verify), _) => (End::Served, 3 * SECOND),
        (Place::At(Step::Query), call) if call.is_by_hand() => (End::Nothing, 60 * SECOND),
        (Place::At(Step::Commit), Call::Transaction) => {
            (End::Failed(ErrorKind::CommitUnknown), 30 * SECOND)
        }
        _ => (End::Failed(kind), limit),
    }
}

/// What a caller waits for who comes to a place and no further.
fn stage_of(case: Case) -> Stage {
    match (case.place, case.call) {
        (Place::At(Step::Lookup), _) => Stage::Lookup,
        (Place::At(Step::Create), _) => Stage::Provision,
        (Place::Queue | Place::At(Step::Verify), _)
        | (Place::At(Step::Open | Step::Login), Call::DirectAwake) => Stage::Checkout,
        (Place::At(Step::Open | Step::Login), _) => Stage::Wake,
        (Place::At(Step::Begin | Step::Query | Step::Rollback), _) => Stage::Query,
        (Place::At(Step::Commit), _) => Stage::Commit,
    }
}

/// Whether `err` is told after something else has failed, and not only waited for.
fn has_failed(case: Case, err: &Error) -> bool {
    matches!(
        (case.gate, err.kind()),
        (Gate::Fail(_), ErrorKind::Timeout(_))
    )
}

/// Every call that comes to `place` meets every gate there: once its caller stays, once it leaves.
async fn every_call_at(place: Place) {
    for call in Call::ALL.into_iter().filter(|it| it.comes_to(place)) {
        for gate in GATES {
            let case = Case { call, place, gate };
            let mut scene = Scene::before(case).await;
            let (told, took) = scene.stays().await;
            let told = match told {
                None => End::Nothing,
                Some(Ok(())) => End::Served,
                Some(Err(err)) => {
                    let says_why = err.source().is_some() || !has_failed(case, &err);
                    assert!(says_why, "{case:?}: {err:?}");
                    End::Failed(err.kind())
                }
            };
            let (right, limit) = expected(case);
            assert_eq!(told, right, "{case:?}");
            assert!(took <= limit + MOMENT, "{case:?}: {took:?}");
            scene.ends_in_order().await;

            let mut scene = Scene::before(case).await;
            scene.leaves().await;
            scene.ends_in_order().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_look_up_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Lookup)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_creation_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Create)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_opening_a_stream_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Open)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_login_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Login)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_the_queue_leaves_nothing_behind() {
    every_call_at(Place::Queue).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_check_of_an_idle_connection_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Verify)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_begin_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Begin)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_query_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Query)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_commit_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Commit)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_rollback_leaves_nothing_behind() {
    every_call_at(Place::At(Step::Rollback)).await;
}

/// Drops each call at each turn of the runtime that it takes, on a tenant that has to be created or woken, and on one
/// that is awake.
#[tokio::test(start_paused = true)]
async fn a_call_may_be_dropped_at_any_moment() {
    for call in Call::ALL {
        let places = [
            Step::Lookup,
            Step::Create,
            Step::Verify,
            Step::Query,
            Step::Rollback,
        ];
        for place in places.map(Place::At) {
            if !call.comes_to(place) {
                continue;
            }
            let gate = Gate::Open;
            let case = Case { call, place, gate };
            let mut turns = 0;
            loop {
                let mut scene = Scene::before(case).await;
                let done = scene.leaves_after(turns).await;
                scene.ends_in_order().await;
                if done {
                    break;
                }
                turns += 1;
            }
            assert!(turns > 4, "{case:?} has more than {turns} moments");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_have_left_the_queue_wake_nobody() {
    let backend = Backend::default();
    let router = backend.router().pool_size(1).build().unwrap();
    let held = router.get("acme").await.unwrap();
    let callers = (0..5).map(|_| timeout(SECOND, router.get("acme")));
    assert!(join_all(callers).await.iter().all(Result::is_err));
    backend.suspend();
    backend.until_empty().await;
    drop(held);
    sleep(60 * SECOND).await;
    assert_eq!((router.status().dials, router.status().attempts), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_connecting_is_told_and_takes_no_place() {
    let (backend, panics) = (Backend::default(), AtomicBool::new(true));
    let pipes = backend.clone();
    let router = backend.router().pool_size(1).open_streams(move |host, _| {
        assert!(
            !panics.swap(false, SeqCst),
            "so that it is seen what becomes of it"
        );
        pipes.clone().open(host.to_owned())
    });
    let router = router.build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Internal);
    assert_eq!(router.status().attempts, 0);
    drop(router.get("acme").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_check_that_its_caller_has_left_still_condemns_the_dead_ones_beside() {
    let backend = Backend::default();
    let router = backend.router().pool_size(8).build().unwrap();
    let clients = (0..8).map(|_| router.get("acme"));
    drop(try_join_all(clients).await.unwrap());
    sleep(31 * SECOND).await;
    backend.set(Step::Verify, Gate::Stuck);
    let in_vain = async || timeout(3 * SECOND / 5, router.get("acme")).await.is_err();
    let mut callers = 0;
    while in_vain().await {
        callers += 1;
    }
    assert_eq!(callers, 4, "the first check ends after two seconds");
}

#[tokio::test(start_paused = true)]
async fn a_begin_without_an_answer_is_sent_again_on_another_connection() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    backend.set(Step::Begin, Gate::Slow(60 * SECOND));
    let start = Instant::now();
    let call = router.transaction("acme", |_| async { Ok::<_, Error>(()) });
    let (done, ()) = tokio::join!(call, async {
        backend.until_waiting(Step::Begin).await;
        backend.set(Step::Begin, Gate::Open);
    });
    done.unwrap();
    assert!(start.elapsed() <= 5 * SECOND + MOMENT);
    assert_eq!(backend.counts().commits, 1);
}

/// Callers leave on one thread while another hands them a connection.
#[test]
fn whoever_leaves_while_a_connection_is_handed_over_locks_nobody_out() {
    const CALLERS: usize = 12;
    const CALLS: u32 = 20_000;
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let all = runtime.spawn(async {
        let backend = Backend::default();
        let router = backend.router().pool_size(1).build().unwrap();
        drop(router.get("acme").await.unwrap());
        let callers = (0..CALLERS).map(|_| {
            let router = router.clone();
            tokio::spawn(async move {
                for call in 0..CALLS {
                    let leaves = async {
                        for _ in 0..call % 4 {
                            yield_now().await;
                        }
                    };
                    tokio::select! {
                        biased;
                        client = router.get("acme") => drop(client.unwrap()),
                        () = leaves => {}
                    }
                }
            })
        });
        for caller in join_all(callers.collect::<Vec<_>>()).await {
            caller.unwrap();
        }
        drop(router.get("acme").await.unwrap());
        assert_eq!(router.status().waiting, 0);
    });
    // Not by a timer: a thread that has locked itself out may be the one that turns them.
    let (done, all_done) = mpsc::channel();
    runtime.spawn(async move { done.send(all.await) });
    let all_done = all_done.recv_timeout(120 * SECOND);
    runtime.shutdown_background();
    all_done.expect("somebody waits for ever").unwrap();
}
