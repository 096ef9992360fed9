//! Under what a turn is measured.

use std::time::Duration;

/// The time of a wake, the host, the begin of TLS, and the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    /// The time of a wake without Postgres's own start; `None` at Neon, where it takes what it takes.
    pub(crate) wake: Option<Duration>,
    pub(crate) pooled: bool,
    pub(crate) direct_tls: bool,
    /// Of a network before the proxy that a relay makes; zero without one.
    pub(crate) round_trip: Duration,
}

/// The usual time of a cold start at Neon.
const TYPICAL: Duration = Duration::from_millis(350);
/// Its rare time.
const RARE: Duration = Duration::from_secs(2);

/// Longest round trip at which a herd is not yet a matter of seconds.
const FAR: Duration = Duration::from_millis(20);

/// The wakes, from short to long.
const WAKES: [Duration; 3] = [Duration::ZERO, TYPICAL, RARE];

/// Those of networks: within a place, between two of a region's, between regions.
pub(crate) const ROUND_TRIPS: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
];

impl Setting {
    /// The emulator's that the plain names of figures are about.
    const MAIN: Self = Self::with(Some(TYPICAL), true);

    /// Wakes at once.
    pub(crate) const NO_DELAY: Self = Self::with(Some(Duration::ZERO), true);

    const fn with(wake: Option<Duration>, direct_tls: bool) -> Self {
        Self {
            wake,
            pooled: true,
            direct_tls,
            round_trip: Duration::ZERO,
        }
    }

    /// Those that are measured on an emulator: few samples leave the others out.
    pub(crate) fn emulated(samples: usize) -> Vec<Self> {
        let both = |wake| [true, false].map(|direct_tls| Self::with(Some(wake), direct_tls));
        let all = WAKES.into_iter().flat_map(both).chain(Self::networks());
        all.filter(move |it| it.rounds(samples) > 0).collect()
    }

    /// The main one, and the same behind each network.
    pub(crate) fn main_and_networks() -> Vec<Self> {
        std::iter::once(Self::MAIN)
            .chain(Self::networks())
            .collect()
    }

    fn networks() -> impl Iterator<Item = Self> {
        ROUND_TRIPS.into_iter().map(|round_trip| Self {
            round_trip,
            ..Self::MAIN
        })
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
            Some(_) if self.has_network() => samples / 25,
            Some(RARE) => samples / 50,
            Some(_) => samples / 10,
        }
    }

    /// Rounds of a herd.
    pub(crate) fn herds(self, samples: usize) -> usize {
        let share = match self.wake {
            None => 6,
            Some(_) if self == Self::MAIN => 20,
            // A thousand callers on sixteen connections take 62 round trips.
            Some(_) if self.round_trip > FAR => 150,
            Some(_) if self.has_network() => 50,
            Some(_) => 100,
        };
        (samples / share).max(1)
    }

    /// The wake, or the host where all wakes are Neon's own.
    pub(crate) fn place(self) -> String {
        match (self.wake, self.pooled) {
            (Some(wake), _) if self.has_network() => {
                let (wake, round_trip) = (wake.as_millis(), self.round_trip.as_millis());
                format!("{wake} ms, {round_trip} ms away")
            }
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
        self.about() == other.about()
    }

    /// All but the begin of TLS.
    pub(crate) const fn about(self) -> (Option<Duration>, bool, Duration) {
        (self.wake, self.pooled, self.round_trip)
    }

    pub(crate) const fn has_network(self) -> bool {
        !self.round_trip.is_zero()
    }

    pub(crate) const fn tls(self) -> &'static str {
        if self.direct_tls { "direct" } else { "asked" }
    }

    /// The end of the names of its figures; nothing for the main one.
    pub(crate) fn suffix(self) -> String {
        match self.wake {
            _ if self == Self::MAIN => String::new(),
            _ if self.has_network() => format!("_rtt_{}ms", self.round_trip.as_millis()),
            Some(wake) => format!("_wake_{}ms_{}_tls", wake.as_millis(), self.tls()),
            None if self.pooled => String::new(),
            None => "_direct_host".to_owned(),
        }
    }
}
