//! From a tenant to a connection.

pub(crate) mod builder;
mod cached_statements;
pub(crate) mod close;
mod direct;
pub(crate) mod explain;
pub(crate) mod follow;
pub(crate) mod handle;
pub(crate) mod preload;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod transactions;
pub(crate) mod warm;

use std::{fmt, future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use self::builder::RouterBuilder;
use crate::{
    catalog::{
        cached::{Entry, EntryCache},
        lookup::Lookup,
    },
    client::TenantClient,
    limits::callers::Place,
    model::{
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    pool::{Pool, Unserved, cache::Pools, lease::Lease, reaper, shared::Shared},
    provision::{
        Provisioner,
        source::{self, OnMissing},
    },
    sync::{
        retry::{Progress, Stale},
        single_flight::Flights,
    },
    telemetry::{
        spans::{self, Laps},
        stats::{Path, Reason, count},
    },
};

/// Turns a tenant's id into a live connection to that tenant's own database.
///
/// Cheap to clone; all clones share the same pools. Its tasks run on the runtime that `build` was called on, and no
/// matter on which runtime callers are; when that runtime ends, every call answers `ErrorKind::Closed`.
#[derive(Clone)]
pub struct TenantRouter {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pools: Arc<Pools>,
    pub(crate) flights: Flights<TenantId, Flown>,
    pub(crate) shared: Arc<Shared>,
}

/// What a flight has found.
#[derive(Clone)]
pub(crate) enum Flown {
    Arrived(Arrived),
    /// The tenant has no database, and this is as much as the flight could do about it.
    Missing(OnMissing),
}

/// Where a flight has led.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) pool: Arc<Pool>,
    /// Whether it had the tenant's database created, or adopted.
    created: bool,
}

impl TenantRouter {
    /// A router that asks `lookup` where a tenant lives. A tenant it does not know is an error.
    pub fn builder(lookup: impl Lookup) -> RouterBuilder {
        RouterBuilder::with_lookup(lookup)
    }

    /// A router that keeps its own catalog of tenants, and creates their databases: by
    /// [`Fleet::provision`](crate::Fleet::provision), and on access by a policy that the provisioner names
    /// ([`Provisioner::decide`], [`Provisioner::on_first_access`]). By default an access to an unknown tenant is an error.
    pub fn provisioning(provisioner: Provisioner) -> RouterBuilder {
        RouterBuilder::with_provisioner(provisioner)
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let pools = Arc::new(Pools::new(Arc::clone(&shared)));
        shared.runtime.spawn(reaper::start(Arc::downgrade(&pools)));
        follow::start(&pools);
        let flights = Flights::new(shared.runtime.clone());
        let inner = Arc::new(Inner {
            pools,
            flights,
            shared,
        });
        #[cfg(feature = "metrics")]
        crate::router::status::start(&inner);
        Self { inner }
    }

    /// A connection to the database of `tenant`.
    ///
    /// With an idle connection at hand this does no I/O. Otherwise it looks the tenant up, creates its database if the
    /// provisioner's policy says so, wakes it if it sleeps, and opens a connection, all within `get_timeout`. What it started
    /// goes on when the time is over, so calling again later can succeed at once.
    ///
    /// # Errors
    /// The [kind](Error::kind) says what happened. `ErrorKind::Timeout` names the stage, has the last failure as its
    /// source, and says by [`retry_after`](Error::retry_after) when to come back.
    ///
    /// # Cancel safety
    /// Dropping the future gives up this caller's place and nothing else: a look-up, a creation or a wake under way
    /// goes on for whoever comes next.
    pub async fn get<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> Result<TenantClient, Error> {
        self.inner
            .get(tenant.as_ref(), OnMissing::Create, None)
            .await
            .map(TenantClient::new)
    }

    /// Forgets where `tenant` lives and what was refused of it, and closes its idle connections; says whether anything
    /// was known. Connections in use go on, and are closed when they come back. The next `get` looks the tenant up
    /// again. To be called when something was mended that a refusal is about: a plan, a password, a disabled endpoint. Neon's
    /// proxy itself repeats a refusal for 30 seconds (observed), so that the next `get` may meet it once more until then.
    pub fn evict<T: AsRef<str> + ?Sized>(&self, tenant: &T) -> bool {
        TenantId::parse(tenant.as_ref()).is_ok_and(|tenant| self.inner.evict(&tenant))
    }
}

impl Inner {
    /// Forgets what is known of `tenant`; says whether anything was.
    pub(crate) fn evict(&self, tenant: &TenantId) -> bool {
        // In this order: a flight that lands in between finds the mark after it has put its pool into the cache.
        if let Some(catalog) = self.shared.source.catalog() {
            catalog.entries.mark_untrusted(tenant);
        }
        self.flights.mark_stale(tenant);
        self.pools.evict(tenant.as_str())
    }

    /// A connection, within `patience`, or `get_timeout` if there is none.
    pub(crate) async fn get(
        &self,
        tenant: &str,
        on_missing: OnMissing,
        patience: Option<Duration>,
    ) -> Result<Lease, Error> {
        if self.shared.life.is_shut() {
            return Err(self.turn_away(tenant, Reason::Request));
        }
        match self.pools.get_now(tenant) {
            Ok(lease) => {
                spans::warm(tenant);
                Ok(lease)
            }
            // In a box, so that who need not wait does not carry all that it takes to wait.
            Err(pool) => {
                let wait = self.wait(tenant, pool, on_missing, Reason::Request, patience);
                let lease = Box::pin(wait).await?;
                Ok(lease.expect("whoever asks for a connection is served with one"))
            }
        }
    }

    /// Returns when the database of `tenant` is awake.
    pub(crate) async fn wake(&self, tenant: &str, on_missing: OnMissing) -> Result<(), Error> {
        if self.shared.life.is_shut() {
            return Err(self.turn_away(tenant, Reason::Warm));
        }
        let pool = self.pools.find(tenant);
        let wait = self.wait(tenant, pool, on_missing, Reason::Warm, None);
        wait.await.map(drop)
    }

    /// The error for a call that comes when the router ends or has ended.
    fn turn_away(&self, tenant: &str, reason: Reason) -> Error {
        let err = Error::closed();
        spans::end(&spans::span(tenant, reason), Err(&err));
        self.shared.stats.failed(&err);
        err
    }

    /// Waits for a connection, or, for another reason, until the database is awake; in `pool`, if the tenant has one.
    async fn wait(
        &self,
        tenant: &str,
        pool: Option<Arc<Pool>>,
        on_missing: OnMissing,
        reason: Reason,
        patience: Option<Duration>,
    ) -> Result<Option<Lease>, Error> {
        let Shared { life, stats, .. } = &*self.shared;
        let (span, mut laps) = (spans::span(tenant, reason), Laps::new(stats));
        let work = async {
            tokio::select! {
                biased;
                () = life.ended() => Err(Error::closed()),
                result = self.wait_in_line(tenant, pool, on_missing, reason, patience, &mut laps) => result,
            }
        };
        let result = work.instrument(span.clone()).await;
        spans::end(&span, result.as_ref().map(|(_, path)| *path));
        match result {
            Ok((lease, path)) => {
                stats.got(path, laps.waited());
                Ok(lease)
            }
            Err(err) => {
                stats.failed(&err);
                self.note_failing(&err);
                Err(err)
            }
        }
    }

    async fn wait_in_line(
        &self,
        raw: &str,
        pool: Option<Arc<Pool>>,
        on_missing: OnMissing,
        reason: Reason,
        patience: Option<Duration>,
        laps: &mut Laps<'_>,
    ) -> Result<(Option<Lease>, Path), Error> {
        let tenant = TenantId::parse(raw)?;
        let place = self.enter(&tenant)?;
        let patience = patience.unwrap_or(self.shared.config.get_timeout);
        let until = laps.began + patience;
        let mut pool = pool;
        let work = async {
            loop {
                let (pool, created) = if let Some(pool) = pool.take() {
                    (pool, false)
                } else {
                    // In a box, like what follows: who waits for a connection is to carry no more than that.
                    let patience = until.saturating_duration_since(Instant::now());
                    let flight = Box::pin(self.fly(&tenant, on_missing, patience)).await;
                    laps.lap(flight.as_ref(), flown);
                    flight.map(|it| (it.pool, it.created))?
                };
                match serve(&pool, created, until, reason, laps).await {
                    Err(Unserved::Relocate(_)) if Instant::now() < until => {}
                    served => return served.map_err(Unserved::into_error),
                }
            }
        };
        let served = work.await;
        if served.is_ok() {
            place.leave_served();
        }
        served.map_err(|err: Error| err.with_tenant(&tenant))
    }

    /// Takes note that a call has failed of a tenant that has a database. Other ids come from outside: whoever makes them up must
    /// not fill the list of those who fail.
    pub(crate) fn note_failing(&self, err: &Error) {
        let Some(tenant) = err.tenant() else {
            return;
        };
        let entries = self.shared.source.catalog().map(|it| &it.entries);
        let is_known = |it: &EntryCache| matches!(it.get(tenant), Some(Entry::Known(_)));
        if entries.is_some_and(is_known) || self.pools.alive(tenant.as_str()).is_some() {
            self.shared.stats.failing.add(tenant, 1.0);
        }
    }

    /// A place among the callers who wait.
    pub(crate) fn enter(&self, tenant: &TenantId) -> Result<Place<TenantId>, Error> {
        let Shared { waiting, stats, .. } = &*self.shared;
        waiting.enter(tenant).map_err(|full| {
            count(&stats.overloaded);
            let most = full.most;
            let message = if full.of_one {
                format!(
                    "{most} callers wait for this tenant already; raise waiting_per_tenant, or pool_size so that more \
                     are served side by side"
                )
            } else {
                format!("{most} callers wait already; raise waiting_callers, or max_connections so that more are served")
            };
            Error::new(ErrorKind::Overloaded, message)
                .with_tenant(tenant)
                .with_retry_after(full.wait)
        })
    }

    /// The pool of a tenant that is not in the cache.
    pub(crate) async fn fly(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
        patience: Duration,
    ) -> Result<Arrived, Error> {
        let until = Instant::now() + patience;
        loop {
            let patience = until.saturating_duration_since(Instant::now());
            let find = || self.find(tenant, on_missing);
            match self.flights.join(tenant, patience, find).await? {
                Flown::Arrived(arrived) => return Ok(arrived),
                Flown::Missing(by) if by >= on_missing => return Err(source::not_created()),
                Flown::Missing(_) => {} // the flight of a call that may do less
            }
        }
    }

    /// The flight that finds a tenant's endpoint, creates it if that is allowed, and makes its pool.
    pub(crate) fn find(
        &self,
        tenant: &TenantId,
        on_missing: OnMissing,
    ) -> (Progress, impl FnMut() -> Found + Send + 'static) {
        let progress = Progress::new(Stage::Lookup, self.shared.config.provision_timeout);
        let (pools, shared) = (Arc::clone(&self.pools), Arc::clone(&self.shared));
        let (tenant, seen) = (tenant.clone(), progress.clone());
        let mut first = true;
        let name = tenant.as_str();
        let span = spans::detached(tracing::debug_span!(parent: None, "flight", tenant = name));
        let flight = move || -> Found {
            let again = !mem::replace(&mut first, false);
            let (tenant, seen) = (tenant.clone(), seen.clone());
            let (pools, shared) = (Arc::clone(&pools), Arc::clone(&shared));
            let work = async move {
                if again {
                    pools.evict(tenant.as_str()); // what was found before may be old
                } else if let Some(pool) = pools.find(tenant.as_str()) {
                    // It landed between the caller's look and this one.
                    return Ok(Flown::Arrived(Arrived {
                        pool,
                        created: false,
                    }));
                }
                let Shared { source, stats, .. } = &*shared;
                let asked = source.stamp();
                let locate = source.locate(&tenant, on_missing, &seen, stats);
                let located = timeout_at(seen.deadline(), locate).await;
                let Some(located) = located.map_err(|_| seen.timed_out())?? else {
                    return Ok(Flown::Missing(on_missing));
                };
                let endpoint = Arc::clone(&located.endpoint);
                let created = located.created;
                let pool = pools.insert(&tenant, located);
                // In this order: the follower notes a change before it looks for the pool.
                if !source.agrees(&tenant, &endpoint, asked) {
                    pools.forbid(&tenant, &Unserved::relocate());
                    seen.mark_stale(Stale::Wrong);
                }
                Ok(Flown::Arrived(Arrived { pool, created }))
            };
            Box::pin(work.instrument(span.clone()))
        };
        (progress, flight)
    }
}

/// Waits in `pool` for a connection, or, for another reason than a request, until the database is awake.
async fn serve(
    pool: &Arc<Pool>,
    created: bool,
    until: Instant,
    reason: Reason,
    laps: &mut Laps<'_>,
) -> Result<(Option<Lease>, Path), Unserved> {
    let (lease, slept) = if reason == Reason::Request {
        let served = pool.get(until).await;
        laps.lap(served.as_ref().map_err(Unserved::error), waited);
        served.map(|(lease, slept)| (Some(lease), slept))?
    } else {
        let awake = Box::pin(pool.wake(until, reason, None)).await;
        if !created && matches!(awake, Ok(false)) {
            return Ok((None, Path::Warm)); // nobody has waited
        }
        laps.lap(awake.as_ref().map_err(Unserved::error), woken);
        (None, awake?)
    };
    let path = match (created, slept) {
        (true, _) => Path::Provisioned,
        (false, true) => Path::Cold,
        (false, false) => Path::Reopened,
    };
    Ok((lease, path))
}

/// For which stage a caller has waited who flew.
fn flown(result: Result<&Arrived, Option<Stage>>) -> Stage {
    match result {
        Ok(Arrived { created: true, .. }) => Stage::Provision,
        Ok(_) => Stage::Lookup,
        Err(stage) => stage.unwrap_or(Stage::Lookup),
    }
}

/// For which stage a caller has waited in a pool's queue.
fn waited(result: Result<&(Lease, bool), Option<Stage>>) -> Stage {
    match result {
        Ok((_, true)) => Stage::Wake,
        Ok((_, false)) => Stage::Checkout,
        Err(stage) => stage.unwrap_or(Stage::Checkout),
    }
}

/// For which stage a caller has waited who wants the database awake.
fn woken(result: Result<&bool, Option<Stage>>) -> Stage {
    match result {
        Ok(true) => Stage::Wake,
        Ok(false) => Stage::Checkout,
        Err(stage) => stage.unwrap_or(Stage::Wake),
    }
}

pub(crate) type Found = Pin<Box<dyn Future<Output = Result<Flown, Error>> + Send>>;

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.life.finish();
        self.pools.evict_all();
    }
}

impl fmt::Debug for TenantRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantRouter").finish_non_exhaustive()
    }
}
