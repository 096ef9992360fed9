//! The state of one tenant, the reasons for it, and what the next call would do.

mod text;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{Inner, TenantRouter, handle::TenantHandle, migrate::Migrator};
use crate::{
    catalog::cached::{Denial, Entry},
    connection::status::health::Health,
    model::{
        endpoint::Route,
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, State, Wake},
    provision::source::{OnMissing, Source},
    schema::{OnAccess, Standing},
    telemetry::status::seconds,
};

/// A router's knowledge of one tenant. Returned by [`TenantRouter::explain`]. `Display` writes it for people, and serde
/// for machines, with times in seconds.
///
/// It names hosts, but no role or password.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The tenant's id.
    pub tenant: String,
    /// The outcome of a `get` that comes now.
    pub next: NextGet,
    /// The cached entry of the catalog.
    pub catalog: Remembered,
    /// The [code](crate::Stage::code) of the current stage, if a look-up or creation is under way.
    pub flight: Option<&'static str>,
    /// The refusal that still holds.
    pub refusal: Option<RefusalState>,
    /// The tenant's schema, if the router has one and the tenant has a pool.
    pub schema: Option<SchemaPosition>,
    /// The tenant's connections, if it has a pool.
    pub pool: Option<PoolState>,
    /// The last wakes, at most 4, newest first. The pool remembers them until it has left the cache and is no longer in
    /// use.
    pub wakes: Vec<PriorWake>,
}

/// The outcome of a `get`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NextGet {
    /// Returns an idle connection at once.
    Reuse,
    /// Asks the server whether an idle connection still lives, and returns it. It was silent for longer than
    /// `verify_after`, or another connection of the tenant did not answer.
    Verify,
    /// Opens one more connection; the database is awake.
    Open,
    /// Waits for one of the tenant's connections: all are in use or being opened, and the limit is reached.
    Wait,
    /// Wakes the database by opening the first connection.
    Wake,
    /// Waits for a wake that is under way.
    JoinWake,
    /// Looks the tenant up, in memory or in the catalog, creates its database if there is none and that is allowed, and
    /// then wakes it.
    LookUp,
    /// Waits for a look-up or a creation that is under way.
    JoinLookUp,
    /// Migrates the tenant's schema, which is too old for this program, or waits until that is done.
    Migrate,
    /// Returns the error that is remembered.
    Refuse,
    /// Returns `ErrorKind::Closed`.
    Closed,
}

/// The router's memory of a tenant's entry in the catalog.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Remembered {
    /// No entries are kept: the router asks the application's own `Lookup` each time.
    NotKept,
    /// Nothing was read yet.
    Nothing,
    /// The tenant lives at this host.
    At {
        /// The pooled host.
        host: String,
        /// `true` if the next use reads the entry again, because it is older than `catalog_ttl` or was reported as
        /// changed.
        stale: bool,
    },
    /// There is no such tenant. Remembered for some seconds.
    NoSuchTenant,
    /// The tenant's database is being created. Remembered for some seconds.
    Unfinished,
    /// The tenant may not be used, for the reason that this [code](crate::ErrorKind::code) names. Remembered for some
    /// seconds.
    Denied(&'static str),
}

/// A refusal of a tenant's database.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RefusalState {
    /// The [code](crate::ErrorKind::code) of the error.
    pub code: &'static str,
    /// The message of the error.
    pub message: String,
    /// Time for which the refusal still holds, unless the tenant is [evicted](TenantRouter::evict).
    #[serde(rename = "left_seconds", serialize_with = "seconds")]
    pub left: Duration,
}

/// A tenant's schema, as far as this process knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SchemaPosition {
    /// The lowest version that this program works with.
    pub requires: i64,
    /// The highest version that this program applies on access.
    pub latest: i64,
    /// `current`: an access does nothing. `behind`: the program works with it, and migrates it beside its callers.
    /// `too_old`: it must be migrated first.
    pub standing: &'static str,
    /// The version of the step that this process applies now. 0 while a migration wakes the database or waits.
    pub step: Option<i64>,
    /// The last failure, with the step, if it is not long ago. [`Fleet::schema_of`](crate::Fleet::schema_of) has it
    /// from the catalog.
    pub failure: Option<String>,
}

