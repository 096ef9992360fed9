//! The manual: what is worth knowing beyond each item's own page.

/// What is bounded, by how much, and who gets what is left.
pub mod bounds {
    #![doc = include_str!("manual/bounds.md")]
}

/// A cold start, what can happen to it and to a database that runs, and what each call makes of it.
pub mod cold_start {
    #![doc = include_str!("manual/cold_start.md")]
}

/// What `get` costs when a connection is at hand, and what stands in front of the cache.
pub mod hot_path {
    #![doc = include_str!("manual/hot_path.md")]
}

/// Many processes of an app on one catalog.
pub mod many_replicas {
    #![doc = include_str!("manual/many_replicas.md")]
}

/// From nothing to a tenant's database: what is written, what is sent, and what is left when it stops in between.
pub mod provisioning {
    #![doc = include_str!("manual/provisioning.md")]
}

/// Metrics, spans, events and log lines, by name: a contract.
pub mod telemetry {
    #![doc = include_str!("manual/telemetry.md")]
}
