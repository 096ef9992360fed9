//! The manual: what is worth knowing beyond each item's own page.

/// For people who change the code: the source folders in order, where a new feature goes, and how a test looks.
pub mod architecture {
    #![doc = include_str!("manual/architecture.md")]
}

/// What is bounded, by how much, and who gets what is left.
pub mod bounds {
    #![doc = include_str!("manual/bounds.md")]
}

/// A cold start, what can happen to it and to a database that runs, and what each call makes of it.
pub mod cold_start {
    #![doc = include_str!("manual/cold_start.md")]
}

/// Every kind of error: why it comes, whether to try again, and what to change.
pub mod errors {
    #![doc = include_str!("manual/errors.md")]
}

/// Short answers: why it is as it is, and what it is not.
pub mod faq {
    #![doc = include_str!("manual/faq.md")]
}

/// What was measured, on what, and by which command.
pub mod figures {
    #![cfg_attr(
        not(feature = "emulator"),
        allow(rustdoc::broken_intra_doc_links, reason = "it links to the emulator")
    )]
    #![doc = include_str!("manual/figures.md")]
}

/// Coming from pools in a hand-written map: what goes wrong there, and how to move.
pub mod from_a_map {
    #![doc = include_str!("manual/from_a_map.md")]
}

/// From an empty crate to an axum server with a database for each tenant: on the emulator, on Neon, in many replicas.
pub mod getting_started {
    #![doc = include_str!("manual/getting_started.md")]
}

/// What `get` costs when a connection is at hand, and what stands in front of the cache.
pub mod hot_path {
    #![doc = include_str!("manual/hot_path.md")]
}

/// Many processes of an app on one catalog.
pub mod many_replicas {
    #![doc = include_str!("manual/many_replicas.md")]
}

/// What is promised, and the tests that fail when a promise is broken.
pub mod promises {
    #![doc = include_str!("manual/promises.md")]
}

/// From nothing to a tenant's database: what is written, what is sent, and what is left when it stops in between.
pub mod provisioning {
    #![doc = include_str!("manual/provisioning.md")]
}

/// From the id to the connection and back: each step with its deadline, its task and its file.
pub mod request {
    #![doc = include_str!("manual/request.md")]
}

/// What keeps tenants apart, where the secrets are, and what is left for you to see to.
pub mod security {
    #![doc = include_str!("manual/security.md")]
}

/// Metrics, spans, events and log lines, by name: a contract.
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

/// Every setting: its default, why it is that, and when to change it.
pub mod tuning {
    #![doc = include_str!("manual/tuning.md")]
}
