//! The verdict on a connection that is about to be used.

use super::ConnectionStatus;

/// The state of a connection, as far as it is known without asking the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    /// It can be used as it is.
    Healthy,
    /// A request may be about to be written on it, or an earlier user's request was written after it came back.
    Pending,
    /// It was silent for so long that it may be dead unnoticed, or it is suspect for another reason.
    NeedsPing,
    /// Its task has ended.
    Closed,
}

impl ConnectionStatus {
    /// Returns the health of a connection that is pinged after a silence of `verify_after`. Both times are
    /// milliseconds, `now` by the clock of its router.
    #[inline]
    pub(crate) fn health(&self, verify_after: u64, now: u64) -> Health {
        // The driver's own `is_closed` changes at the same moment, but lies further away in memory.
        if self.has_ended() {
            Health::Closed
        } else if !self.is_clean() || self.session.is_marked() {
            Health::Pending
        } else if self.is_suspect() || self.was_silent_for(verify_after, now) {
            Health::NeedsPing
        } else {
            Health::Healthy
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn a_connection_is_pinged_after_its_time_of_silence_and_always_if_that_is_none() {
        let status = ConnectionStatus::new();
        status.note_status(b'I');
        status
            .settled_wakes
            .store(status.wakes.load(Relaxed), Relaxed);
        let heard = status.last_read.load(Relaxed);
        assert_eq!(status.health(30, heard + 29), Health::Healthy);
        assert_eq!(status.health(30, heard + 30), Health::NeedsPing);
        assert_eq!(status.health(0, heard), Health::NeedsPing);
    }
}
