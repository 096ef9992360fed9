//! The values of labels: for which reason a database is woken, and how a call came to its connection.

/// On whose account a database is woken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// A caller wants a connection.
    Request,
    /// The application expects one to be wanted.
    Warm,
    /// The application guesses that one may be wanted.
    Hint,
    /// A database is prepared before anybody uses it.
    Fleet,
}

impl Reason {
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "for metrics"))]
    pub(crate) const ALL: [Self; 4] = [Self::Request, Self::Warm, Self::Hint, Self::Fleet];

    /// As it is written in metrics, spans and explanations.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Warm => "warm",
            Self::Hint => "hint",
            Self::Fleet => "fleet",
        }
    }
}

/// How a call of `get` came to its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    /// One was idle.
    Warm,
    /// It waited for one, of a database that was awake.
    Reopened,
    /// It waited for a database believed asleep.
    Cold,
    /// It waited for the database to be created, or found again.
    Provisioned,
}

impl Path {
    /// As it is written in metrics and spans.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Reopened => "reopened",
            Self::Cold => "cold",
            Self::Provisioned => "provisioned",
        }
    }
}
