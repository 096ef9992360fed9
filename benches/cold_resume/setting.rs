//! Under what a turn is measured.

use std::time::Duration;

/// How long a wake takes, without Postgres's own start, and how TLS begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    pub(crate) wake: Duration,
    pub(crate) direct_tls: bool,
}

/// What a cold start usually takes at Neon.
const USUAL: Duration = Duration::from_millis(350);
/// What it rarely takes.
const RARE: Duration = Duration::from_secs(2);

/// The wakes, from short to long.
pub(crate) const WAKES: [Duration; 3] = [Duration::ZERO, USUAL, RARE];

impl Setting {
    /// The one that the plain names of figures are about.
    pub(crate) const MAIN: Self = Self {
        wake: USUAL,
        direct_tls: true,
    };

    /// Those that are measured: few samples leave the others out.
    pub(crate) fn all(samples: usize) -> impl Iterator<Item = Self> {
        let both = |wake| [true, false].map(|direct_tls| Self { wake, direct_tls });
        let all = WAKES.into_iter().flat_map(both);
        all.filter(move |it| it.rounds(samples) > 0)
    }

    /// Rounds of a single caller.
    pub(crate) fn rounds(self, samples: usize) -> usize {
        match self {
            Self::MAIN => samples,
            it if it.wake == RARE => samples / 50,
            _ => samples / 10,
        }
    }

    /// Rounds of a herd.
    pub(crate) fn herds(self, samples: usize) -> usize {
        let share = if self == Self::MAIN { 20 } else { 100 };
        (samples / share).max(1)
    }

    pub(crate) const fn tls(self) -> &'static str {
        if self.direct_tls { "direct" } else { "asked" }
    }

    /// What sets the names of its figures apart; nothing for the main one.
    pub(crate) fn suffix(self) -> String {
        if self == Self::MAIN {
            return String::new();
        }
        format!("_wake_{}ms_{}_tls", self.wake.as_millis(), self.tls())
    }
}
