//! The end of a router, and whether it is ready for callers.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Inner, TenantRouter};
use crate::sync::progress::LONGEST;

/// Longest wait, in `close`, for connections to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl TenantRouter {
    /// Whether calls are accepted: from [`build`](crate::RouterBuilder::build) until the router is closed or begins to be.
    /// For a readiness probe: it asks nobody, neither a tenant nor the catalog.
    ///
    /// A catalog or a Neon that is down does not change it. Tenants that are known are served all the same, and an
    /// orchestrator that took every replica out for it would make one fault another.
    pub fn is_ready(&self) -> bool {
        !self.inner.shared.life.is_stopping()
    }

    /// Ends the router: calls that wait and all later ones answer `ErrorKind::Closed`, idle connections are closed
    /// now and those in use when they come back. Returns when all are closed, after 5 seconds at the latest.
    ///
    /// To let those finish who are at it, use [`close_within`](Self::close_within).
    ///
    /// # Cancel safety
    /// The router is closed by the first poll; dropping the future only ends the waiting.
    pub async fn close(&self) {
        self.inner.end(Instant::now() + CLOSE_TIMEOUT).await;
    }

    /// Ends the router gently: later calls answer `ErrorKind::Closed` at once, those that wait already are still served,
    /// the fleet's calls under way end, and connections in use stay until they are given back. What is left when `patience` is over ends as by
    /// [`close`](Self::close), without further waiting. Says whether nothing was left: `false` if anybody was
    /// turned away who had waited, or still has a connection.
    ///
    /// To be called when the web server has stopped, because a request that calls twice would find the router
    /// shut at its second call; with less patience than whoever stops the process has (Kubernetes: 30 seconds in
    /// all by default).
    ///
    /// # Cancel safety
    /// Later calls are turned away from the first poll on. Dropping the future before it returns leaves it at that: idle
    /// connections are closed, and those in use when they come back.
    pub async fn close_within(&self, patience: Duration) -> bool {
        let Inner { pools, shared, .. } = &*self.inner;
        let until = Instant::now() + patience.min(LONGEST);
        shared.life.stop_accepting();
        pools.evict_all(); // who waits for one of their connections still gets it
        shared.jobs.close();
        let done = async {
            shared.waiting.emptied().await;
            shared.jobs.wait().await;
        };
        let served = timeout_at(until, done).await.is_ok();
        self.inner.end(until).await && served
    }
}

impl Inner {
    /// Closes everything, and waits for that; says whether it was over by `until`.
    async fn end(&self, until: Instant) -> bool {
        let Self { pools, shared, .. } = self;
        shared.life.terminate();
        pools.evict_all();
        shared.jobs.close();
        shared.connections.close();
        shared.attempts.close();
        let all = async {
            tokio::join!(
                shared.jobs.wait(),
                shared.attempts.wait(),
                shared.connections.wait(),
            );
            shared.dialer.budget.emptied().await;
        };
        let ended = timeout_at(until, all).await.is_ok();
        #[cfg(feature = "metrics")]
        self.record(); // nobody does so any more
        ended
    }
}
