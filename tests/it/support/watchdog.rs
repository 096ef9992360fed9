//! Telling a test that spins from one that waits.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
};

use super::LONG;

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
        std::panic::resume_unwind(panic);
    }
}
