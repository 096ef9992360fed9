//! The ways in which a compute stops.

use serde::Deserialize;

/// A way to stop a compute. The ways differ in what its clients see.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stop {
    /// The way in which Neon suspends a compute: the pooler is killed, then Postgres shuts down in fast mode. Pooled
    /// clients see a bare close, direct ones `57P01`.
    #[default]
    Neon,
    /// Postgres shuts down in fast mode, and the pooler after it: pooled clients in a transaction see `57P01` too.
    Fast,
    /// Postgres shuts down in immediate mode and recovers at its next start: direct clients see a warning with `57P01`
    /// and no error, pooled ones in a transaction `08P01`.
    Immediate,
    /// All processes are killed: all clients see a bare close.
    Kill,
}
