//! The transaction on a connection, as the server reports it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::ConnectionStatus;

impl ConnectionStatus {
    /// Returns whether a transaction is open, as of the last answer.
    pub(crate) fn in_transaction(&self) -> bool {
        matches!(self.transaction_status.load(Acquire), b'T' | b'E')
    }

    /// Returns whether a statement of the open transaction has failed, as of the last answer.
    pub(crate) fn has_failed(&self) -> bool {
        self.transaction_status.load(Acquire) == b'E'
    }

    /// Notes the transaction status that a ReadyForQuery reports.
    pub(in crate::connection) fn note_status(&self, status: u8) {
        self.transaction_status.store(status, Release);
        if status == b'I' {
            self.idles.fetch_add(1, Release);
        }
    }

    /// Notes an error, which fails the transaction if one is open. The server may report that status later.
    pub(in crate::connection) fn note_error(&self) {
        let _ = self
            .transaction_status
            .compare_exchange(b'T', b'E', AcqRel, Acquire);
    }

    /// Returns the number of times that the server reported itself idle, outside any transaction.
    pub(crate) fn idles(&self) -> u64 {
        self.idles.load(Acquire)
    }

    /// Notes that a statement was written that may end a transaction.
    pub(in crate::connection) fn note_end(&self) {
        self.ends.fetch_add(1, Release);
    }

    /// Returns the number of written statements that may end a transaction.
    pub(crate) fn ends(&self) -> u64 {
        self.ends.load(Acquire)
    }

    /// Notes that the server completed a command, and whether that was a rollback.
    pub(in crate::connection) fn note_done(&self, rollback: bool) {
        self.rolled_back.store(rollback, Release);
    }

    pub(crate) fn was_rolled_back(&self) -> bool {
        self.rolled_back.load(Acquire)
    }

    /// Returns the SQLSTATE of the last error that the server sent on it.
    pub(crate) fn last_sqlstate(&self) -> Option<String> {
        let packed = self.sqlstate.load(Acquire);
        (packed != 0).then(|| String::from_utf8_lossy(&packed.to_be_bytes()[3..]).into_owned())
    }
}
