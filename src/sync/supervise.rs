//! Tasks that must run for as long as the router lives.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::time::sleep;

/// Wait before a task that panicked is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `work` until it ends, and starts it again if it panics. `what` names it in the log.
///
/// # Cancel safety
/// Dropping the future drops the work.
pub(crate) async fn supervise<Fut: Future<Output = ()>>(
    what: &'static str,
    mut work: impl FnMut() -> Fut,
) {
    while AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        tracing::error!(
            what,
            "a task panicked, in the application's own code or in tenantry; it is started again"
        );
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    #[tokio::test(start_paused = true)]
    async fn what_panics_is_started_again_after_a_pause_until_it_ends() {
        let (starts, began) = (AtomicU32::new(0), tokio::time::Instant::now());
        supervise("test", || async {
            let start = starts.fetch_add(1, Relaxed);
            assert!(start >= 2, "the first two panic");
        })
        .await;
        assert_eq!(starts.load(Relaxed), 3);
        assert_eq!(began.elapsed(), PAUSE * 2);
    }
}