/// A tenant's connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PoolState {
    /// The pooled host.
    pub host: String,
    /// `true` if the pool is in the cache. Otherwise its connections are closed when they come back.
    pub cached: bool,
    /// Connections open, idle ones included.
    pub open: usize,
    /// Idle connections.
    pub idle: usize,
    /// Connections being opened.
    pub opening: usize,
    /// Waiting callers.
    pub waiting: usize,
    /// The most connections that the tenant may have.
    pub limit: usize,
    /// `true` if the database is believed asleep, so that the next connection wakes it.
    pub asleep: bool,
    /// The reason for `asleep`.
    pub because: &'static str,
    /// The [code](crate::ErrorKind::code) of the last failure to connect, if no attempt has succeeded since.
    pub last_failure: Option<&'static str>,
}

/// A wake that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PriorWake {
    /// Time since it began.
    #[serde(rename = "ago_seconds", serialize_with = "seconds")]
    pub ago: Duration,
    /// Time that it took.
    #[serde(rename = "took_seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// The reason: `request`, `warm` or `hint`.
    pub reason: &'static str,
    /// The [code](crate::ErrorKind::code) of its error, if it failed.
    pub failure: Option<&'static str>,
}

impl TenantRouter {
    /// Returns the state of `tenant` and the reasons for it, its last wakes, and what the next `get` would do. It only
    /// reads memory, and is no use of the tenant: it wakes nothing and keeps no pool in the cache.
    ///
    /// # Errors
    /// `ErrorKind::InvalidTenant` if this is not a tenant's id.
    ///
    /// ```no_run
    /// # fn f(router: &tenantry::TenantRouter) -> Result<(), tenantry::Error> {
    /// println!("{}", router.explain("acme")?);
    /// # Ok(()) }
    /// ```
    pub fn explain<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<Explanation, Error> {
        let tenant = TenantId::parse(tenant.as_ref())?;
        Ok(self.inner.explain(&tenant, OnMissing::AskPolicy))
    }
}

impl TenantHandle {
    /// Returns the state of the tenant, as [`TenantRouter::explain`] does.
    pub fn explain(&self) -> Explanation {
        let inner = &self.router().inner;
        inner.explain(self.tenant(), self.on_missing())
    }
}

impl Inner {
    fn explain(&self, tenant: &TenantId, on_missing: OnMissing) -> Explanation {
        let refusal = self.shared.refusals.get(tenant, Route::Pooled);
        let flight = self.flights.stage(tenant);
        let catalog = self.remembered(tenant);
        let pool = self.pools.live(tenant.as_str());
        let state = pool.as_ref().map(|pool| pool.state());
        let until = Instant::now() + self.shared.config.get_timeout;
        let refused = refusal.as_ref().is_some_and(|it| it.answers(until));
        let may_create = match &self.shared.source {
            Source::Lookup(_) => false,
            Source::Provisioning(provisioning) => {
                on_missing == OnMissing::AskPolicy && provisioning.creates_on_access()
            }
        };
        let next = if self.shared.life.is_stopping() {
            NextGet::Closed
        } else {
            match (&pool, &state) {
                (Some(pool), Some(state)) if !state.retired => {
                    let schema = self.migrator.as_ref().map(Migrator::schema);
                    match (pool.standing(), schema.map(|it| it.on_access())) {
                        (Standing::TooOld, Some(OnAccess::Refuse)) => NextGet::Refuse,
                        (Standing::TooOld, _) => NextGet::Migrate,
                        _ => next_of(pool, state, refused),
                    }
                }
                _ if flight.is_some() => NextGet::JoinLookUp,
                _ if matches!(catalog, Remembered::Denied(_)) => NextGet::Refuse,
                _ if catalog == Remembered::NoSuchTenant && !may_create => NextGet::Refuse,
                _ => NextGet::LookUp,
            }
        };
        let wakes = state.as_ref().map(|state| state.wakes.iter().rev());
        Explanation {
            tenant: tenant.to_string(),
            next,
            catalog,
            flight: flight.map(Stage::code),
            refusal: refusal.map(|refusal| RefusalState {
                code: refusal.kind().code(),
                message: refusal.error().to_string(),
                left: refusal.until().saturating_duration_since(Instant::now()),
            }),
            schema: pool.as_ref().and_then(|pool| {
                let migrator = self.migrator.as_ref()?;
                Some(migrator.position(tenant, pool.standing()))
            }),
            wakes: wakes.into_iter().flatten().map(PriorWake::new).collect(),
            pool: pool
                .as_ref()
                .zip(state)
                .map(|(pool, state)| PoolState::new(pool, &state)),
        }
    }

