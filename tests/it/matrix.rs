//! Everything that can go wrong at a database, by what was asked of it and when: the exact outcome of each.

mod call;
mod event_test;
mod markdown;
mod recovery;
mod table;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;

use event_test::{EventTest, SharedEnv};
use table::{Event, Row, State};

/// Events that run at the same time. Each has three computes.
const SIDE_BY_SIDE: usize = 4;

/// An event, and the states to run it in.
type MatrixCase = (&'static Row, &'static Event, &'static [State]);

/// Runs each event of `rows` in all states.
async fn run_rows(rows: &'static [Row]) {
    run_rows_in(rows, &[&State::ALL]).await;
}

/// The same; the groups in `states` run at the same time.
async fn run_rows_in(rows: &'static [Row], states: &'static [&'static [State]]) {
    let deadline = rows[0].deadline;
    let cases = rows.iter().flat_map(|row| {
        let events = row.events.iter();
        events.flat_map(move |event| states.iter().map(move |states| (row, event, *states)))
    });
    let cases = Mutex::new(cases);
    let next = || cases.lock().unwrap().next();
    let failed = join_all((0..SIDE_BY_SIDE).map(|_| run_all(deadline, next))).await;
    let failed = failed.concat();
    assert!(failed.is_empty(), "as told above: {failed:?}");
}

/// Runs the next case until there is none. A failed case does not stop the others.
async fn run_all(deadline: Duration, next: impl Fn() -> Option<MatrixCase>) -> Vec<&'static Event> {
    let (mut shared, mut failed) = (None, Vec::new());
    while let Some((row, event, states)) = next() {
        assert_eq!(row.deadline, deadline, "{event:?}");
        let env = match shared.take() {
            Some(shared) => shared,
            None => Arc::new(SharedEnv::new(deadline).await),
        };
        let event_test = EventTest::new(Arc::clone(&env), row, event);
        let ran = tokio::spawn(run_one(event_test, states));
        match ran.await {
            Ok(()) => shared = Some(env),
            Err(_) => failed.push(event),
        }
    }
    failed
}

async fn run_one(event_test: EventTest, states: &'static [State]) {
    for &state in states {
        if let Some(expected) = event_test.row.cells(state) {
            Box::pin(event_test.run(state, expected)).await;
        }
    }
}

#[tokio::test]
async fn a_quota_fails_calls_that_need_a_wake_at_once_and_no_others() {
    run_rows(table::QUOTAS).await;
}

#[tokio::test]
async fn a_refusal_fails_calls_that_need_a_wake_at_once_and_no_others() {
    run_rows(table::REFUSALS).await;
}

#[tokio::test]
async fn a_control_plane_that_stays_busy_costs_a_call_its_time_and_no_more() {
    run_rows(table::BUSY).await;
}

#[tokio::test]
async fn a_compute_that_cannot_be_reached_costs_a_call_its_time_and_no_more() {
    run_rows(table::UNREACHABLE).await;
}

#[tokio::test]
async fn faults_that_pass_in_time_are_waited_out() {
    run_rows(table::PASSING).await;
}

#[tokio::test]
async fn a_recovery_is_waited_out_although_the_pooler_looks_again_after_fifteen_seconds_only() {
    const APART: [&[State]; 2] = [
        &[State::Asleep, State::Idle],
        &[State::MidQuery, State::Suspended],
    ];
    run_rows_in(table::RECOVERY, &APART).await;
}

#[tokio::test]
async fn an_event_at_a_running_database_fails_no_call_that_can_be_run_again() {
    run_rows(table::RUNNING).await;
}

#[tokio::test]
async fn a_compute_that_says_nothing_costs_a_call_its_time_and_no_more() {
    run_rows(table::FROZEN).await;
}
