//! The calls of a catalog, by kind: each has its own metric, and reads have another breaker than writes.

use crate::sync::circuit_breaker::KINDS;

const _: () = assert!(
    Operation::ALL.len() <= KINDS,
    "the breaker counts fewer kinds of calls"
);

/// A kind of call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Find,
    FindMany,
    Lease,
    Write,
    Release,
    List,
    Tally,
    Changes,
    Note,
    WriteNote,
    Register,
    Deregister,
    Processes,
}

impl Operation {
    pub(super) const ALL: [Self; 13] = [
        Self::Find,
        Self::FindMany,
        Self::Lease,
        Self::Write,
        Self::Release,
        Self::List,
        Self::Tally,
        Self::Changes,
        Self::Note,
        Self::WriteNote,
        Self::Register,
        Self::Deregister,
        Self::Processes,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Find => "find",
            Self::FindMany => "find_many",
            Self::Lease => "lease",
            Self::Write => "write",
            Self::Release => "release",
            Self::List => "list",
            Self::Tally => "tally",
            Self::Changes => "changes",
            Self::Note => "note",
            Self::WriteNote => "write_note",
            Self::Register => "register",
            Self::Deregister => "deregister",
            Self::Processes => "processes",
        }
    }

    pub(super) const fn writes(self) -> bool {
        match self {
            Self::Lease
            | Self::Write
            | Self::Release
            | Self::WriteNote
            | Self::Register
            | Self::Deregister => true,
            Self::Find
            | Self::FindMany
            | Self::List
            | Self::Tally
            | Self::Changes
            | Self::Note
            | Self::Processes => false,
        }
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}
