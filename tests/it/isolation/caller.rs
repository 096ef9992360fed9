//! Those who ask for a tenant, and what they may be answered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    CancelToken, ErrorKind, TenantId, TenantRouter, Tx, deadpool_postgres::Client,
    tokio_postgres::error::SqlState,
};
use tokio::time::{sleep, timeout};

use super::step::{Way, Who};
use crate::support::House;

const QUESTION: &str = "SELECT owner FROM seed";
const CHANGE: &str = "UPDATE seed SET number = number";

/// Whether a tenant has a database.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Lot {
    /// Or gets one at the first access.
    #[default]
    Served,
    Deleted,
    /// It is kept from use.
    Held,
    /// Something is being done about it, or was not done to the end.
    Unsure,
}

impl Lot {
    /// How a caller is told that the tenant is not served.
    pub(super) fn refusal(self) -> Option<ErrorKind> {
        match self {
            Self::Served | Self::Unsure => None,
            Self::Deleted => Some(ErrorKind::Deleted),
            Self::Held => Some(ErrorKind::Held),
        }
    }
}

/// What is certain of a tenant.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Fact {
    pub(super) lot: Lot,
    /// The number of the oldest database that whoever comes from now on may be led to.
    pub(super) oldest: u64,
    /// How often its lot has changed.
    changes: u64,
}

/// What is certain of all tenants, and what was found to be wrong.
#[derive(Debug, Default)]
pub(super) struct Truth {
    facts: Mutex<HashMap<Who, Fact>>,
    wrongs: Mutex<Vec<String>>,
    /// Answers that were right.
    answers: AtomicU64,
}

impl Truth {
    pub(super) fn fact(&self, who: Who) -> Fact {
        let facts = self.facts.lock().unwrap();
        facts.get(&who).copied().unwrap_or_default()
    }

    pub(super) fn turn(&self, who: Who, lot: Lot) {
        let mut facts = self.facts.lock().unwrap();
        let fact = facts.entry(who).or_default();
        fact.lot = lot;
        fact.changes += 1;
    }

    pub(super) fn raise(&self, who: Who, oldest: u64) {
        let mut facts = self.facts.lock().unwrap();
        let fact = facts.entry(who).or_default();
        fact.oldest = fact.oldest.max(oldest);
    }

    pub(super) fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push(what);
    }

    pub(super) fn wrongs(&self) -> Vec<String> {
        self.wrongs.lock().unwrap().clone()
    }

    pub(super) fn is_well(&self) -> bool {
        self.wrongs.lock().unwrap().is_empty()
    }

    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }
}

/// Somebody who asks for one tenant, once.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) truth: Arc<Truth>,
    pub(super) router: TenantRouter,
    pub(super) who: Who,
    pub(super) id: String,
    pub(super) owner: String,
    /// At which step it came.
    pub(super) step: usize,
    /// What was certain when it came.
    pub(super) came: Fact,
}

impl Caller {
    pub(super) async fn ask(self, way: Way, holds: Duration) {
        match way {
            Way::Get => drop(self.get(holds).await),
            Way::Direct => self.direct(holds).await,
            Way::Read => {
                let work = |tx| self.clone().inside(tx, holds);
                self.heed(self.router.read(&self.id, work).await);
            }
            Way::Transaction => {
                let work = |tx| self.clone().inside(tx, holds);
                self.heed(self.router.transaction(&self.id, work).await);
            }
            Way::Cancelled => self.cancelled(holds).await,
            Way::Abandoned => self.abandoned(holds).await,
            Way::Unfinished => {
                if let Ok(client) = self.router.get(&self.id).await
                    && client.batch_execute("BEGIN").await.is_ok()
                {
                    self.question(&client, false).await;
                }
            }
        }
    }

    /// Has a connection for a while; says which database it led to.
    pub(super) async fn get(&self, holds: Duration) -> Result<Option<u64>, tenantry::Error> {
        let got = self.router.get(&self.id).await;
        let client = got.inspect_err(|err| self.blame(err))?;
        self.is_mine(client.tenant());
        let number = self.question(&client, false).await;
        sleep(holds).await;
        self.question(&client, false).await;
        Ok(number)
    }

