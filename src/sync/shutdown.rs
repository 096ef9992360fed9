//! Whether a router is still alive, and who hears when it is not.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

use tokio_util::sync::CancellationToken;

/// Ends when the router is closed or dropped, or when the runtime it was built on is found to have ended: it drops the
/// tasks it has and those that are given to it, and whatever such a task leaves undone ends the life.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    /// Whether new callers are turned away. Whoever came before may still be served.
    shut: AtomicBool,
    over: AtomicBool,
    end: CancellationToken,
}

impl Shutdown {
    pub(crate) fn is_stopping(&self) -> bool {
        self.shut.load(Acquire)
    }

    /// Turns new callers away.
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

    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub(crate) async fn terminated(&self) {
        self.end.cancelled().await;
    }
}
