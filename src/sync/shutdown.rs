//! The shutdown of a router, and its signal to the router's tasks.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

use tokio_util::sync::CancellationToken;

/// The state of a router's shutdown. The router terminates when it is closed or dropped, or when the runtime that it
/// was built on is found to have ended. An ended runtime drops its tasks and every new one, and the guard of such an
/// unfinished task terminates the router.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    /// `true` if new callers are refused. Earlier callers may still be served.
    shut: AtomicBool,
    over: AtomicBool,
    end: CancellationToken,
}

impl Shutdown {
    pub(crate) fn is_stopping(&self) -> bool {
        self.shut.load(Acquire)
    }

    /// Refuses new callers from now on.
    pub(crate) fn stop_accepting(&self) {
        self.shut.store(true, Release);
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.over.load(Acquire)
    }

    pub(crate) fn terminate(&self) {
        self.stop_accepting();
        self.over.store(true, Release);
        self.end.cancel();
    }

    /// Waits until the router has terminated.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn terminated(&self) {
        self.end.cancelled().await;
    }
}