    async fn direct(&self, holds: Duration) {
        match self.router.direct(&self.id).await {
            Ok(client) => {
                self.is_mine(client.tenant());
                self.question(&client, false).await;
                sleep(holds).await;
                self.question(&client, false).await;
            }
            Err(err) => self.blame(&err),
        }
    }

    async fn inside(self, tx: Tx, holds: Duration) -> Result<(), tenantry::Error> {
        self.is_mine(tx.tenant());
        let row = tx.query_typed(&self.asks(QUESTION), &[]).await?;
        self.judge(row[0].get(0));
        sleep(holds.min(Duration::from_secs(5))).await;
        tx.batch_execute(&self.asks(CHANGE)).await?;
        Ok(())
    }

    async fn cancelled(&self, holds: Duration) {
        let Ok(client) = self.router.get(&self.id).await else {
            return;
        };
        let token: CancelToken = client.cancel_token();
        let cancel = async {
            sleep(holds / 100).await;
            let _ = token.cancel().await;
        };
        tokio::join!(self.question(&client, true), cancel);
        self.question(&client, true).await;
    }

    async fn abandoned(&self, holds: Duration) {
        if let Ok(client) = self.router.get(&self.id).await {
            let _ = timeout(holds / 100, self.question(&client, false)).await;
        }
    }

    /// Asks on `client` whose database it is; says its number. `cancels`: whether somebody may stop the question.
    async fn question(&self, client: &Client, cancels: bool) -> Option<u64> {
        match client.query_typed(&self.asks(QUESTION), &[]).await {
            Ok(rows) => self.judge(rows[0].get(0)),
            Err(err) => {
                if err.code() == Some(&SqlState::QUERY_CANCELED) && !cancels {
                    self.wrong("its query was cancelled by somebody else");
                }
                None
            }
        }
    }

    fn asks(&self, sql: &str) -> String {
        House::asked_for(&self.owner, sql)
    }

    fn judge(&self, answer: &str) -> Option<u64> {
        let (owner, number) = House::read(answer)?;
        if owner != self.owner {
            self.wrong(&format!("it was answered by {answer}"));
        } else if number < self.came.oldest {
            let oldest = self.came.oldest;
            self.wrong(&format!(
                "it was answered by {answer}, moved to @{oldest} before"
            ));
        } else {
            self.truth.answers.fetch_add(1, Relaxed);
        }
        Some(number)
    }

    /// To be called with a connection just got.
    fn is_mine(&self, tenant: &TenantId) {
        if tenant.as_str() != self.id {
            self.wrong(&format!("its connection says that it is {tenant:?}"));
        }
        let lot = self.came.lot;
        if lot.refusal().is_some() && self.is_unchanged() {
            self.wrong(&format!("it is {lot:?}, and was served"));
        }
    }

    fn heed(&self, told: Result<(), tenantry::Error>) {
        if let Err(err) = told {
            self.blame(&err);
        }
    }

    /// Whether what was certain when it came still is.
    fn is_unchanged(&self) -> bool {
        self.truth.fact(self.who) == self.came
    }

    /// Takes note of an error that no trouble with databases explains.
    fn blame(&self, err: &tenantry::Error) {
        let denied = matches!(err.kind(), ErrorKind::Deleted | ErrorKind::Held);
        let lot = self.came.lot;
        if denied && lot != Lot::Unsure && lot.refusal() != Some(err.kind()) && self.is_unchanged()
        {
            self.wrong(&format!("it is {lot:?}, and was told {err:?}"));
        }
        let is_ours = matches!(
            err.kind(),
            ErrorKind::BadRecord
                | ErrorKind::Catalog
                | ErrorKind::Conflict
                | ErrorKind::Internal
                | ErrorKind::InvalidTenant
                | ErrorKind::Misconfigured
                | ErrorKind::Misused
                | ErrorKind::Refused
                | ErrorKind::UnknownTenant
        );
        if is_ours {
            self.wrong(&format!("it was told {err:?}"));
        }
    }

    pub(super) fn wrong(&self, what: &str) {
        let Self {
            step, owner, id, ..
        } = self;
        self.truth
            .wrong(format!("at step {step}, {owner} ({id:?}): {what}"));
    }
}
