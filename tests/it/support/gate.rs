//! The gates of a scripted backend: what it does with a caller at each step, as the test says, at any time.

use std::{io, time::Duration};

use tokio::{sync::watch, time::sleep};

/// A step of a call, in the order in which a call comes to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Asking the catalog.
    Lookup,
    /// Creating a database.
    Create,
    /// Getting a stream.
    Open,
    /// Getting in: the startup packet has come.
    Login,
    /// Saying that it lives: a query without text, or a Sync by itself.
    Verify,
    /// Beginning a transaction.
    Begin,
    /// Running any other statement, except `SET`, which is let through.
    Query,
    /// Committing.
    Commit,
    /// Rolling back, also to a savepoint.
    Rollback,
}

impl Step {
    pub(crate) const ALL: [Self; 9] = [
        Self::Lookup,
        Self::Create,
        Self::Open,
        Self::Login,
        Self::Verify,
        Self::Begin,
        Self::Query,
        Self::Commit,
        Self::Rollback,
    ];
}

/// The moment at which a call may pass a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Gate {
    /// At once.
    Open,
    /// Never, and it is told so.
    Fail(Failure),
    /// After this long. A change of the gate concerns those that come later.
    Slow(Duration),
    /// Once the gate is something else.
    Stuck,
}

/// The way in which a step fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// With an error, after which a session goes on. Ends a login, as Neon's proxy does.
    Error {
        code: &'static str,
        text: &'static str,
    },
    /// With an error, after which the server closes.
    Fatal {
        code: &'static str,
        text: &'static str,
    },
    /// The stream ends before anything was done.
    Cut,
    /// The stream ends when it is done: nobody is told.
    Lost,
}

impl Failure {
    /// Returns the error of a caller that gets no stream.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Error { text, .. } | Self::Fatal { text, .. } => io::Error::other(text),
            Self::Cut | Self::Lost => io::ErrorKind::ConnectionRefused.into(),
        }
    }
}

/// A gate for each step. All open at first.
#[derive(Debug)]
pub(super) struct Gates([watch::Sender<Gate>; Step::ALL.len()]);

impl Default for Gates {
    fn default() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(Gate::Open)))
    }
}

impl Gates {
    pub(super) fn set(&self, step: Step, gate: Gate) {
        self.0[step as usize].send_replace(gate);
    }

    /// Waits until `step` may be taken, or has failed.
    pub(super) async fn pass(&self, step: Step) -> Result<(), Failure> {
        let mut gate = self.0[step as usize].subscribe();
        loop {
            let now = *gate.borrow_and_update();
            match now {
                Gate::Open => return Ok(()),
                Gate::Fail(failure) => return Err(failure),
                Gate::Slow(time) => {
                    sleep(time).await;
                    return Ok(());
                }
                Gate::Stuck => gate.changed().await.expect("the gates outlive the wait"),
            }
        }
    }
}
