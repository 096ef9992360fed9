//! The events at each endpoint, as the emulator observed them.
//!
//! Tests of the router rely on these, not on the router's own counters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rustls::HandshakeKind;
use tokio::time::Instant;

/// The events at one endpoint so far. It is a copy: take a new one to see later events.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Witness {
    /// Id of the endpoint, `ep-…`.
    pub endpoint_id: String,
    /// Its direct host.
    pub host: String,
    /// Id of its project.
    pub project_id: String,
    /// Name of its project.
    pub project_name: String,
    /// Id of its branch.
    pub branch_id: String,
    /// Annotations of its branch.
    pub annotations: BTreeMap<String, String>,
    /// `true` if its Postgres runs now.
    pub is_awake: bool,
    /// Starts of its Postgres.
    pub wakes: Vec<Wake>,
    /// Instants at which its Postgres was stopped.
    pub suspends: Vec<Instant>,
    /// Instants at which a TLS handshake with one of its hosts was complete.
    pub handshakes: Vec<Instant>,
    /// Number of those that resumed an earlier session.
    pub resumed: usize,
    /// Number of those that took one more round trip, because the server had to ask for another key share.
    pub retried: usize,
    /// Instants at which a client began to log in, successfully or not.
    pub auth_attempts: Vec<Instant>,
    /// Instants at which a client was let in.
    pub sessions: Vec<Instant>,
    /// Number of sessions open now, counted as for [`Emulator::open_sessions`](super::Emulator::open_sessions).
    pub open_sessions: usize,
    /// Largest number of sessions open at the same time.
    pub most_open_sessions: usize,
}

/// One start of a Postgres.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Wake {
    /// Instant at which the start was requested.
    pub at: Instant,
    /// Duration of the whole wake, including the delay that was set.
    pub took: Duration,
    /// Duration of the start of Postgres itself.
    pub start: Duration,
}

/// The session counts of all computes together.
#[derive(Debug, Default)]
pub(super) struct Total {
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Total {
    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub(super) fn most_open(&self) -> usize {
        self.most_open.load(SeqCst)
    }

    fn add(&self) {
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most_open.fetch_max(open, SeqCst);
    }

    fn subtract(&self) {
        self.open.fetch_sub(1, SeqCst);
    }
}

/// The event log of one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Log {
    entries: Arc<Mutex<Entries>>,
    total: Arc<Total>,
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) wakes: Vec<Wake>,
    pub(super) suspends: Vec<Instant>,
    pub(super) handshakes: Vec<Instant>,
    pub(super) resumed: usize,
    pub(super) retried: usize,
    pub(super) auth_attempts: Vec<Instant>,
    pub(super) sessions: Vec<Instant>,
    pub(super) open_sessions: usize,
    pub(super) most_open_sessions: usize,
}

impl Log {
    /// Creates a log that also counts its sessions in `total`.
    pub(super) fn new(total: &Arc<Total>) -> Self {
        Self {
            entries: Arc::default(),
            total: Arc::clone(total),
        }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn woken(&self, at: Instant, start: Duration) {
        self.entries().wakes.push(Wake {
            at,
            took: at.elapsed(),
            start,
        });
    }

    pub(super) fn suspended(&self) {
        self.entries().suspends.push(Instant::now());
    }

    pub(super) fn handshake(&self, kind: HandshakeKind) {
        let mut entries = self.entries();
        entries.handshakes.push(Instant::now());
        match kind {
            HandshakeKind::Full => {}
            HandshakeKind::FullWithHelloRetryRequest => entries.retried += 1,
            HandshakeKind::Resumed => entries.resumed += 1,
        }
    }

    pub(super) fn auth_attempt(&self) {
        self.entries().auth_attempts.push(Instant::now());
    }

    /// Records a session, which stays open until the returned value is dropped.
    pub(super) fn session(&self) -> OpenSession {
        let mut entries = self.entries();
        entries.sessions.push(Instant::now());
        entries.open_sessions += 1;
        entries.most_open_sessions = entries.most_open_sessions.max(entries.open_sessions);
        self.total.add();
        OpenSession(self.clone())
    }
}

/// A session that counts as open until this value is dropped.
#[must_use]
pub(super) struct OpenSession(Log);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.entries().open_sessions -= 1;
        self.0.total.subtract();
    }
}
