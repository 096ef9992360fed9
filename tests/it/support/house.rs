//! What is behind the hosts of one scripted database that has a password and a row of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::gate::Failure;

const GONE: Failure = Failure::Fatal {
    code: "XX000",
    text: "The requested endpoint could not be found, or you don't have access to it. Please check the provided ID",
};
const WRONG_PASSWORD: Failure = Failure::Fatal {
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

/// One database. Its one row says whose it is, and a number of its own. Whoever asks it anything may say for whom, in a
/// comment: what is asked for anybody else than its owner is an intrusion.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) number: u64,
    owner: String,
    facts: Mutex<Facts>,
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
    intrusions: Vec<String>,
}

impl House {
    pub(crate) fn new(number: u64, owner: String, password: String) -> Arc<Self> {
        Arc::new(Self {
            number,
            owner,
            facts: Mutex::new(Facts {
                password,
                proxy_password: None,
                proxy_refusals: 0,
                intrusions: Vec::new(),
            }),
            cut: Notify::new(),
        })
    }

    /// Another one with the same row.
    pub(crate) fn copy(&self, number: u64, password: String) -> Arc<Self> {
        Self::new(number, self.owner.clone(), password)
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

    /// What it was asked for others than its owner.
    pub(crate) fn intrusions(&self) -> Vec<String> {
        self.facts.lock().unwrap().intrusions.clone()
    }

    pub(super) async fn is_cut(&self) {
        self.cut.notified().await;
    }

    pub(super) fn admit(&self, password: &str) -> Result<(), Failure> {
        let mut facts = self.facts.lock().unwrap();
        let is_proxys = facts.proxy_password.as_ref().map(|it| it == password);
        match (is_proxys, facts.password == password) {
            (Some(false), _) => {
                facts.proxy_refusals += 1;
                Err(REFUSED_BY_PROXY)
            }
            (Some(true), false) => Err(REFUSED_BEHIND_PROXY),
            (None, false) => Err(WRONG_PASSWORD),
            (_, true) => Ok(()),
        }
    }

    /// What it answers to `sql`.
    pub(super) fn answer(&self, sql: &str) -> String {
        let comment = sql.rsplit_once(" /* ");
        let asker = comment.and_then(|(_, rest)| rest.strip_suffix(" */"));
        if asker.is_some_and(|asker| asker != self.owner) {
            let what = format!("{} was asked {sql:?}", self.owner);
            self.facts.lock().unwrap().intrusions.push(what);
        }
        format!("{}@{}", self.owner, self.number)
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
