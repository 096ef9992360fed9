//! The last sign of life of a connection, and doubts about it since then.

use std::{
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    time::Duration,
};

use tokio::time::Instant;

use super::{ConnectionStatus, marks::Mark};

impl ConnectionStatus {
    /// Notes that bytes came from the server, which proves that the connection is alive.
    pub(in crate::connection) fn mark_heard(&self) {
        let now = self.clock.now().millis();
        self.last_read.store(now, Relaxed);
        self.marks.take(Mark::SUSPECTED);
    }

    /// Returns the time since the server last sent anything, and so was alive for certain.
    pub(crate) fn silent_for(&self) -> Duration {
        self.silent_at(Instant::now())
    }

    /// Returns the time from the server's last bytes to `now`.
    pub(crate) fn silent_at(&self, now: Instant) -> Duration {
        now.duration_since(self.last_heard())
    }

    /// Returns whether the server's last bytes came `limit` before `now` or earlier; both are milliseconds, `now` by
    /// the clock of its router.
    #[inline]
    pub(in crate::connection) fn was_silent_for(&self, limit: u64, now: u64) -> bool {
        now.saturating_sub(self.last_read.load(Relaxed)) >= limit
    }

    /// Returns the instant at which the server last sent anything.
    pub(crate) fn last_heard(&self) -> Instant {
        let heard = Duration::from_millis(self.last_read.load(Relaxed));
        self.clock.instant(heard)
    }

    /// Returns whether a request has no answer yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.outstanding.load(Acquire) > 0
    }

    /// Marks it as possibly dead, until the server sends anything on it.
    pub(crate) fn suspect(&self) {
        self.marks.set(Mark::SUSPECTED);
    }

    /// Returns whether it is possibly dead, so that the server is pinged on it before it is used.
    pub(crate) fn is_suspect(&self) -> bool {
        self.marks.has(Mark::SUSPECTED)
    }

    /// Marks it to be closed when it comes back, whatever its age.
    pub(crate) fn expire(&self) {
        self.marks.set(Mark::EXPIRED);
    }

    /// Notes that Postgres refused a statement that was prepared before a schema change, which also expires the
    /// connection.
    pub(in crate::connection) fn mark_outdated(&self) {
        self.outdated.store(true, Release);
        self.expire();
    }

    /// Returns whether Postgres refused a statement that was prepared before a schema change.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Acquire)
    }

    /// Returns whether Postgres refused such a statement, and `true` only once.
    pub(crate) fn take_outdated(&self) -> bool {
        self.is_outdated() && !self.outdated_taken.swap(true, AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspicion_holds_until_the_server_sends_anything() {
        let status = ConnectionStatus::new();
        assert!(!status.is_suspect());
        status.suspect();
        assert!(status.is_suspect());
        status.mark_heard();
        assert!(!status.is_suspect());
    }
}
