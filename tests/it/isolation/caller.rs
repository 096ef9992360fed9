//! Callers of a tenant, and the answers that they may get.

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

use super::step::{CallKind, TenantKey};
use crate::support::FakeDatabase;

const SELECT_OWNER: &str = "SELECT owner FROM seed";
const UPDATE_ROW: &str = "UPDATE seed SET number = number";

/// The status of a tenant: whether it has a database.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum TenantStatus {
    /// Or gets one at the first access.
    #[default]
    Served,
    Deleted,
    /// It is kept from use.
    Held,
    /// Something is being done about it, or was not done to the end.
    Unknown,
}

impl TenantStatus {
    /// Returns the kind of error that a caller gets if the tenant is not served.
    pub(super) fn refusal(self) -> Option<ErrorKind> {
        match self {
            Self::Served | Self::Unknown => None,
            Self::Deleted => Some(ErrorKind::Deleted),
            Self::Held => Some(ErrorKind::Held),
        }
    }
}

/// The state of a tenant, as far as it is certain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct KnownState {
    pub(super) status: TenantStatus,
    /// The number of the oldest database that may serve callers from now on.
    pub(super) oldest: u64,
    /// The number of times that its status has changed.
    changes: u64,
}

/// The known states of all tenants, and what was found to be wrong.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    known_states: Mutex<HashMap<TenantKey, KnownState>>,
    violations: Mutex<Vec<String>>,
    /// Answers that were right.
    answers: AtomicU64,
}

impl Oracle {
    pub(super) fn known(&self, key: TenantKey) -> KnownState {
        let known_states = self.known_states.lock().unwrap();
        known_states.get(&key).copied().unwrap_or_default()
    }

    pub(super) fn set_status(&self, key: TenantKey, status: TenantStatus) {
        let mut known_states = self.known_states.lock().unwrap();
        let known = known_states.entry(key).or_default();
        known.status = status;
        known.changes += 1;
    }

    pub(super) fn raise_oldest(&self, key: TenantKey, oldest: u64) {
        let mut known_states = self.known_states.lock().unwrap();
        let known = known_states.entry(key).or_default();
        known.oldest = known.oldest.max(oldest);
    }

    pub(super) fn report(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub(super) fn is_clean(&self) -> bool {
        self.violations.lock().unwrap().is_empty()
    }

    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }
}

/// One call for one tenant.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) oracle: Arc<Oracle>,
    pub(super) router: TenantRouter,
    pub(super) key: TenantKey,
    pub(super) id: String,
    pub(super) owner: String,
    /// The step at which it started.
    pub(super) step: usize,
    /// The state that was known when it started.
    pub(super) known_at_start: KnownState,
}

impl Caller {
    pub(super) async fn run(self, kind: CallKind, holds: Duration) {
        match kind {
            CallKind::Get => drop(self.get(holds).await),
            CallKind::Direct => self.direct(holds).await,
            CallKind::Read => {
                let work = |tx| self.clone().in_transaction(tx, holds);
                self.check_result(self.router.read(&self.id, work).await);
            }
            CallKind::Transaction => {
                let work = |tx| self.clone().in_transaction(tx, holds);
                self.check_result(self.router.transaction(&self.id, work).await);
            }
            CallKind::Cancelled => self.cancelled_query(holds).await,
            CallKind::Abandoned => self.abandoned_query(holds).await,
            CallKind::Unfinished => {
                if let Ok(client) = self.router.get(&self.id).await
                    && client.batch_execute("BEGIN").await.is_ok()
                {
                    self.query_owner(&client, false).await;
                }
            }
        }
    }

    /// Has a connection for a while; says which database it led to.
    pub(super) async fn get(&self, holds: Duration) -> Result<Option<u64>, tenantry::Error> {
        let got = self.router.get(&self.id).await;
        let client = got.inspect_err(|err| self.check_error(err))?;
        self.check_tenant(client.tenant());
        let number = self.query_owner(&client, false).await;
        sleep(holds).await;
        self.query_owner(&client, false).await;
        Ok(number)
    }

