//! The manual: guides that go beyond the documentation of single items.

/// A guide for contributors: the source folders in order, the place for a new feature, and the shape of a test.
pub mod architecture {
    #![doc = include_str!("manual/architecture.md")]
}

/// Every bound, its size, and the order in which waiting callers are served.
pub mod bounds {
    #![doc = include_str!("manual/bounds.md")]
}

/// The steps of a cold start, the failures of a wake or of a running database, and the outcome of each call.
pub mod cold_start {
    #![doc = include_str!("manual/cold_start.md")]
}

/// Every kind of error: its cause, whether a retry helps, and the change that helps.
pub mod errors {
    #![doc = include_str!("manual/errors.md")]
}

/// Short answers to questions about the design and its limits.
pub mod faq {
    #![doc = include_str!("manual/faq.md")]
}

/// The measurements, with the machine and the command of each.
pub mod figures {
    #![cfg_attr(
        not(feature = "emulator"),
        allow(rustdoc::broken_intra_doc_links, reason = "it links to the emulator")
    )]
    #![doc = include_str!("manual/figures.md")]
}

/// The move from a hand-written map of pools: its problems, and the steps.
pub mod from_a_map {
    #![doc = include_str!("manual/from_a_map.md")]
}

/// A tutorial from an empty crate to an axum server with one database per tenant: on the emulator, on Neon, in many
/// replicas.
pub mod getting_started {
    #![doc = include_str!("manual/getting_started.md")]
}

/// The cost of `get` if a connection is idle, and the index in front of the cache.
pub mod hot_path {
    #![doc = include_str!("manual/hot_path.md")]
}

/// Several processes of one app on one catalog.
pub mod many_replicas {
    #![doc = include_str!("manual/many_replicas.md")]
}

/// The promises, and the tests that fail if a promise is broken.
pub mod promises {
    #![doc = include_str!("manual/promises.md")]
}

/// The creation of a tenant's database: the records, the API calls, and what an interruption leaves.
pub mod provisioning {
    #![doc = include_str!("manual/provisioning.md")]
}

/// The path of a call from tenant id to connection and back: each step with its deadline, its task and its file.
pub mod request {
    #![doc = include_str!("manual/request.md")]
}

/// The round trips of each call, beside the least that bare code needs.
pub mod round_trips {
    #![doc = include_str!("manual/round_trips.md")]
}

/// Schema changes: the steps, the migration of one tenant, and its failures.
pub mod schema {
    #![doc = include_str!("manual/schema.md")]
}

/// The isolation of tenants, the places of the secrets, and the tasks that are left for you.
pub mod security {
    #![doc = include_str!("manual/security.md")]
}

/// The metrics, spans, events and log lines, by name. The names are a stable contract.
pub mod telemetry {
    #![doc = include_str!("manual/telemetry.md")]
}

/// Tests of an app on an emulator of Neon.
pub mod testing {
    #![cfg_attr(
        not(feature = "emulator"),
        allow(rustdoc::broken_intra_doc_links, reason = "it links to the emulator")
    )]
    #![doc = include_str!("manual/testing.md")]
}

/// Every setting: its default, the reason for it, and when to change it.
pub mod tuning {
    #![doc = include_str!("manual/tuning.md")]
}
