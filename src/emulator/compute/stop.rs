//! The ways in which a compute stops.

use serde::Deserialize;

/// How a compute is stopped: they differ in what its clients see.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stop {
    /// As Neon suspends a compute: the pooler is killed, then Postgres stops in its fast way. Pooled clients see a bare
    /// close, direct ones `57P01`.
    #[default]
    Neon,
    /// Postgres stops in its fast way, and the pooler after it: pooled clients in a transaction see `57P01` too.
    Fast,
    /// Postgres stops at once and recovers at its next start: direct clients see a warning with `57P01` and no error,
    /// pooled ones in a transaction `08P01`.
    Immediate,
    /// Everything is killed: all clients see a bare close.
    Kill,
}
