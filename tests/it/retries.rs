//! The times at which a refused login is tried again, to the millisecond, and the errors that callers get until then.

use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use tenantry::{Error, ErrorKind, Stage, TransactionOptions};
use tokio::time::{Instant, sleep};

use super::support::{Backend, Failure, Gate, Step, query_text};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// The time for which Neon's proxy repeats an answer of its control plane, and a little more.
const REPEAT_WINDOW: Duration = Duration::from_millis(30_500);
const CURRENT_DATABASE: &str = "SELECT current_database()";

const fn login_fails_with(text: &'static str) -> Gate {
    let code = "XX000";
    Gate::Fail(Failure::Error { code, text })
}

const CONTROL_PLANE: Gate = login_fails_with("Control plane request failed");
const PASSWORD: Gate = login_fails_with("password authentication failed for user 'x'");
const DISABLED: Gate =
    login_fails_with("The endpoint has been disabled. Enable it using Neon API and retry.");
const ACTIVE: Gate = login_fails_with(
    "You have exceeded the limit of concurrently active endpoints. Please suspend some endpoints or contact Neon \
     support to increase the limit.",
);

/// The times at which logins began, from `start`.
fn login_offsets(backend: &Backend, start: Instant) -> Vec<Duration> {
    let times = backend.counts().login_times;
    times.into_iter().map(|at| at - start).collect()
}

/// Returns whether `time` is `expected`, as far as timers are that exact.
fn is_close(time: Duration, expected: Duration) -> bool {
    time.abs_diff(expected) <= 5 * MILLISECOND
}

fn retry_after(err: &Error) -> Duration {
    err.retry_after().expect("it says when to come back")
}

