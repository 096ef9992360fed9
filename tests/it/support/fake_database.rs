//! Fake databases behind the hosts of the scripted backend, each with a password and a row of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{sync::Notify, time::Instant};

use super::gate::{Failure, Gate, Gates, Step};

/// As Neon's proxy says that there is no such endpoint.
pub(crate) const ENDPOINT_NOT_FOUND: Failure = Failure::Fatal {
    code: "XX000",
    text: "The requested endpoint could not be found, or you don't have access to it. Please check the provided ID",
};
pub(crate) const WRONG_PASSWORD: Failure = Failure::Fatal {
    code: "28P01",
    text: "password authentication failed for user 'app'",
};
/// As Neon's proxy says it, in whose place one stands.
const REFUSED_BY_PROXY: Failure = Failure::Error {
    code: "XX000",
    text: "password authentication failed for user 'app'",
};
/// As PgBouncer says it behind that proxy.
const REFUSED_BEHIND_PROXY: Failure = Failure::Error {
    code: "XX000",
    text: "SASL authentication failed",
};

/// The forbidden accesses to some databases. Clones share one list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intrusions(Arc<Mutex<Vec<String>>>);

impl Intrusions {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn add(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

/// One database. Its one row says whose it is, and a number of its own. A caller may name in a comment the
/// owner it asks for: a question for another than its owner is an intrusion. So is a login that begins after it was
/// closed, and a question on a connection that was opened after that.
#[derive(Debug)]
pub(crate) struct FakeDatabase {
    pub(crate) number: u64,
    owner: String,
    state: Mutex<State>,
    /// The gates of its own sessions, besides those of all sessions.
    gates: Gates,
    intrusions: Intrusions,
    /// Notified when all its sessions are cut off.
    disconnect: Notify,
}

#[derive(Debug)]
struct State {
    password: String,
    /// The password that a proxy in front of it takes, where one stands.
    proxy_password: Option<String>,
    /// The number of logins that the proxy has refused.
    proxy_refusals: u64,
    /// The time from which on it must not be opened, as every router knows.
    closed: Option<Instant>,
}

impl FakeDatabase {
    pub(crate) fn new(number: u64, owner: String, password: String) -> Arc<Self> {
        Self::with_intrusions(number, owner, password, &Intrusions::default())
    }

    /// A database that adds forbidden accesses to `intrusions`.
    pub(crate) fn with_intrusions(
        number: u64,
        owner: String,
        password: String,
        intrusions: &Intrusions,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            owner,
            state: Mutex::new(State {
                password,
                proxy_password: None,
                proxy_refusals: 0,
                closed: None,
            }),
            gates: Gates::default(),
            intrusions: intrusions.clone(),
            disconnect: Notify::new(),
        })
    }

    /// Another one with the same row.
    pub(crate) fn copy(&self, number: u64, password: String) -> Arc<Self> {
        Self::with_intrusions(number, self.owner.clone(), password, &self.intrusions)
    }

    /// `sql`, asked for `owner`.
    pub(crate) fn tag_query(owner: &str, sql: &str) -> String {
        format!("{sql} /* {owner} */")
    }

    /// Returns the owner and the number of the database that an answer is from.
    pub(crate) fn parse_row(answer: &str) -> Option<(&str, u64)> {
        let (owner, number) = answer.rsplit_once('@')?;
        Some((owner, number.parse().ok()?))
    }

    pub(crate) fn password(&self) -> String {
        self.state.lock().unwrap().password.clone()
    }

    pub(crate) fn set_password(&self, password: String) {
        self.state.lock().unwrap().password = password;
    }

    /// Puts a proxy in front of it that takes this password and no other.
    pub(crate) fn set_proxy_password(&self, password: &str) {
        self.state.lock().unwrap().proxy_password = Some(password.to_owned());
    }

    /// Returns the number of logins that the proxy has refused.
    pub(crate) fn proxy_refusals(&self) -> u64 {
        self.state.lock().unwrap().proxy_refusals
    }

    /// Cuts its sessions off, as when its compute falls asleep.
    pub(crate) fn suspend(&self) {
        self.disconnect.notify_waiters();
    }

    /// Says what becomes of logins from now on, besides what becomes of all.
    pub(crate) fn set_login_gate(&self, gate: Gate) {
        self.gates.set(Step::Login, gate);
    }

    /// Says whether it must not be opened from now on. Every router has to know that by now.
    pub(crate) fn set_closed(&self, closed: bool) {
        let mut state = self.state.lock().unwrap();
        state.closed = closed.then(|| state.closed.unwrap_or_else(Instant::now));
    }

    pub(super) fn gates(&self) -> &Gates {
        &self.gates
    }

    pub(super) async fn disconnected(&self) {
        self.disconnect.notified().await;
    }

    /// Returns whether it was closed before `then`.
    fn was_closed_before(&self, then: Instant) -> bool {
        let closed = self.state.lock().unwrap().closed;
        closed.is_some_and(|closed| closed < then)
    }

    /// Takes `password`, on a stream that was opened at `opened`.
    pub(super) fn check_login(&self, password: &str, opened: Instant) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        let is_proxys = state.proxy_password.as_ref().map(|it| it == password);
        match (is_proxys, state.password == password) {
            (Some(false), _) => {
                state.proxy_refusals += 1;
                return Err(REFUSED_BY_PROXY);
            }
            (Some(true), false) => return Err(REFUSED_BEHIND_PROXY),
            (None, false) => return Err(WRONG_PASSWORD),
            (_, true) => {}
        }
        drop(state);
        if self.was_closed_before(opened) {
            let (owner, number) = (&self.owner, self.number);
            let what = format!("{owner}@{number} was logged in to when it was closed");
            self.intrusions.add(what);
        }
        Ok(())
    }

    /// Returns the answer to `sql` in a session that was let in at `admitted`.
    pub(super) fn answer(&self, sql: &str, admitted: Instant) -> String {
        let (owner, number) = (&self.owner, self.number);
        let comment = sql.rsplit_once(" /* ");
        let asker = comment.and_then(|(_, rest)| rest.strip_suffix(" */"));
        if asker.is_some_and(|asker| asker != owner) {
            self.intrusions.add(format!("{owner} was asked {sql:?}"));
        }
        if asker.is_some() && self.was_closed_before(admitted) {
            let what =
                format!("{owner}@{number} was asked by a session that came when it was closed");
            self.intrusions.add(what);
        }
        format!("{owner}@{number}")
    }
}

/// The database behind each host.
#[derive(Debug, Default)]
pub(crate) struct FakeDatabases(Mutex<HashMap<String, Arc<FakeDatabase>>>);

impl FakeDatabases {
    /// Returns the database behind `host`, or `None` if hosts are but names here.
    pub(super) fn at(&self, host: &str) -> Result<Option<Arc<FakeDatabase>>, Failure> {
        let databases = self.0.lock().unwrap();
        if databases.is_empty() {
            return Ok(None);
        }
        databases
            .get(host)
            .cloned()
            .map(Some)
            .ok_or(ENDPOINT_NOT_FOUND)
    }

    /// Puts a database behind `host`, in place of what was there. Its sessions go on.
    pub(crate) fn set(&self, host: &str, db: &Arc<FakeDatabase>) {
        let mut databases = self.0.lock().unwrap();
        databases.insert(host.to_owned(), Arc::clone(db));
    }

    /// Takes away what is behind `host`.
    pub(crate) fn remove(&self, host: &str) {
        self.0.lock().unwrap().remove(host);
    }
}
