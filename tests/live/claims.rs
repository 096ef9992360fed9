//! The emulator's claims of Neon. A claim is a line here and a function that asks.

mod branches;
mod computes;
mod creation;
mod deletion;
mod logins;
mod updates;

use futures_util::future::{BoxFuture, ready};
use tenantry::BoxError;

use crate::{findings::Findings, test_project::TestProject};

/// Something that the emulator claims.
pub(crate) struct Claim {
    /// The prefix of the lines about it.
    pub(crate) name: &'static str,
    pub(crate) ask: for<'a> fn(&'a TestProject, &'a mut Findings) -> Asked<'a>,
}

/// A claim is asked to its end, or an answer was missing.
type Asked<'a> = BoxFuture<'a, Result<(), BoxError>>;

/// In the order in which they are asked: each finds the project awake and without operations, but for the first, which
/// finds it in creation, and the last, which deletes it.
pub(crate) static CLAIMS: &[Claim] = &[
    Claim {
        name: "locks",
        ask: |test_project, findings| Box::pin(creation::locks(test_project, findings)),
    },
    Claim {
        name: "creation",
        ask: |test_project, findings| Box::pin(ready(creation::shape(test_project, findings))),
    },
    Claim {
        name: "operations",
        ask: |test_project, findings| Box::pin(creation::operations(test_project, findings)),
    },
    Claim {
        name: "connection uris",
        ask: |test_project, findings| Box::pin(creation::uris(test_project, findings)),
    },
    Claim {
        name: "search",
        ask: |test_project, findings| Box::pin(deletion::search(test_project, findings)),
    },
    Claim {
        name: "annotations",
        ask: |test_project, findings| Box::pin(branches::annotations(test_project, findings)),
    },
    Claim {
        name: "refusals of the api",
        ask: |test_project, findings| Box::pin(updates::refusals(test_project, findings)),
    },
    Claim {
        name: "logins",
        ask: |test_project, findings| Box::pin(logins::refused(test_project, findings)),
    },
    Claim {
        name: "suspend",
        ask: |test_project, findings| Box::pin(computes::suspend(test_project, findings)),
    },
    Claim {
        name: "wake",
        ask: |test_project, findings| Box::pin(computes::wake(test_project, findings)),
    },
    Claim {
        name: "branches",
        ask: |test_project, findings| Box::pin(branches::create(test_project, findings)),
    },
    Claim {
        name: "updates of an endpoint",
        ask: |test_project, findings| Box::pin(updates::endpoint(test_project, findings)),
    },
    Claim {
        name: "updates of a project",
        ask: |test_project, findings| Box::pin(updates::project(test_project, findings)),
    },
    Claim {
        name: "annotations after updates",
        ask: |test_project, findings| Box::pin(branches::annotations(test_project, findings)),
    },
    Claim {
        name: "a disabled endpoint",
        ask: |test_project, findings| Box::pin(computes::disabled(test_project, findings)),
    },
    Claim {
        name: "deletion",
        ask: |test_project, findings| Box::pin(deletion::delete(test_project, findings)),
    },
];
