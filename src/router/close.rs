//! The end of a router, and its readiness for callers.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Inner, TenantRouter};
use crate::sync::progress::LONGEST;

/// Longest wait in `close` for connections to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl TenantRouter {
    /// Returns whether calls are accepted: from [`build`](crate::RouterBuilder::build) until the router begins to
    /// close. It is for a readiness probe: it asks neither a tenant nor the catalog.
    ///
    /// An outage of the catalog or of Neon does not change it. Known tenants are still served then, and an orchestrator
    /// that took out every replica would add a fault of its own.
    pub fn is_ready(&self) -> bool {
        !self.inner.shared.life.is_stopping()
    }

    /// Ends the router. Calls that wait and all later ones return `ErrorKind::Closed`. Idle connections are closed now,
    /// and those in use when they come back. Returns when all are closed, after 5 seconds at the latest.
    ///
    /// To wait for calls in progress first, use [`close_within`](Self::close_within).
    ///
    /// # Cancel safety
    /// The first poll closes the router. Dropping the future only ends the waiting.
    pub async fn close(&self) {
        self.inner.end(Instant::now() + CLOSE_TIMEOUT).await;
    }

    /// Ends the router gently. Later calls return `ErrorKind::Closed` at once. Calls that wait already are still
    /// served, the fleet's calls under way finish, and connections in use stay until they come back. Once `limit` is
    /// over, the rest ends as by [`close`](Self::close), without further waiting. Returns `false` if something was
    /// left: a waiting caller that was turned away, or a connection still in use.
    ///
    /// Call this after the web server has stopped, because a request that calls the router twice would fail at its
    /// second call. Choose a shorter `limit` than the time that the process gets to stop (Kubernetes: 30 seconds in all
    /// by default).
    ///
    /// # Cancel safety
    /// From the first poll on, later calls are turned away. If the future is dropped before it returns, the router
    /// stays in that state: idle connections are closed, and those in use when they come back.
    pub async fn close_within(&self, limit: Duration) -> bool {
        let Inner { pools, shared, .. } = &*self.inner;
        let until = Instant::now() + limit.min(LONGEST);
        shared.life.stop_accepting();
        pools.evict_all(); // a caller that waits for one of their connections still gets it
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
    /// Closes everything, and waits for that. Returns whether it was done by `until`.
    async fn end(&self, until: Instant) -> bool {
        let Self { pools, shared, .. } = self;
        shared.life.terminate();
        pools.evict_all();
        shared.jobs.close();
        shared.connections.close();
        shared.attempts.close();
        let all = async {
            tokio::join!(
                self.deregister(until),
                shared.jobs.wait(),
                shared.attempts.wait(),
                shared.connections.wait(),
            );
            shared.dialer.budget.emptied().await;
        };
        let ended = timeout_at(until, all).await.is_ok();
        #[cfg(feature = "metrics")]
        self.record(); // for the last time: the recording task has ended
        ended
    }
}
