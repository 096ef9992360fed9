//! Why a tenant is where it is, and what the next call would do.

mod text;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{Inner, TenantRouter, handle::TenantHandle};
use crate::{
    catalog::cached::{Denial, Entry},
    connection::Health,
    model::{
        endpoint::Route,
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, State, Wake},
    provision::source::{OnMissing, Source},
    telemetry::status::seconds,
};

/// What a router knows of one tenant. From [`TenantRouter::explain`]; `Display` writes it for people, serde for machines,
/// with times in seconds.
///
/// It names hosts, and no role or password.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The tenant's id.
    pub tenant: String,
    /// What the next `get` would do, if it came now.
    pub next: NextGet,
    /// What was read of the catalog.
    pub catalog: Remembered,
    /// Which stage a look-up or creation has come to that is under way: the [code](crate::Stage::code) of it.
    pub flight: Option<&'static str>,
    /// What was refused, and still holds.
    pub refusal: Option<RefusalState>,
    /// The tenant's connections, if it has a pool.
    pub pool: Option<PoolState>,
    /// Its last wakes, at most 4, newest first, as far as the pool remembers: it forgets when it leaves the cache and nobody
    /// uses it any more.
    pub wakes: Vec<PriorWake>,
}

/// What a `get` would do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NextGet {
    /// Hand out an idle connection, at once.
    Reuse,
    /// Ask the server whether an idle connection still lives, and hand it out: it has not been heard of for longer than
    /// `verify_after`, or another connection of the tenant was silent.
    Verify,
    /// Open one more connection; the database is awake.
    Open,
    /// Wait for one of the tenant's connections: all are in use or being opened, and there may be no more.
    Wait,
    /// Wake the database: open the first connection.
    Wake,
    /// Wait for a wake that is under way.
    JoinWake,
    /// Find out where the tenant lives, from memory or from the catalog, create its database if there is none and that is
    /// allowed, and then wake it.
    LookUp,
    /// Wait for a look-up or a creation that is under way.
    JoinLookUp,
    /// Answer with the error that is remembered.
    Refuse,
    /// Answer `ErrorKind::Closed`.
    Closed,
}

/// What is remembered of a tenant's entry in the catalog.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Remembered {
    /// Nothing: the router asks the application's own `Lookup` each time.
    NotKept,
    /// Nothing, yet.
    Nothing,
    /// That it lives at this host.
    At {
        /// The pooled host.
        host: String,
        /// Whether it is read again at the next use: older than `catalog_ttl`, or said to have changed.
        stale: bool,
    },
    /// That there is no such tenant. For some seconds.
    NoSuchTenant,
    /// That its database is being made. For some seconds.
    Unfinished,
    /// That it may not be used, by the [code](crate::ErrorKind::code) of why. For some seconds.
    Denied(&'static str),
}

/// Why a database cannot be had for now.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RefusalState {
    /// The [code](crate::ErrorKind::code) of the error.
    pub code: &'static str,
    /// The error's own words.
    pub message: String,
    /// For how much longer it is the answer, unless somebody [evicts](TenantRouter::evict) it.
    #[serde(rename = "left_seconds", serialize_with = "seconds")]
    pub left: Duration,
}

/// A tenant's connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PoolState {
    /// The pooled host.
    pub host: String,
    /// Whether it is in the cache. Otherwise its connections are closed as they come back.
    pub cached: bool,
    /// Connections open, idle ones included.
    pub open: usize,
    /// Connections idle.
    pub idle: usize,
    /// Connections being opened.
    pub opening: usize,
    /// Callers that wait.
    pub waiting: usize,
    /// The most connections there may be.
    pub limit: usize,
    /// Whether the database is believed asleep, so that the next connection is its wake.
    pub asleep: bool,
    /// Why that is believed.
    pub because: &'static str,
    /// The last failure to connect, if none has succeeded since: the [code](crate::ErrorKind::code) of it.
    pub last_failure: Option<&'static str>,
}

/// A wake that is over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PriorWake {
    /// How long ago it began.
    #[serde(rename = "ago_seconds", serialize_with = "seconds")]
    pub ago: Duration,
    /// How long it took.
    #[serde(rename = "took_seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// On whose account: `request`, `warm` or `hint`.
    pub reason: &'static str,
    /// The [code](crate::ErrorKind::code) of why it failed, if it has.
    pub failure: Option<&'static str>,
}

impl TenantRouter {
    /// What is known of `tenant`, why it is where it is, its last wakes, and what the next `get` would do. Asks nobody, and is no
    /// use of the tenant: it wakes nothing and keeps nothing in the cache.
    ///
    /// # Errors
    /// `ErrorKind::InvalidTenant` if this is no tenant's id.
    ///
    /// ```no_run
    /// # fn f(router: &tenantry::TenantRouter) -> Result<(), tenantry::Error> {
    /// println!("{}", router.explain("acme")?);
    /// # Ok(()) }
    /// ```
    pub fn explain<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<Explanation, Error> {
        let tenant = TenantId::parse(tenant.as_ref())?;
        Ok(self.inner.explain(&tenant, OnMissing::Create))
    }
}

impl TenantHandle {
    /// What is known of the tenant, as by [`TenantRouter::explain`].
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
                on_missing == OnMissing::Create && provisioning.creates_on_access()
            }
        };
        let next = if self.shared.life.is_stopping() {
            NextGet::Closed
        } else {
            match (&pool, &state) {
                (Some(pool), Some(state)) if !state.retired => next_of(pool, state, refused),
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
                stale: known.is_untrusted || catalog.entries.is_expired(&known),
            },
        }
    }
}

/// What a caller would meet who comes to a pool in this state.
fn next_of(pool: &Pool, state: &State, refused: bool) -> NextGet {
    if let Some(connection) = state.next_idle() {
        return match connection.health(&pool.shared.config) {
            Health::Healthy => NextGet::Reuse,
            Health::Pending | Health::NeedsPing => NextGet::Verify,
            Health::CancelPending | Health::Closed => NextGet::Open,
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
            (true, false) if !state.direct.is_empty() => {
                (false, "a direct connection is open, and none was lost")
            }
            (true, _) if state.wakes.is_empty() => (true, "no connection has been opened yet"),
            (true, _) => (true, "no connection is open"),
            (false, true) => (true, "a connection was lost that the router did not close"),
            (false, false) => (false, "connections are open, and none was lost"),
        };
        let failure = state.last_failure.as_ref();
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
