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

use super::support::{Backend, Call, CallTest, Case, Failure, FaultPoint, Gate, Step};

const SECOND: Duration = Duration::from_secs(1);
/// The time by which a timer may be late.
const TIMER_SLACK: Duration = Duration::from_millis(5);
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

/// The outcome that a caller must get if it stays.
#[derive(Debug, Eq, PartialEq)]
enum CallOutcome {
    Served,
    Failed(ErrorKind),
    /// Nothing, for as long as it waits: its own query has no answer.
    Nothing,
}

/// The answer to a call, and how long it may take.
fn expected(case: Case) -> (CallOutcome, Duration) {
    use CallOutcome::{Failed, Served};
    match (case.point, case.gate) {
        // The closure's own error.
        (FaultPoint::At(Step::Rollback), _) => (Failed(ErrorKind::InvalidTenant), SECOND),
        (_, Gate::Open) => (Served, Duration::ZERO),
        // Late, or by another connection.
        (_, Gate::Slow(_)) | (FaultPoint::Queue | FaultPoint::At(Step::Verify), Gate::Fail(_)) => {
            (Served, SECOND)
        }
        // Tried until the end.
        (FaultPoint::At(Step::Open | Step::Login), Gate::Fail(_)) | (_, Gate::Stuck) => {
            expected_if_stuck(case)
        }
        (FaultPoint::At(step), Gate::Fail(_)) => expected_if_failed(case, step),
    }
}

fn expected_if_failed(case: Case, step: Step) -> (CallOutcome, Duration) {
    let kind = match (step, case.gate) {
        (Step::Lookup, _) => ErrorKind::Catalog,
        (Step::Create, _) => ErrorKind::Refused, // the control plane's own
        (Step::Commit, CUT) if case.call == Call::Transaction => ErrorKind::CommitUnknown,
        // Tried until the end, more and more slowly: a compute that ends what it has let in is not up yet.
        (Step::Begin, CUT) => {
            let kind = ErrorKind::Timeout(Stage::Wake);
            return (CallOutcome::Failed(kind), 30 * SECOND);
        }
        (_, CUT) if !case.call.hands_out_client() => ErrorKind::Connect,
        _ => ErrorKind::Query,
    };
    (CallOutcome::Failed(kind), SECOND)
}

fn expected_if_stuck(case: Case) -> (CallOutcome, Duration) {
    let kind = match case.point {
        FaultPoint::At(Step::Create) => ErrorKind::Provisioning, // which goes on
        _ => ErrorKind::Timeout(stage_of(case)),
    };
    let limit = if case.call.is_in_transaction() {
        30 * SECOND
    } else {
        20 * SECOND
    };
    match (case.point, case.call) {
        (FaultPoint::At(Step::Verify), _) => (CallOutcome::Served, 3 * SECOND),
        (FaultPoint::At(Step::Query), call) if call.hands_out_client() => {
            (CallOutcome::Nothing, 60 * SECOND)
        }
        (FaultPoint::At(Step::Commit), Call::Transaction) => {
            (CallOutcome::Failed(ErrorKind::CommitUnknown), 30 * SECOND)
        }
        _ => (CallOutcome::Failed(kind), limit),
    }
}

/// Returns the stage at which a caller waits that comes to the fault point and no further.
fn stage_of(case: Case) -> Stage {
    match (case.point, case.call) {
        (FaultPoint::At(Step::Lookup), _) => Stage::Lookup,
        (FaultPoint::At(Step::Create), _) => Stage::Provision,
        (FaultPoint::Queue | FaultPoint::At(Step::Verify), _)
        | (FaultPoint::At(Step::Open | Step::Login), Call::DirectAwake) => Stage::Checkout,
        (FaultPoint::At(Step::Open | Step::Login), _) => Stage::Wake,
        (FaultPoint::At(Step::Begin | Step::Query | Step::Rollback), _) => Stage::Query,
        (FaultPoint::At(Step::Commit), _) => Stage::Commit,
    }
}

/// Returns whether `err` is a timeout after something else had failed, and not only after a wait.
fn has_failed(case: Case, err: &Error) -> bool {
    matches!(
        (case.gate, err.kind()),
        (Gate::Fail(_), ErrorKind::Timeout(_))
    )
}

/// Every call that comes to `point` meets every gate there: once its caller stays, once it leaves.
async fn every_call_at(point: FaultPoint) {
    for call in Call::ALL.into_iter().filter(|it| it.reaches(point)) {
        for gate in GATES {
            let case = Case { call, point, gate };
            let mut call_test = CallTest::new(case).await;
            let (outcome, took) = call_test.run().await;
            let outcome = match outcome {
                None => CallOutcome::Nothing,
                Some(Ok(())) => CallOutcome::Served,
                Some(Err(err)) => {
                    let says_why = err.source().is_some() || !has_failed(case, &err);
                    assert!(says_why, "{case:?}: {err:?}");
                    CallOutcome::Failed(err.kind())
                }
            };
            let (wanted, limit) = expected(case);
            assert_eq!(outcome, wanted, "{case:?}");
            assert!(took <= limit + TIMER_SLACK, "{case:?}: {took:?}");
            call_test.assert_clean_end().await;

            let mut call_test = CallTest::new(case).await;
            call_test.cancel_at_point().await;
            call_test.assert_clean_end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_look_up_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Lookup)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_creation_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Create)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_opening_a_stream_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Open)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_login_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Login)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_the_queue_leaves_nothing_behind() {
    every_call_at(FaultPoint::Queue).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_check_of_an_idle_connection_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Verify)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_begin_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Begin)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_a_query_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Query)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_commit_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Commit)).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_in_rollback_leaves_nothing_behind() {
    every_call_at(FaultPoint::At(Step::Rollback)).await;
}

/// Drops each call at each turn of the runtime that it takes, on a tenant that has to be created or woken, and on one
/// that is awake.
#[tokio::test(start_paused = true)]
async fn a_call_may_be_dropped_at_any_moment() {
    for call in Call::ALL {
        let points = [
            Step::Lookup,
            Step::Create,
            Step::Verify,
            Step::Query,
            Step::Rollback,
        ];
        for point in points.map(FaultPoint::At) {
            if !call.reaches(point) {
                continue;
            }
            let gate = Gate::Open;
            let case = Case { call, point, gate };
            let mut polls = 0;
            loop {
                let mut call_test = CallTest::new(case).await;
                let done = call_test.cancel_after_polls(polls).await;
                call_test.assert_clean_end().await;
                if done {
                    break;
                }
                polls += 1;
            }
            assert!(polls > 4, "{case:?} has more than {polls} moments");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_left_the_queue_start_no_wake() {
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
async fn a_panic_while_connecting_is_an_error_and_takes_no_place() {
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
async fn an_abandoned_ping_still_closes_the_other_dead_connections() {
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
    assert!(start.elapsed() <= 5 * SECOND + TIMER_SLACK);
    assert_eq!(backend.counts().commits, 1);
}

/// Callers leave on one thread while another hands them a connection.
#[test]
fn a_caller_that_leaves_during_a_handover_blocks_no_other_caller() {
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
    all_done.expect("a caller waits for ever").unwrap();
}
