//! Under what a turn is measured.

use std::time::Duration;

/// The time of a wake, the host, and the begin of TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    /// The time of a wake without Postgres's own start; `None` at Neon, where it takes what it takes.
    pub(crate) wake: Option<Duration>,
    pub(crate) pooled: bool,
    pub(crate) direct_tls: bool,
}

/// What a cold start usually takes at Neon.
const USUAL: Duration = Duration::from_millis(350);
/// What it rarely takes.
const RARE: Duration = Duration::from_secs(2);

/// The wakes, from short to long.
const WAKES: [Duration; 3] = [Duration::ZERO, USUAL, RARE];

impl Setting {
    /// The emulator's that the plain names of figures are about.
    const MAIN: Self = Self::with(Some(USUAL), true);

    /// Wakes at once.
    pub(crate) const QUICK: Self = Self::with(Some(Duration::ZERO), true);

    const fn with(wake: Option<Duration>, direct_tls: bool) -> Self {
        Self {
            wake,
            pooled: true,
            direct_tls,
        }
    }

    /// Those that are measured on an emulator: few samples leave the others out.
    pub(crate) fn emulated(samples: usize) -> Vec<Self> {
        let both = |wake| [true, false].map(|direct_tls| Self::with(Some(wake), direct_tls));
        let all = WAKES.into_iter().flat_map(both);
        all.filter(move |it| it.rounds(samples) > 0).collect()
    }

    /// Those that are measured at Neon: through the pooler, and past it.
    pub(crate) fn at_neon() -> Vec<Self> {
        let with = |pooled| Self {
            pooled,
            ..Self::with(None, true)
        };
        [true, false].map(with).into()
    }

    /// Rounds of a single caller.
    pub(crate) fn rounds(self, samples: usize) -> usize {
        match self.wake {
            None => samples,
            Some(_) if self == Self::MAIN => samples,
            Some(RARE) => samples / 50,
            Some(_) => samples / 10,
        }
    }

    /// Rounds of a herd.
    pub(crate) fn herds(self, samples: usize) -> usize {
        let share = match self.wake {
            None => 6,
            Some(_) if self == Self::MAIN => 20,
            Some(_) => 100,
        };
        (samples / share).max(1)
    }

    /// The wake, or the host where all wakes are Neon's own.
    pub(crate) fn place(self) -> String {
        match (self.wake, self.pooled) {
            (Some(wake), _) => format!("{} ms", wake.as_millis()),
            (None, true) => "pooled".to_owned(),
            (None, false) => "direct".to_owned(),
        }
    }

    /// The same as the title of a panel.
    pub(crate) fn title(self) -> String {
        match self.wake {
            Some(_) => format!("wake of {}", self.place()),
            None => format!("{} host", self.place()),
        }
    }

    /// Returns whether only TLS sets the two apart.
    pub(crate) fn is_at(self, other: Self) -> bool {
        (self.wake, self.pooled) == (other.wake, other.pooled)
    }

    pub(crate) const fn tls(self) -> &'static str {
        if self.direct_tls { "direct" } else { "asked" }
    }

    /// What sets the names of its figures apart; nothing for the main one.
    pub(crate) fn suffix(self) -> String {
        match self.wake {
            _ if self == Self::MAIN => String::new(),
            Some(wake) => format!("_wake_{}ms_{}_tls", wake.as_millis(), self.tls()),
            None if self.pooled => String::new(),
            None => "_direct_host".to_owned(),
        }
    }
}
