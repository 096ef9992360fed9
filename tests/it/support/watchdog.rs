//! Telling a test that spins from one that waits.

use std::{
    io::{self, Write},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LONG;

/// A step that takes longer than this by a real clock is told of.
const SLOW: Duration = Duration::from_secs(10);
/// The time between two looks at the beats.
const TICK: Duration = Duration::from_millis(250);

/// Runs `test` under paused time. It has failed if that takes long by a real clock: time that is paused goes on only
/// when nothing is left to do, so what goes round without a pause holds it for ever.
pub(crate) fn without_spinning<Fut: Future<Output = ()>>(
    test: impl FnOnce() -> Fut + Send + 'static,
) {
    let (done, finished) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let _done = done;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    assert_eq!(
        finished.recv_timeout(LONG),
        Err(RecvTimeoutError::Disconnected),
        "it spins"
    );
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// The progress of a test of many steps, for a thread that watches it by a real clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heartbeat {
    beats: Arc<AtomicU64>,
    step: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Heartbeat {
    /// Says that step number `step` goes on.
    pub(crate) fn beat(&self, step: usize) {
        self.step.store(step, Relaxed);
        self.beats.fetch_add(1, Relaxed);
    }

    /// Returns when the test has to end because a step takes too long.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

/// Runs `test` in a thread of its own, and watches its beats. A step without a beat for ten seconds is told of at once,
/// by `describe`, past the capture of output, because the test may never end. After `patience` the test is asked to
/// stop.
///
/// # Errors
/// The step that does not even stop. Its thread goes on.
pub(crate) fn run_watched<T: Send + 'static>(
    patience: Duration,
    describe: impl Fn(usize) -> String,
    test: impl FnOnce(Heartbeat) -> T + Send + 'static,
) -> Result<T, usize> {
    let heartbeat = Heartbeat::default();
    let (done, finished) = mpsc::channel();
    let watched = heartbeat.clone();
    let thread = thread::spawn(move || {
        let _ = done.send(test(watched));
    });
    let (mut beats, mut since, mut reported) = (0, Instant::now(), false);
    loop {
        match finished.recv_timeout(TICK) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                resume_unwind(thread.join().expect_err("it has ended without a result"));
            }
        }
        let now = heartbeat.beats.load(Relaxed);
        if now != beats {
            (beats, since, reported) = (now, Instant::now(), false);
            continue;
        }
        let step = heartbeat.step.load(Relaxed);
        if since.elapsed() > SLOW && !reported {
            reported = true;
            let what = describe(step);
            let _ = writeln!(io::stderr(), "\n{what} takes longer than {SLOW:?}");
        }
        if since.elapsed() > patience {
            heartbeat.stop.cancel();
        }
        if since.elapsed() > patience + LONG {
            return Err(step);
        }
    }
}

#[test]
fn a_step_that_spins_is_told_of_and_stopped() {
    let pending = |heartbeat: Heartbeat| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            heartbeat.beat(7);
            tokio::spawn(async {
                loop {
                    tokio::task::yield_now().await;
                }
            });
            tokio::select! {
                biased;
                () = heartbeat.stopped() => "stopped",
                () = tokio::time::sleep(LONG) => "time went on",
            }
        })
    };
    let patience = Duration::from_millis(500);
    assert_eq!(
        run_watched(patience, |_| String::new(), pending),
        Ok("stopped")
    );
}
