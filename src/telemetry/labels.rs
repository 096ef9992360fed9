//! The values of labels: the reason for a wake, and the path of a call to its connection.

/// The reason for a wake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// A caller waits for a connection.
    Request,
    /// The application called `warm`: it expects to need a connection.
    Warm,
    /// The application called `hint`: it may need a connection.
    Hint,
    /// A database is prepared before its first use.
    Fleet,
    /// A tenant's schema is migrated.
    Migration,
}

impl Reason {
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    pub(super) const ALL: [Self; 5] = [
        Self::Request,
        Self::Warm,
        Self::Hint,
        Self::Fleet,
        Self::Migration,
    ];

    /// Returns the name in metrics, spans and explanations.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Warm => "warm",
            Self::Hint => "hint",
            Self::Fleet => "fleet",
            Self::Migration => "migration",
        }
    }
}

/// The path of a `get` to its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    /// A connection was idle.
    Warm,
    /// The call waited for a connection to a database that was awake.
    Reopened,
    /// The call waited for a database that was believed asleep.
    Cold,
    /// The call waited until the database was created or adopted.
    Provisioned,
}

impl Path {
    /// Returns the path of a call on which a migration came first, which woke the database if `has_woken`.
    pub(crate) const fn after_migration(self, has_woken: bool) -> Self {
        match self {
            Self::Warm | Self::Reopened if has_woken => Self::Cold,
            path => path,
        }
    }

    /// Returns the name in metrics and spans.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Reopened => "reopened",
            Self::Cold => "cold",
            Self::Provisioned => "provisioned",
        }
    }
}
