//! The retry loop, and the waits between its attempts.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::progress::Progress;
use crate::model::error::Error;

/// Returns waits that double from `first` up to `most`, each lengthened at random, to at most twice its length.
pub(crate) fn backoff(first: Duration, most: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(most)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Runs `attempt` until it succeeds, fails with an error that is not transient, or runs out of time.
///
/// Waits at least as long as a failure's own `retry_after`.
///
/// # Cancel safety
/// Dropping the future drops the attempt in progress.
pub(crate) async fn retry<T, Fut>(
    progress: &Progress,
    mut waits: impl Iterator<Item = Duration>,
    mut attempt: impl FnMut() -> Fut,
) -> Result<T, Error>
where
    Fut: Future<Output = Result<T, Error>>,
{
    let mut has_failed = false;
    loop {
        let err = match attempt().await {
            Ok(value) => {
                if has_failed {
                    progress.forget_failure(); // it did not cause any later failure
                }
                return Ok(value);
            }
            Err(err) if !err.kind().is_transient() => return Err(err),
            Err(err) => err,
        };
        has_failed = true;
        progress.note(&err);
        let wait = waits
            .next()
            .unwrap_or_default()
            .max(err.retry_after().unwrap_or_default());
        if Instant::now() + wait >= progress.deadline() {
            return Err(progress.timed_out());
        }
        sleep(wait).await;
    }
}

/// Returns a random number.
pub(crate) fn chance() -> u8 {
    RandomState::new().hash_one(()).to_be_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::{ErrorKind, Stage};
    use std::{error::Error as _, sync::atomic::AtomicU32, sync::atomic::Ordering::Relaxed};

    const SECOND: Duration = Duration::from_secs(1);

    async fn attempts(limit: Duration, failures: Vec<Error>) -> (Result<(), Error>, u32, Duration) {
        let (count, start) = (AtomicU32::new(0), Instant::now());
        let mut failures = failures.into_iter();
        let progress = Progress::new(Stage::Provision, limit);
        let result = retry(&progress, backoff(SECOND, 4 * SECOND), || {
            count.fetch_add(1, Relaxed);
            std::future::ready(failures.next().map_or(Ok(()), Err))
        });
        (result.await, count.load(Relaxed), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_transient_failure_is_tried_again_and_a_refusal_is_not() {
        let locked = Error::new(ErrorKind::Locked, "busy");
        let refused = Error::new(ErrorKind::Refused, "no");
        let (result, count, _) = attempts(60 * SECOND, vec![locked.clone(), locked.clone()]).await;
        assert_eq!((result.is_ok(), count), (true, 3));
        let (result, count, _) = attempts(60 * SECOND, vec![locked, refused]).await;
        assert_eq!((result.unwrap_err().kind(), count), (ErrorKind::Refused, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_never_shorter_than_the_server_asked_for() {
        let limited = Error::new(ErrorKind::RateLimited, "slow down").with_retry_after(30 * SECOND);
        let (result, _, took) = attempts(60 * SECOND, vec![limited]).await;
        assert!(result.is_ok() && took >= 30 * SECOND, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn out_of_time_is_an_error_that_names_the_stage_and_the_last_failure() {
        let limited = Error::new(ErrorKind::RateLimited, "slow down").with_retry_after(30 * SECOND);
        let (result, count, took) = attempts(20 * SECOND, vec![limited]).await;
        let err = result.unwrap_err();
        assert_eq!(
            (err.kind(), count),
            (ErrorKind::Timeout(Stage::Provision), 1)
        );
        assert_eq!(err.source().unwrap().to_string(), "slow down");
        assert_eq!(err.retry_after(), Some(30 * SECOND));
        assert!(took < SECOND, "no wait that cannot help: {took:?}");
    }
}
