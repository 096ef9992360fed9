//! The state that a session may keep of its last user.

use std::sync::atomic::{
    AtomicU8,
    Ordering::{AcqRel, SeqCst},
};

use crate::model::endpoint::SessionReset;

/// The state that a statement may leave in its session, as bits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Residue(u8);

impl Residue {
    pub(in crate::connection) const NONE: Self = Self(0);
    /// A reset undoes it.
    pub(in crate::connection) const RESETTABLE: Self = Self(1);
    /// Only the end of the session undoes it.
    pub(in crate::connection) const LASTING: Self = Self(2);
    /// The server has dropped prepared statements, which the driver does not know.
    pub(in crate::connection) const FORGETS: Self = Self(4);

    pub(in crate::connection) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(in crate::connection) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the residue without `other`.
    pub(in crate::connection) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Set while parameters that the server reported differ from those at the login.
const DIFFERS: u8 = 8;
/// Set when a notification has come.
const NOTIFIED: u8 = 16;

/// The flags of one session, which the tap writes.
#[derive(Debug)]
pub(crate) struct SessionFlags {
    /// The condition for a reset of the session.
    pub(in crate::connection) reset: SessionReset,
    /// The bits, ordered with the connection's `outstanding` and `parked`: the tap writes here before it counts a
    /// request.
    bits: AtomicU8,
}

impl SessionFlags {
    pub(in crate::connection) fn new(reset: SessionReset) -> Self {
        Self {
            reset,
            bits: AtomicU8::new(0),
        }
    }

    /// Notes that a statement was written that may leave `residue`.
    pub(in crate::connection) fn mark(&self, residue: Residue) {
        if self.bits.load(SeqCst) & residue.0 != residue.0 {
            self.bits.fetch_or(residue.0, SeqCst);
        }
    }

    /// Returns whether a statement was written that may have left state.
    pub(in crate::connection) fn is_marked(&self) -> bool {
        self.bits.load(SeqCst) & !(DIFFERS | NOTIFIED) != 0
    }

    /// Notes whether parameters that the server reported differ from those at the login.
    pub(in crate::connection) fn note_difference(&self, differs: bool) {
        if differs {
            self.bits.fetch_or(DIFFERS, AcqRel);
        } else {
            self.bits.fetch_and(!DIFFERS, AcqRel);
        }
    }

    /// Notes that a notification has come, which shows that the session listens.
    pub(in crate::connection) fn note_notification(&self) {
        self.bits.fetch_or(NOTIFIED, AcqRel);
    }

    /// Returns whether the next user must not get the session as it is.
    pub(crate) fn needs_reset(&self) -> bool {
        self.bits.load(SeqCst) != 0
    }

    /// Returns whether a reset undoes all known residue.
    pub(crate) fn can_be_reset(&self) -> bool {
        self.bits.load(SeqCst) & Residue::LASTING.0 == 0
    }

    /// Notes that the server has reset the session, and returns whether no known residue is left.
    pub(crate) fn note_reset(&self) -> bool {
        let undone = Residue::RESETTABLE.0 | NOTIFIED;
        self.bits.fetch_and(!undone, SeqCst) & !undone == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{connection::status::ConnectionStatus, sync::clock::Clock};

    #[test]
    fn a_request_that_ran_on_an_idle_connection_and_left_something_is_a_stray() {
        let status = ConnectionStatus::with_reset(SessionReset::IfNeeded, Clock::start());
        status.note_status(b'I');
        assert!(status.park());
        status.session.note_difference(true);
        assert!(!status.is_stray(), "the server alone does not make it one");
        status.session.mark(Residue::RESETTABLE);
        assert!(status.is_stray());
    }

    #[test]
    fn a_reset_undoes_what_it_can_and_nothing_else() {
        let session = SessionFlags::new(SessionReset::IfNeeded);
        session.mark(Residue::RESETTABLE);
        session.note_notification();
        assert!(session.needs_reset() && session.can_be_reset());
        assert!(session.note_reset());
        assert!(!session.needs_reset());
        session.note_difference(true);
        assert!(session.needs_reset() && !session.is_marked());
        assert!(
            !session.note_reset(),
            "the server says that it is not as it was"
        );
        session.note_difference(false);
        session.mark(Residue::LASTING);
        assert!(session.is_marked() && !session.can_be_reset());
        assert!(!session.note_reset());
    }
}
