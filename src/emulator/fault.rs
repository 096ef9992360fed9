//! Faults that a test can set at an endpoint.
//!
//! Texts and times are those that Neon's own proxy was observed to give.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::reason::Reason;

/// A fault at an endpoint. Every client that connects meets it, until it is cleared or has happened as often as it
/// says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// The control plane does not wake the compute. The proxy's reaction depends on the [`Reason`].
    WakeRefused {
        /// Reason of the control plane.
        reason: Reason,
        /// Text that the client gets in place of the reason's own, word for word.
        #[serde(default)]
        text: Option<String>,
        /// Number of refused wakes; `None` for all.
        #[serde(default)]
        times: Option<u32>,
    },
    /// The control plane cannot be reached. The proxy tells the client at once, and asks again for the next client.
    ControlPlaneDown,
    /// The client's address is not on the endpoint's list. The client is told before it logs in.
    AddressNotAllowed,
    /// Clients try more connections than the endpoint may have. The client is told before it logs in.
    TooManyConnections {
        /// Number of times that a client is told.
        times: u32,
    },
    /// Clients request more wakes than the proxy passes on. The client is told after it has logged in.
    TooManyWakes {
        /// Number of times that a client is told.
        times: u32,
    },
    /// More connections are being opened than the proxy allows at once. The client is told after the wake.
    NoPermit {
        /// Number of times that a client is told.
        times: u32,
    },
    /// The compute is up but accepts no TCP connection. The client is told after 3.1 seconds.
    ComputeRefuses,
    /// Packets to the compute get lost. The client is told after 15 seconds.
    ComputeUnreachable,
    /// The compute accepts the connection and closes it.
    ComputeCloses,
    /// The compute accepts the connection and sends nothing. The client gets nothing, however long it waits.
    ComputeSilent,
    /// The compute's next start is a recovery of this duration. Set it on a compute that is asleep and has run before.
    /// Direct clients are told that the database system is starting up. PgBouncer accepts clients, tries once, and
    /// tries again 15 seconds later. Happens once.
    ComputeRecovers {
        /// Duration of the recovery, in milliseconds.
        milliseconds: u64,
    },
    /// The next COMMIT is done, but all processes are killed before its answer reaches the client. Happens once.
    CommitAnswerLost,
}

impl Fault {
    /// Creates a fault in which the control plane refuses wakes for `reason`, with the reason's own text. It refuses
    /// `times` wakes, or all of them for `None`.
    pub fn wake_refused(reason: Reason, times: impl Into<Option<u32>>) -> Self {
        Self::WakeRefused {
            reason,
            text: None,
            times: times.into(),
        }
    }
}

/// Time for which the proxy repeats an error of the control plane.
const REPEATED: Duration = Duration::from_secs(30);
/// First wait of the proxy before it asks a busy control plane again. Each wait is 1.6 times as long as the one before.
const BUSY_WAIT: Duration = Duration::from_micros(62_500);
/// Number of times that the proxy asks.
const BUSY_ASKED: u32 = 9;
/// Time for which the proxy tries to reach a compute that refuses.
const REFUSED: Duration = Duration::from_millis(3100);
/// Time for which the proxy tries to reach a compute when packets get lost.
const UNREACHABLE: Duration = Duration::from_secs(15);

const NO_COMPUTE: &str = "Couldn't connect to compute node";
const RESET: &str = "error communicating with the server: Connection reset by peer (os error 104)";
const CONTROL_PLANE: &str = "Control plane request failed";
const NOT_ALLOWED: &str = "This IP address 127.0.0.1 is not allowed to connect to this endpoint. Please add it to the allowed list in the Neon console. Make sure to check for IPv4 or IPv6 addresses.";
const TOO_MANY_CONNECTIONS: &str = "Too many connections to this endpoint. Please try again later.";
const TOO_MANY_WAKES: &str = "Too many connections attempts";
const NO_PERMIT: &str = "Failed to acquire permit to connect to the database. Too many database connection attempts are currently ongoing.";

/// The faults of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Faults {
    // Guards both fields. Held only for short reads and writes.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    fault: Option<Fault>,
    /// Errors of the control plane that the proxy repeats. The key is `true` for the pooled host.
    repeated: HashMap<bool, (Instant, String)>,
}

/// The outcome for a client that tries to connect.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// The client connects as usual.
    Connects,
    /// The client gets this error text.
    Told(String),
    /// The client gets no answer.
    Silence,
}

impl Faults {
    /// Replaces the present fault, or clears it.
    pub(super) fn set(&self, fault: Option<Fault>) {
        self.seen().fault = fault;
    }

    /// Forgets the errors that the proxy repeats, as a new proxy does.
    pub(super) fn forget(&self) {
        self.seen().repeated.clear();
    }

