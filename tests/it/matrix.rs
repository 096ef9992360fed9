//! Everything that can go wrong at a database, by what was asked of it and when: the exact outcome of each.

mod call;
mod markdown;
mod mend;
mod scene;
mod table;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;

use scene::{Ground, Scene};
use table::{Event, Row, State};

/// Events that are played at the same time. Each has three computes.
const SIDE_BY_SIDE: usize = 4;

/// An event, and the states to play it in.
type Act = (&'static Row, &'static Event, &'static [State]);

/// Plays each event of `rows` in all states.
async fn play(rows: &'static [Row]) {
    play_in(rows, &[&State::ALL]).await;
}

/// The same; what is apart in `states` is played at the same time.
async fn play_in(rows: &'static [Row], states: &'static [&'static [State]]) {
    let patience = rows[0].patience;
    let acts = rows.iter().flat_map(|row| {
        let events = row.events.iter();
        events.flat_map(move |event| states.iter().map(move |states| (row, event, *states)))
    });
    let acts = Mutex::new(acts);
    let next = || acts.lock().unwrap().next();
    let failed = join_all((0..SIDE_BY_SIDE).map(|_| play_all(patience, next))).await;
    let failed = failed.concat();
    assert!(failed.is_empty(), "as told above: {failed:?}");
}

/// Plays what is next until nothing is. What fails does not keep the others from being played.
async fn play_all(patience: Duration, next: impl Fn() -> Option<Act>) -> Vec<&'static Event> {
    let (mut ground, mut failed) = (None, Vec::new());
    while let Some((row, event, states)) = next() {
        assert_eq!(row.patience, patience, "{event:?}");
        let here = match ground.take() {
            Some(ground) => ground,
            None => Arc::new(Ground::new(patience).await),
        };
        let scene = Scene::new(Arc::clone(&here), row, event);
        let played = tokio::spawn(play_one(scene, states));
        match played.await {
            Ok(()) => ground = Some(here),
            Err(_) => failed.push(event),
        }
    }
    failed
}

async fn play_one(scene: Scene, states: &'static [State]) {
    for &state in states {
        if let Some(expected) = scene.row.cells(state) {
            Box::pin(scene.play(state, expected)).await;
        }
    }
}

#[tokio::test]
async fn a_quota_is_told_at_once_to_who_needs_a_wake_and_to_nobody_else() {
    play(table::QUOTAS).await;
}

#[tokio::test]
async fn a_refusal_is_told_at_once_to_who_needs_a_wake_and_to_nobody_else() {
    play(table::REFUSALS).await;
}

#[tokio::test]
async fn a_control_plane_that_stays_busy_costs_a_call_its_time_and_no_more() {
    play(table::BUSY).await;
}

#[tokio::test]
async fn a_compute_that_cannot_be_reached_costs_a_call_its_time_and_no_more() {
    play(table::UNREACHABLE).await;
}

#[tokio::test]
async fn what_passes_in_time_is_waited_out() {
    play(table::PASSING).await;
}

#[tokio::test]
async fn a_recovery_is_waited_out_although_the_pooler_looks_again_after_fifteen_seconds_only() {
    const APART: [&[State]; 2] = [
        &[State::Asleep, State::Idle],
        &[State::MidQuery, State::Suspended],
    ];
    play_in(table::RECOVERY, &APART).await;
}

#[tokio::test]
async fn what_happens_to_a_running_database_reaches_nobody_who_could_be_saved() {
    play(table::HAPPENINGS).await;
}

#[tokio::test]
async fn a_compute_that_says_nothing_costs_a_call_its_time_and_no_more() {
    play(table::FROZEN).await;
}