    fn remembered(&self, tenant: &TenantId) -> Remembered {
        let Some(catalog) = self.shared.source.catalog() else {
            return Remembered::NotKept;
        };
        match catalog.entries.get(tenant) {
            None => Remembered::Nothing,
            Some(Entry::Denied(denied)) => match denied.denial {
                Denial::Unknown(None) => Remembered::NoSuchTenant,
                Denial::Unfinished => Remembered::Unfinished,
                Denial::Unknown(Some(err)) | Denial::Refused(err) | Denial::Broken(err) => {
                    Remembered::Denied(err.kind().code())
                }
            },
            Some(Entry::Known(known)) => Remembered::At {
                host: known.endpoint.host(Route::Pooled).to_owned(),
                stale: known.freshness.is_untrusted || catalog.entries.is_expired(&known.freshness),
            },
        }
    }
}

/// Returns what a `get` would do with a pool in this state.
fn next_of(pool: &Pool, state: &State, refused: bool) -> NextGet {
    if let Some(connection) = state.next_idle() {
        return match pool.health_of(connection) {
            Health::Healthy => NextGet::Reuse,
            Health::Pending | Health::NeedsPing => NextGet::Verify,
            Health::Closed => NextGet::Open,
        };
    }
    let full = state.open.len() + state.dialing >= state.limit(&pool.shared.config);
    match (state.believes_asleep(), state.dialing) {
        _ if refused && state.open.is_empty() => NextGet::Refuse,
        (true, 1..) => NextGet::JoinWake,
        _ if full => NextGet::Wait,
        (true, 0) => NextGet::Wake,
        (false, _) => NextGet::Open,
    }
}

impl PoolState {
    fn new(pool: &Pool, state: &State) -> Self {
        let (asleep, because) = match (state.open.is_empty(), state.lost.is_some()) {
            (true, false) if !state.rare.direct.is_empty() => {
                (false, "a direct connection is open, and none was lost")
            }
            (true, _) if state.wakes.is_empty() => (true, "no connection has been opened yet"),
            (true, _) => (true, "no connection is open"),
            (false, true) => (true, "a connection was lost that the router did not close"),
            (false, false) => (false, "connections are open, and none was lost"),
        };
        let failure = state.rare.last_failure.as_ref();
        Self {
            host: state.endpoint.host(Route::Pooled).to_owned(),
            cached: !state.retired,
            open: state.open.len(),
            idle: state.idle(),
            opening: state.dialing,
            waiting: state.waiting(),
            limit: state.limit(&pool.shared.config),
            asleep,
            because,
            last_failure: failure.map(|it| it.error().kind().code()),
        }
    }
}

impl PriorWake {
    fn new(wake: &Wake) -> Self {
        Self {
            ago: wake.began.elapsed(),
            took: wake.took,
            reason: wake.reason.name(),
            failure: wake.failure.map(ErrorKind::code),
        }
    }
}