#[tokio::test(start_paused = true)]
async fn a_failing_control_plane_is_asked_more_and_more_slowly_until_the_callers_time_is_over() {
    let backend = Backend::default();
    backend.set(Step::Login, CONTROL_PLANE);
    let router = backend.router().get_timeout(45 * SECOND).build().unwrap();
    let start = Instant::now();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Wake));
    assert!(is_close(start.elapsed(), 45 * SECOND));

    let logins = login_offsets(&backend, start);
    assert!(is_close(logins[0], Duration::ZERO), "{logins:?}");
    assert!(is_close(logins[1], SECOND / 2), "{logins:?}");
    let waits: Vec<_> = logins
        .windows(2)
        .map(|it| it[1].saturating_sub(it[0]))
        .collect();
    let limits = [1, 1, 2, 4, 8].map(|n| n * SECOND / 2); // and twice as much by chance
    for (n, wait) in waits.iter().enumerate().skip(1) {
        let least = limits.get(n).copied().unwrap_or(5 * SECOND);
        let most = (2 * least).min(5 * SECOND);
        let fits = *wait + MILLISECOND >= least.min(most) && *wait <= most + 5 * MILLISECOND;
        assert!(fits, "wait {n} of {waits:?}");
    }
    let last = *logins.last().unwrap();
    assert!(last + 6 * SECOND > 45 * SECOND, "until the end: {waits:?}");
    assert_eq!(router.status().lookups, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failing_control_plane_is_worth_another_try_when_the_proxy_has_forgotten_it() {
    for seconds in [5, 20, 30, 31, 50] {
        let backend = Backend::default();
        backend.set(Step::Login, CONTROL_PLANE);
        let patience = seconds * SECOND;
        let router = backend.router().get_timeout(patience).build().unwrap();
        let start = Instant::now();
        let err = router.get("acme").await.unwrap_err();
        // Counted from the first answer that the proxy can only have repeated since.
        let mut first = Duration::ZERO;
        for login in login_offsets(&backend, start) {
            if login >= first + REPEAT_WINDOW {
                first = login;
            }
        }
        let expected = (first + REPEAT_WINDOW).saturating_sub(patience).max(SECOND);
        let wait = retry_after(&err);
        assert!(
            is_close(wait, expected),
            "{seconds}: {wait:?}, not {expected:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_wake_goes_on_when_its_caller_has_left_and_succeeds_when_the_fault_has_passed() {
    let backend = Backend::default();
    backend.set(Step::Login, CONTROL_PLANE);
    let router = backend.router().get_timeout(10 * SECOND).build().unwrap();
    router.get("acme").await.unwrap_err();
    backend.set(Step::Login, Gate::Open);
    sleep(5 * SECOND).await;
    assert_eq!(backend.counts().logins_done, 1);
    assert_eq!(router.status().wakes_by_request.started, 1);
    drop(router.get("acme").await.unwrap());
    assert_eq!(backend.counts().logins_done, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_password_has_one_second_try_and_the_table_is_asked_where_it_was_cached() {
    let backend = Backend::default();
    backend.set(Step::Login, PASSWORD);
    let router = backend.router().build().unwrap();
    let start = Instant::now();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    let times = login_offsets(&backend, start);
    assert!(is_close(times[1], SECOND), "{times:?}");
    assert_eq!((times.len(), router.status().lookups), (2, 1), "just asked");

    sleep(retry_after(&err)).await;
    let start = Instant::now();
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::BadCredential);
    let times = login_offsets(&backend, start);
    assert!(is_close(times[2], Duration::ZERO) && is_close(times[3], SECOND));
    assert_eq!((times.len(), router.status().lookups), (4, 2));
    assert!(is_close(start.elapsed(), SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_password_that_was_rotated_is_tried_at_once() {
    let backend = Backend::default();
    let (asked, table) = (AtomicU32::new(0), backend.clone());
    let router = backend.router_with_lookup(move |tenant| {
        let mut endpoint = Backend::endpoint(tenant);
        if asked.fetch_add(1, SeqCst) > 0 {
            endpoint.password = "rotated".into();
            table.set(Step::Login, Gate::Open);
        }
        Some(endpoint)
    });
    let router = router.build().unwrap();
    drop(router.get("acme").await.unwrap());
    backend.suspend();
    backend.until_empty().await;
    backend.set(Step::Login, PASSWORD);

    let start = Instant::now();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
    assert!(is_close(start.elapsed(), Duration::ZERO));
    let counts = backend.counts();
    assert_eq!((counts.logins_started, counts.logins_done), (3, 2));
    assert_eq!((router.status().lookups, router.status().moved), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_moved_is_reached_at_once_and_its_old_connections_leave() {
    let backend = Backend::default();
    let asked = AtomicU32::new(0);
    let router = backend.router_with_lookup(move |tenant| {
        let mut endpoint = Backend::endpoint(tenant);
        if asked.fetch_add(1, SeqCst) > 0 {
            endpoint.pooled_host = "elsewhere".into();
        }
        Some(endpoint)
    });
    let router = router.build().unwrap();
    let held = router.get("acme").await.unwrap();
    backend.set_at("acme", Step::Login, PASSWORD);

    let start = Instant::now();
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
    assert!(is_close(start.elapsed(), Duration::ZERO));
    // One beside the open connection, then the wake: one at the old place, one at the new.
    let counts = backend.counts();
    assert_eq!((counts.opened["acme"], counts.opened["elsewhere"]), (3, 1));
    assert_eq!((router.status().lookups, router.status().moved), (2, 1));

    assert_eq!(
        query_text(&held, CURRENT_DATABASE).await,
        "acme",
        "not under its user"
    );
    drop(held);
    sleep(SECOND).await;
    let counts = backend.counts();
    assert_eq!((counts.open, counts.terminates), (1, 1), "but after that");
    drop(client);
    drop(router.get("acme").await.unwrap());
    assert_eq!(backend.counts().logins_done, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_repeated_without_a_login_until_it_may_have_changed() {
    let backend = Backend::default();
    backend.set(Step::Login, DISABLED);
    let router = backend.router().build().unwrap();
    let first = router.get("acme").await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Disabled);
    assert_eq!(retry_after(&first), REPEAT_WINDOW);
    sleep(10 * SECOND).await;
    let start = Instant::now();
    let again = router.get("acme").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Disabled);
    assert!(is_close(
        retry_after(&again),
        REPEAT_WINDOW.saturating_sub(10 * SECOND)
    ));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(backend.counts().logins_started, 1);

    router.evict("acme");
    router.get("acme").await.unwrap_err();
    assert_eq!(backend.counts().logins_started, 2, "evict forgets it");

    backend.set(Step::Login, Gate::Open);
    router.get("acme").await.unwrap_err();
    sleep(REPEAT_WINDOW).await;
    drop(router.get("acme").await.unwrap());
    assert_eq!(backend.counts().logins_started, 3, "and so does time");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_outlives_the_pool_and_evict_forgets_it() {
    let backend = Backend::default();
    let router = backend.router().max_pools(1).build().unwrap();
    backend.set_at("acme", Step::Login, DISABLED);
    router.get("acme").await.unwrap_err();
    drop(router.get("globex").await.unwrap());
    assert_eq!(router.status().pools, 1);
    router.get("acme").await.unwrap_err();
    drop(router.get("globex").await.unwrap());
    assert_eq!(backend.counts().opened["acme"], 1);

    backend.set_at("acme", Step::Login, Gate::Open);
    assert_eq!(router.status().pools, 1, "its own is gone");
    router.evict("acme");
    drop(router.get("acme").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_enough_time_waits_for_a_limit_to_pass_and_others_fail_at_once() {
    let backend = Backend::default();
    backend.set(Step::Login, ACTIVE);
    let router = backend.router().get_timeout(60 * SECOND).build().unwrap();
    let start = Instant::now();
    let patient = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    for seconds in [0, 10, 10] {
        sleep(seconds * SECOND).await;
        let asked = Instant::now();
        let options = TransactionOptions::new().timeout(5 * SECOND);
        let work = |_| async { Ok::<_, Error>(()) };
        let err = router.read_with("acme", &options, work).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ActiveComputeLimit);
        let left = REPEAT_WINDOW.saturating_sub(start.elapsed());
        assert!(is_close(retry_after(&err), left), "{err:?}");
        assert!(is_close(asked.elapsed(), Duration::ZERO));
        backend.set(Step::Login, Gate::Open);
    }
    patient.await.unwrap().unwrap();
    assert!(is_close(start.elapsed(), REPEAT_WINDOW));
    let times = login_offsets(&backend, start);
    assert_eq!(times.len(), 2);
    assert!(is_close(times[1], REPEAT_WINDOW), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_a_limit_to_pass_is_served_as_soon_as_evict_is_called() {
    let backend = Backend::default();
    backend.set(Step::Login, ACTIVE);
    let router = backend.router().get_timeout(60 * SECOND).build().unwrap();
    let start = Instant::now();
    let patient = tokio::spawn({
        let router = router.clone();
        async move { router.get("acme").await.map(drop) }
    });
    sleep(10 * SECOND).await;
    backend.set(Step::Login, Gate::Open);
    router.evict("acme");
    patient.await.unwrap().unwrap();
    assert!(is_close(start.elapsed(), 10 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_one_host_does_not_apply_to_the_other() {
    let backend = Backend::default();
    let router = backend.router_with_lookup(|tenant| {
        let mut endpoint = Backend::endpoint(tenant);
        endpoint.pooled_host = "pooled".into();
        Some(endpoint)
    });
    let router = router.build().unwrap();
    backend.set_at("acme", Step::Login, DISABLED);
    let opened = || {
        let opened = backend.counts().opened;
        let of = |host| opened.get(host).copied().unwrap_or_default();
        (of("pooled"), of("acme"))
    };
    let err = router.direct("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Disabled);
    assert_eq!(opened(), (0, 1), "the direct one is the wake");
    router.direct("acme").await.unwrap_err();
    assert_eq!(opened(), (0, 1));
    drop(router.get("acme").await.unwrap());
    assert_eq!(opened(), (1, 1), "the pooled host is not concerned");
    router.direct("acme").await.unwrap_err();
    assert_eq!(opened(), (1, 1), "and its login says nothing of the other");

    // The other way round.
    sleep(REPEAT_WINDOW).await;
    router.evict("acme");
    backend.until_empty().await;
    backend.set_at("acme", Step::Login, Gate::Open);
    backend.set_at("pooled", Step::Login, DISABLED);
    let err = router.get("acme").await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Disabled);
    drop(router.direct("acme").await.unwrap());
    assert_eq!(opened(), (2, 2));
}