    async fn direct(&self, holds: Duration) {
        match self.router.direct(&self.id).await {
            Ok(client) => {
                self.check_tenant(client.tenant());
                self.query_owner(&client, false).await;
                sleep(holds).await;
                self.query_owner(&client, false).await;
            }
            Err(err) => self.check_error(&err),
        }
    }

    async fn in_transaction(self, tx: Tx, holds: Duration) -> Result<(), tenantry::Error> {
        self.check_tenant(tx.tenant());
        let row = tx.query_typed(&self.tagged(SELECT_OWNER), &[]).await?;
        self.check_row(row[0].get(0));
        sleep(holds.min(Duration::from_secs(5))).await;
        tx.batch_execute(&self.tagged(UPDATE_ROW)).await?;
        Ok(())
    }

    async fn cancelled_query(&self, holds: Duration) {
        let Ok(client) = self.router.get(&self.id).await else {
            return;
        };
        let token: CancelToken = client.cancel_token();
        let cancel = async {
            sleep(holds / 100).await;
            let _ = token.cancel().await;
        };
        tokio::join!(self.query_owner(&client, true), cancel);
        self.query_owner(&client, true).await;
    }

    async fn abandoned_query(&self, holds: Duration) {
        if let Ok(client) = self.router.get(&self.id).await {
            let _ = timeout(holds / 100, self.query_owner(&client, false)).await;
        }
    }

    /// Asks on `client` for the owner of the database, and returns its number. `cancels`: whether the query may be
    /// cancelled.
    async fn query_owner(&self, client: &Client, cancels: bool) -> Option<u64> {
        match client.query_typed(&self.tagged(SELECT_OWNER), &[]).await {
            Ok(rows) => self.check_row(rows[0].get(0)),
            Err(err) => {
                if err.code() == Some(&SqlState::QUERY_CANCELED) && !cancels {
                    self.report("its query was cancelled by another caller");
                }
                None
            }
        }
    }

    fn tagged(&self, sql: &str) -> String {
        FakeDatabase::tag_query(&self.owner, sql)
    }

    fn check_row(&self, answer: &str) -> Option<u64> {
        let (owner, number) = FakeDatabase::parse_row(answer)?;
        if owner != self.owner {
            self.report(&format!("it was answered by {answer}"));
        } else if number < self.known_at_start.oldest {
            let oldest = self.known_at_start.oldest;
            self.report(&format!(
                "it was answered by {answer}, moved to @{oldest} before"
            ));
        } else {
            self.oracle.answers.fetch_add(1, Relaxed);
        }
        Some(number)
    }

    /// Checks the tenant of a new connection.
    fn check_tenant(&self, tenant: &TenantId) {
        if tenant.as_str() != self.id {
            self.report(&format!("its connection says that it is {tenant:?}"));
        }
        let status = self.known_at_start.status;
        if status.refusal().is_some() && self.is_unchanged() {
            self.report(&format!("it is {status:?}, and was served"));
        }
    }

    fn check_result(&self, result: Result<(), tenantry::Error>) {
        if let Err(err) = result {
            self.check_error(&err);
        }
    }

    /// Returns whether the known state is still that of the call's start.
    fn is_unchanged(&self) -> bool {
        self.oracle.known(self.key) == self.known_at_start
    }

    /// Reports an error that no fault of a database explains.
    fn check_error(&self, err: &tenantry::Error) {
        let denied = matches!(err.kind(), ErrorKind::Deleted | ErrorKind::Held);
        let status = self.known_at_start.status;
        if denied
            && status != TenantStatus::Unknown
            && status.refusal() != Some(err.kind())
            && self.is_unchanged()
        {
            self.report(&format!("it is {status:?}, and was told {err:?}"));
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
            self.report(&format!("it was told {err:?}"));
        }
    }

    pub(super) fn report(&self, what: &str) {
        let Self {
            step, owner, id, ..
        } = self;
        self.oracle
            .report(format!("at step {step}, {owner} ({id:?}): {what}"));
    }
}
