//! What is behind the hosts of one scripted database that has a password and a row of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{sync::Notify, time::Instant};

use super::gate::{Failure, Gate, Gates, Step};

/// As Neon's proxy says that there is no such endpoint.
pub(crate) const GONE: Failure = Failure::Fatal {
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

/// What was done to some databases that nobody may do. Clones are the same book.
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
/// owner it asks for: a question for another than its owner is an intrusion. So is a login that begins after it was closed, and a
/// question on a connection that was opened after that.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) number: u64,
    owner: String,
    facts: Mutex<Facts>,
    /// What becomes of its sessions, besides what becomes of all.
    gates: Gates,
    intrusions: Intrusions,
    /// Rung when all its sessions are cut off.
    cut: Notify,
}

#[derive(Debug)]
struct Facts {
    password: String,
    /// The password that a proxy in front of it takes, where one stands.
    proxy_password: Option<String>,
    /// How many logins that proxy has refused.
    proxy_refusals: u64,
    /// Since when it must not be opened, as every router knows.
    closed: Option<Instant>,
}

impl House {
    pub(crate) fn new(number: u64, owner: String, password: String) -> Arc<Self> {
        Self::noting(number, owner, password, &Intrusions::default())
    }

    /// One that writes down in `intrusions` what is done to it.
    pub(crate) fn noting(
        number: u64,
        owner: String,
        password: String,
        intrusions: &Intrusions,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            owner,
            facts: Mutex::new(Facts {
                password,
                proxy_password: None,
                proxy_refusals: 0,
                closed: None,
            }),
            gates: Gates::default(),
            intrusions: intrusions.clone(),
            cut: Notify::new(),
        })
    }

    /// Another one with the same row.
    pub(crate) fn copy(&self, number: u64, password: String) -> Arc<Self> {
        Self::noting(number, self.owner.clone(), password, &self.intrusions)
    }

    /// `sql`, asked for `owner`.
    pub(crate) fn asked_for(owner: &str, sql: &str) -> String {
        format!("{sql} /* {owner} */")
    }

    /// Whose database an answer is from, and its number.
    pub(crate) fn read(answer: &str) -> Option<(&str, u64)> {
        let (owner, number) = answer.rsplit_once('@')?;
        Some((owner, number.parse().ok()?))
    }

    pub(crate) fn password(&self) -> String {
        self.facts.lock().unwrap().password.clone()
    }

    pub(crate) fn set_password(&self, password: String) {
        self.facts.lock().unwrap().password = password;
    }

    /// Puts a proxy in front of it that takes this password and no other.
    pub(crate) fn set_proxy_password(&self, password: &str) {
        self.facts.lock().unwrap().proxy_password = Some(password.to_owned());
    }

    /// How many logins that proxy has refused.
    pub(crate) fn proxy_refusals(&self) -> u64 {
        self.facts.lock().unwrap().proxy_refusals
    }

    /// Cuts its sessions off, as when its compute falls asleep.
    pub(crate) fn suspend(&self) {
        self.cut.notify_waiters();
    }

    /// Says what becomes of logins from now on, besides what becomes of all.
    pub(crate) fn set_logins(&self, gate: Gate) {
        self.gates.set(Step::Login, gate);
    }

    /// Says whether it must not be opened from now on. Every router has to know that by now.
    pub(crate) fn set_closed(&self, closed: bool) {
        let mut facts = self.facts.lock().unwrap();
        facts.closed = closed.then(|| facts.closed.unwrap_or_else(Instant::now));
    }

    pub(super) fn gates(&self) -> &Gates {
        &self.gates
    }

    pub(super) async fn is_cut(&self) {
        self.cut.notified().await;
    }

    /// Whether it was closed before `then`.
    fn was_closed(&self, then: Instant) -> bool {
        let closed = self.facts.lock().unwrap().closed;
        closed.is_some_and(|closed| closed < then)
    }

    /// Takes `password`, on a stream that was opened at `opened`.
    pub(super) fn admit(&self, password: &str, opened: Instant) -> Result<(), Failure> {
        let mut facts = self.facts.lock().unwrap();
        let is_proxys = facts.proxy_password.as_ref().map(|it| it == password);
        match (is_proxys, facts.password == password) {
            (Some(false), _) => {
                facts.proxy_refusals += 1;
                return Err(REFUSED_BY_PROXY);
            }
            (Some(true), false) => return Err(REFUSED_BEHIND_PROXY),
            (None, false) => return Err(WRONG_PASSWORD),
            (_, true) => {}
        }
        drop(facts);
        if self.was_closed(opened) {
            let (owner, number) = (&self.owner, self.number);
            let what = format!("{owner}@{number} was logged in to when it was closed");
            self.intrusions.add(what);
        }
        Ok(())
    }

    /// What it answers to `sql` in a session that was let in at `admitted`.
    pub(super) fn answer(&self, sql: &str, admitted: Instant) -> String {
        let (owner, number) = (&self.owner, self.number);
        let comment = sql.rsplit_once(" /* ");
        let asker = comment.and_then(|(_, rest)| rest.strip_suffix(" */"));
        if asker.is_some_and(|asker| asker != owner) {
            self.intrusions.add(format!("{owner} was asked {sql:?}"));
        }
        if asker.is_some() && self.was_closed(admitted) {
            let what =
                format!("{owner}@{number} was asked by a session that came when it was closed");
            self.intrusions.add(what);
        }
        format!("{owner}@{number}")
    }
}

/// Which database is behind which host.
#[derive(Debug, Default)]
pub(crate) struct Houses(Mutex<HashMap<String, Arc<House>>>);

impl Houses {
    /// What is behind `host`, if anything is; none at all if hosts are but names here.
    pub(super) fn at(&self, host: &str) -> Result<Option<Arc<House>>, Failure> {
        let houses = self.0.lock().unwrap();
        if houses.is_empty() {
            return Ok(None);
        }
        houses.get(host).cloned().map(Some).ok_or(GONE)
    }

    /// Puts a database behind `host`, in place of what was there. Its sessions go on.
    pub(crate) fn set(&self, host: &str, house: &Arc<House>) {
        let mut houses = self.0.lock().unwrap();
        houses.insert(host.to_owned(), Arc::clone(house));
    }

    /// Takes away what is behind `host`.
    pub(crate) fn remove(&self, host: &str) {
        self.0.lock().unwrap().remove(host);
    }
}
