//! What can go wrong at an endpoint, on command.
//!
//! Texts and times are those that Neon's own proxy was observed to give.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::{Instant, sleep};

/// Something that goes wrong at an endpoint, for whoever connects, until it is cleared.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// The control plane refuses to wake the compute and gives this text for the user. The proxy asks once, tells the
    /// text, and repeats it for 30 seconds on that host without asking again, even if the fault has been cleared.
    WakeRefused {
        /// What the client is told, word for word, such as a quota's text.
        text: String,
    },
    /// The control plane is busy with the endpoint, so many times. The proxy asks up to nine times within 4.4 seconds,
    /// and then tells the text.
    WakeBusy {
        /// What the client is told if it stays busy.
        text: String,
        /// How often it is busy.
        times: u32,
    },
    /// The control plane is down. The proxy tells so at once, and repeats it for 30 seconds on that host.
    ControlPlaneDown,
    /// The compute is up and takes no TCP connection. The client is told after 3.1 seconds.
    ComputeRefuses,
    /// Packets to the compute get lost. The client is told after 15 seconds.
    ComputeUnreachable,
    /// The compute takes the connection and closes it.
    ComputeCloses,
    /// The compute takes the connection and says nothing. The client hears nothing, as long as it waits.
    ComputeSilent,
}

/// How long the proxy repeats an error of the control plane.
const REPEATED: Duration = Duration::from_secs(30);
/// First wait of the proxy before it asks a busy control plane again; each is 1.6 times as long as the one before.
const BUSY_WAIT: Duration = Duration::from_micros(62_500);
/// How often it asks.
const BUSY_ASKED: u32 = 9;
/// How long it tries to reach a compute that refuses.
const REFUSED: Duration = Duration::from_millis(3100);
/// How long it tries to reach a compute whose packets get lost.
const UNREACHABLE: Duration = Duration::from_secs(15);

const NO_COMPUTE: &str = "Couldn't connect to compute node";
const RESET: &str = "error communicating with the server: Connection reset by peer (os error 104)";
const CONTROL_PLANE: &str = "Control plane request failed";

/// The faults of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Faults {
    // Guards both; held for a look or a change.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    fault: Option<Fault>,
    /// Errors of the control plane that the proxy repeats, by whether the host is the pooled one.
    repeated: HashMap<bool, (Instant, String)>,
}

/// What happens to a client that wants to connect.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// Nothing out of the ordinary.
    Connects,
    /// It is told this.
    Told(String),
    /// It hears nothing.
    Silence,
}

impl Faults {
    /// Puts a fault in place of the present one, or clears it.
    pub(super) fn set(&self, fault: Option<Fault>) {
        self.seen().fault = fault;
    }

    /// What the control plane answers when the proxy asks it to wake the compute.
    pub(super) async fn on_wake(&self, pooled: bool) -> Fate {
        if let Some((since, text)) = self.seen().repeated.get(&pooled)
            && since.elapsed() < REPEATED
        {
            return Fate::Told(text.clone());
        }
        let mut wait = BUSY_WAIT;
        for asked in 1..=BUSY_ASKED {
            let Some(answer) = self.ask(pooled) else {
                return Fate::Connects;
            };
            if let Some(text) = answer.lasting {
                return Fate::Told(text);
            }
            if asked < BUSY_ASKED {
                sleep(wait).await;
                wait = wait * 8 / 5;
            }
        }
        Fate::Told(self.busy_text())
    }

    /// One question to the control plane; `None` if it wakes the compute.
    fn ask(&self, pooled: bool) -> Option<Answer> {
        let mut seen = self.seen();
        let lasting = match &mut seen.fault {
            Some(Fault::WakeBusy { times, .. }) if *times > 0 => {
                *times -= 1;
                return Some(Answer { lasting: None });
            }
            Some(Fault::WakeRefused { text }) => text.clone(),
            Some(Fault::ControlPlaneDown) => CONTROL_PLANE.to_owned(),
            Some(
                Fault::WakeBusy { .. }
                | Fault::ComputeRefuses
                | Fault::ComputeUnreachable
                | Fault::ComputeCloses
                | Fault::ComputeSilent,
            )
            | None => return None,
        };
        seen.repeated
            .insert(pooled, (Instant::now(), lasting.clone()));
        Some(Answer {
            lasting: Some(lasting),
        })
    }

    fn busy_text(&self) -> String {
        match &self.seen().fault {
            Some(Fault::WakeBusy { text, .. }) => text.clone(),
            _ => CONTROL_PLANE.to_owned(),
        }
    }

    /// What the compute does when the proxy connects to it.
    pub(super) async fn on_connect(&self) -> Fate {
        let fault = self.seen().fault.clone();
        match fault {
            Some(Fault::ComputeRefuses) => {
                sleep(REFUSED).await;
                Fate::Told(NO_COMPUTE.to_owned())
            }
            Some(Fault::ComputeUnreachable) => {
                sleep(UNREACHABLE).await;
                Fate::Told(NO_COMPUTE.to_owned())
            }
            Some(Fault::ComputeCloses) => Fate::Told(RESET.to_owned()),
            Some(Fault::ComputeSilent) => Fate::Silence,
            Some(Fault::WakeRefused { .. } | Fault::WakeBusy { .. } | Fault::ControlPlaneDown)
            | None => Fate::Connects,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the control plane says instead of waking the compute: a text that lasts, or that it is busy.
struct Answer {
    lasting: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Fate {
        Fate::Told(text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_repeated_for_thirty_seconds_on_its_own_host() {
        let faults = Faults::default();
        faults.set(Some(Fault::WakeRefused {
            text: "over quota".into(),
        }));
        assert_eq!(faults.on_wake(true).await, told("over quota"));
        faults.set(None);
        assert_eq!(
            faults.on_wake(true).await,
            told("over quota"),
            "from memory"
        );
        assert_eq!(
            faults.on_wake(false).await,
            Fate::Connects,
            "the other host asks for itself"
        );
        sleep(REPEATED).await;
        assert_eq!(faults.on_wake(true).await, Fate::Connects);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_control_plane_is_asked_again_for_four_seconds() {
        let faults = Faults::default();
        let busy = |times| {
            Some(Fault::WakeBusy {
                text: "running operations".into(),
                times,
            })
        };
        faults.set(busy(4));
        let start = Instant::now();
        assert_eq!(faults.on_wake(false).await, Fate::Connects);
        assert!(
            (500..700).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );

        faults.set(busy(100));
        let start = Instant::now();
        assert_eq!(faults.on_wake(false).await, told("running operations"));
        assert!(
            (4200..4600).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
        faults.set(None);
        assert_eq!(
            faults.on_wake(false).await,
            Fate::Connects,
            "not remembered"
        );
    }
}