    /// Returns the error text for a client that has not logged in yet; `None` if there is no such error.
    pub(super) fn on_access(&self) -> Option<&'static str> {
        let mut seen = self.seen();
        match &mut seen.fault {
            Some(Fault::AddressNotAllowed) => Some(NOT_ALLOWED),
            Some(Fault::TooManyConnections { times }) => {
                spend(times).then_some(TOO_MANY_CONNECTIONS)
            }
            _ => None,
        }
    }

    /// Returns the error of an earlier wake that the proxy repeats on that host, even if the compute is awake by now.
    pub(super) fn repeated(&self, pooled: bool) -> Option<String> {
        let seen = self.seen();
        let (since, text) = seen.repeated.get(&pooled)?;
        (since.elapsed() < REPEATED).then(|| text.clone())
    }

    /// Returns the outcome of a request to wake the compute. The control plane may also refuse it for a reason of its
    /// own (`standing`).
    pub(super) async fn on_wake(
        &self,
        pooled: bool,
        standing: impl Fn() -> Option<Reason>,
    ) -> Fate {
        let mut wait = BUSY_WAIT;
        let mut asked = 1;
        loop {
            match self.ask(&standing) {
                Answer::Wakes => return Fate::Connects,
                Answer::Once(text) => return Fate::Told(text.to_owned()),
                Answer::Lasting(text) => {
                    let repeated = (Instant::now(), text.clone());
                    self.seen().repeated.insert(pooled, repeated);
                    return Fate::Told(text);
                }
                Answer::Busy(text) if asked == BUSY_ASKED => return Fate::Told(text),
                Answer::Busy(_) => sleep(wait).await,
            }
            wait = wait * 8 / 5;
            asked += 1;
        }
    }

    /// Asks the control plane once.
    fn ask(&self, standing: impl Fn() -> Option<Reason>) -> Answer {
        let standing = || match standing() {
            Some(reason) => Answer::Lasting(reason.text().to_owned()),
            None => Answer::Wakes,
        };
        match &mut self.seen().fault {
            Some(Fault::WakeRefused {
                reason,
                text,
                times,
            }) => {
                if times.as_mut().is_some_and(|times| !spend(times)) {
                    return standing();
                }
                let text = text.clone().unwrap_or_else(|| reason.text().to_owned());
                if reason.passes() {
                    Answer::Busy(text)
                } else {
                    Answer::Lasting(text)
                }
            }
            Some(Fault::ControlPlaneDown) => Answer::Once(CONTROL_PLANE),
            Some(Fault::TooManyWakes { times }) => {
                if spend(times) {
                    Answer::Once(TOO_MANY_WAKES)
                } else {
                    standing()
                }
            }
            _ => standing(),
        }
    }

    /// Returns the outcome of the proxy's connection to the compute.
    pub(super) async fn on_connect(&self) -> Fate {
        let (met, spent) = match &mut self.seen().fault {
            Some(Fault::NoPermit { times }) => (Some(Fault::NoPermit { times: 0 }), !spend(times)),
            fault => (fault.clone(), false),
        };
        let (wait, text) = match met {
            Some(Fault::NoPermit { .. }) if !spent => (Duration::ZERO, NO_PERMIT),
            Some(Fault::ComputeRefuses) => (REFUSED, NO_COMPUTE),
            Some(Fault::ComputeUnreachable) => (UNREACHABLE, NO_COMPUTE),
            Some(Fault::ComputeCloses) => (Duration::ZERO, RESET),
            Some(Fault::ComputeSilent) => return Fate::Silence,
            _ => return Fate::Connects,
        };
        sleep(wait).await;
        Fate::Told(text.to_owned())
    }

    /// Takes the duration of the next start's recovery; `None` if it need not recover. Clears the fault.
    pub(super) fn recovery(&self) -> Option<Duration> {
        let mut seen = self.seen();
        match seen.fault {
            Some(Fault::ComputeRecovers { milliseconds }) => {
                seen.fault = None;
                Some(Duration::from_millis(milliseconds))
            }
            _ => None,
        }
    }

    /// Returns whether the answer to a COMMIT gets lost. Clears the fault, so only one answer is lost.
    pub(super) fn loses_commit(&self) -> bool {
        let mut seen = self.seen();
        let loses = seen.fault == Some(Fault::CommitAnswerLost);
        if loses {
            seen.fault = None;
        }
        loses
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control plane's answer to a request for a wake.
enum Answer {
    Wakes,
    /// The control plane gives no answer, or is not asked. The proxy does not repeat this error.
    Once(&'static str),
    /// A transient refusal. The proxy asks again.
    Busy(String),
    /// A lasting refusal. The proxy repeats it for a while without asking.
    Lasting(String),
}

/// Decrements `times` if it is above zero. Returns whether it was.
fn spend(times: &mut u32) -> bool {
    let left = *times > 0;
    *times = times.saturating_sub(1);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: Reason, text: &str, times: Option<u32>) -> Fault {
        Fault::WakeRefused {
            reason,
            text: Some(text.to_owned()),
            times,
        }
    }

    fn told(text: &str) -> Fate {
        Fate::Told(text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_repeated_for_thirty_seconds_on_its_own_host() {
        let faults = Faults::default();
        faults.set(Some(refused(Reason::ActiveTimeQuota, "over quota", None)));
        assert_eq!(faults.on_wake(true, || None).await, told("over quota"));
        faults.set(None);
        assert_eq!(faults.repeated(true).as_deref(), Some("over quota"));
        assert_eq!(faults.repeated(false), None, "it asks for itself");
        sleep(REPEATED).await;
        assert_eq!(faults.repeated(true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_control_plane_is_asked_again_for_four_seconds() {
        let faults = Faults::default();
        let busy = |times| {
            let refused = refused(Reason::RunningOperations, "running operations", Some(times));
            Some(refused)
        };
        faults.set(busy(4));
        let start = Instant::now();
        assert_eq!(faults.on_wake(false, || None).await, Fate::Connects);
        assert!(
            (500..700).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );

        faults.set(busy(100));
        let start = Instant::now();
        assert_eq!(
            faults.on_wake(false, || None).await,
            told("running operations")
        );
        assert!(
            (4200..4600).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
        faults.set(None);
        assert_eq!(
            faults.on_wake(false, || None).await,
            Fate::Connects,
            "not remembered"
        );
    }
}
