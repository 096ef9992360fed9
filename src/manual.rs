//! The manual: what is worth knowing beyond each item's own page.

/// A cold start, what can happen to it and to a database that runs, and what each call makes of it.
pub mod cold_start {
    #![doc = include_str!("manual/cold_start.md")]
}
