//! A login that is never answered does not block its tenant: a second one goes out beside it, and never a third.

use std::time::Duration;

use tenantry::{ErrorKind, Stage};
use tokio::time::{Instant, sleep};

use crate::support::{Backend, Failure, Gate, Step, served_database};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_second_login_goes_out_after_10_to_15_seconds_of_silence_and_serves() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Stuck);
    let router = backend.router().build().unwrap();
    let waiting = {
        let router = router.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            served_database(&router, "acme")
                .await
                .map(|_| began.elapsed())
        })
    };
    sleep(SECOND).await;
    backend.set_at("acme", Step::Login, Gate::Open);
    let took = waiting.await.unwrap().unwrap();
    assert!((10 * SECOND..=15 * SECOND).contains(&took), "{took:?}");
    assert_eq!(backend.counts().logins_started, 2);
    sleep(5 * SECOND).await;
    assert_eq!(router.status().connections, 1, "the silent one is given up");
    assert_eq!(backend.counts().open, 1);
}

#[tokio::test(start_paused = true)]
async fn a_direct_connection_waits_no_longer_for_a_silent_login() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Stuck);
    let router = backend.router().build().unwrap();
    let waiting = {
        let router = router.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            router.direct("acme").await.map(|_| began.elapsed())
        })
    };
    sleep(SECOND).await;
    backend.set_at("acme", Step::Login, Gate::Open);
    let took = waiting.await.unwrap().unwrap();
    assert!((10 * SECOND..=15 * SECOND).contains(&took), "{took:?}");
    assert_eq!(backend.counts().logins_started, 2);
}

#[tokio::test(start_paused = true)]
async fn the_first_login_still_counts_if_it_is_answered_first() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Slow(16 * SECOND));
    let router = backend.router().build().unwrap();
    let waiting = {
        let router = router.clone();
        tokio::spawn(async move { served_database(&router, "acme").await })
    };
    sleep(SECOND).await;
    // Until then, the second one fails over and over.
    let not_up = Gate::Fail(Failure::Error {
        code: "XX000",
        text: "Couldn't connect to compute node",
    });
    backend.set_at("acme", Step::Login, not_up);
    let began = Instant::now();
    waiting.await.unwrap().unwrap();
    assert!(began.elapsed() < 16 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn there_is_never_a_third_login_and_a_timeout_says_when_to_retry() {
    let backend = Backend::default();
    backend.set(Step::Login, Gate::Stuck);
    let router = backend.router().get_timeout(40 * SECOND).build().unwrap();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
    let wait = err.retry_after().unwrap();
    assert!(
        (15 * SECOND..=20 * SECOND).contains(&wait),
        "nothing happens before the wake has ended: {wait:?}"
    );
    sleep(19 * SECOND).await;
    assert_eq!(backend.counts().logins_started, 2);
}
