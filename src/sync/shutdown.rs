//! The shutdown of a router, and its signal to the router's tasks.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
};

use tokio_util::sync::CancellationToken;

use super::lock;

/// A function that ends waits which do not watch the shutdown.
type Hook = Box<dyn Fn() + Send + Sync>;

/// The state of a router's shutdown. The router terminates when it is closed or dropped, or when the runtime that it
/// was built on is found to have ended. An ended runtime drops its tasks and every new one, and the guard of such an
/// unfinished task terminates the router.
#[derive(Default)]
pub(crate) struct Shutdown {
    /// `true` if new callers are refused. Earlier callers may still be served.
    shut: AtomicBool,
    over: AtomicBool,
    end: CancellationToken,
    /// Run when the router terminates. Locked for the registration and for that.
    hooks: Mutex<Vec<Hook>>,
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

    /// Registers a function that runs once the router has terminated. It ends waits that were begun before; a wait that
    /// begins later must look at [`is_terminated`](Self::is_terminated), under a lock that the function takes too.
    pub(crate) fn on_terminated(&self, hook: impl Fn() + Send + Sync + 'static) {
        lock(&self.hooks).push(Box::new(hook));
    }

    /// Terminates the router. The caller holds no lock, because this runs the registered functions.
    pub(crate) fn terminate(&self) {
        self.stop_accepting();
        if self.over.swap(true, AcqRel) {
            return;
        }
        self.end.cancel();
        for hook in &*lock(&self.hooks) {
            hook();
        }
    }

    /// Waits until the router has terminated.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn terminated(&self) {
        self.end.cancelled().await;
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}
