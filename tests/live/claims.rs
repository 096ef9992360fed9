//! The emulator's claims of Neon. A claim is a line here and a function that asks.

mod branches;
mod computes;
mod creation;
mod deletion;
mod logins;
mod updates;

use futures_util::future::{BoxFuture, ready};
use tenantry::BoxError;

use crate::{findings::Findings, subject::Subject};

/// Something that the emulator claims.
pub(crate) struct Claim {
    /// The prefix of the lines about it.
    pub(crate) name: &'static str,
    pub(crate) ask: for<'a> fn(&'a Subject, &'a mut Findings) -> Asked<'a>,
}

/// A claim is asked to its end, or an answer was missing.
type Asked<'a> = BoxFuture<'a, Result<(), BoxError>>;

/// In the order in which they are asked: each finds the project awake and without operations, but for the first, which
/// finds it in creation, and the last, which deletes it.
pub(crate) static CLAIMS: &[Claim] = &[
    Claim {
        name: "locks",
        ask: |subject, findings| Box::pin(creation::locks(subject, findings)),
    },
    Claim {
        name: "creation",
        ask: |subject, findings| Box::pin(ready(creation::shape(subject, findings))),
    },
    Claim {
        name: "operations",
        ask: |subject, findings| Box::pin(creation::operations(subject, findings)),
    },
    Claim {
        name: "connection uris",
        ask: |subject, findings| Box::pin(creation::uris(subject, findings)),
    },
    Claim {
        name: "search",
        ask: |subject, findings| Box::pin(deletion::search(subject, findings)),
    },
    Claim {
        name: "annotations",
        ask: |subject, findings| Box::pin(branches::annotations(subject, findings)),
    },
    Claim {
        name: "refusals of the api",
        ask: |subject, findings| Box::pin(updates::refusals(subject, findings)),
    },
    Claim {
        name: "logins",
        ask: |subject, findings| Box::pin(logins::refused(subject, findings)),
    },
    Claim {
        name: "suspend",
        ask: |subject, findings| Box::pin(computes::suspend(subject, findings)),
    },
    Claim {
        name: "wake",
        ask: |subject, findings| Box::pin(computes::wake(subject, findings)),
    },
    Claim {
        name: "branches",
        ask: |subject, findings| Box::pin(branches::create(subject, findings)),
    },
    Claim {
        name: "updates of an endpoint",
        ask: |subject, findings| Box::pin(updates::endpoint(subject, findings)),
    },
    Claim {
        name: "updates of a project",
        ask: |subject, findings| Box::pin(updates::project(subject, findings)),
    },
    Claim {
        name: "annotations after updates",
        ask: |subject, findings| Box::pin(branches::annotations(subject, findings)),
    },
    Claim {
        name: "a disabled endpoint",
        ask: |subject, findings| Box::pin(computes::disabled(subject, findings)),
    },
    Claim {
        name: "deletion",
        ask: |subject, findings| Box::pin(deletion::delete(subject, findings)),
    },
];
