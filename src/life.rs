//! Whether a router is still alive, and who hears when it is not.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Ends when the router is closed or dropped, or when the runtime it was built on is.
#[derive(Debug, Default)]
pub(crate) struct Life {
    over: AtomicBool,
    end: CancellationToken,
}

impl Life {
    /// A life that ends with `runtime` at the latest.
    pub(crate) fn on(runtime: &Handle) -> Arc<Self> {
        let life = Arc::new(Self::default());
        let sentinel = Sentinel(Arc::clone(&life));
        runtime.spawn(async move { sentinel.0.ended().await });
        life
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }

    pub(crate) fn finish(&self) {
        self.over.store(true, Release);
        self.end.cancel();
    }

    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub(crate) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

/// Lives in a task that only waits. A runtime that ends drops its tasks, and so ends the life.
struct Sentinel(Arc<Life>);

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.0.finish();
    }
}
