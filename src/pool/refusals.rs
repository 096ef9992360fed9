//! Refusals of tenants' databases, kept outside the pools.
//!
//! A refusal stays true when the tenant's pool is evicted, and Neon's proxy would only repeat it (30 s). So it is kept
//! here, per tenant and host, and answers callers at once.

use std::{sync::Arc, time::Duration};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    connection::verdict::REPEATED,
    model::{
        endpoint::{Endpoint, Route},
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
};

/// Lifetime of a refusal that has no `retry_after`.
const BRIEFLY: Duration = Duration::from_secs(5);
/// Shortest lifetime of a refusal that the proxy may only be repeating.
const SHORTEST: Duration = Duration::from_secs(1);
/// Shortest time of a login to a sleeping database: Neon starts a compute in a few hundred milliseconds.
const ONE_CONNECT: Duration = Duration::from_millis(500);
/// Longest lifetime of a refusal.
const LONGEST: Duration = Duration::from_secs(120);

/// A refusal of one tenant at one host.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    error: Error,
    /// The tenant's endpoint when it was refused.
    endpoint: Arc<Endpoint>,
    until: Instant,
    /// Time of the first such answer: from then on Neon's proxy repeats it.
    since: Instant,
    /// `true` if a change may have removed the cause: the refusal answers no caller any more.
    mended: bool,
}

impl Refusal {
    pub(super) fn new(error: Error, endpoint: Arc<Endpoint>) -> Self {
        let wait = error.retry_after().unwrap_or(BRIEFLY).min(LONGEST);
        let now = Instant::now();
        Self {
            error,
            endpoint,
            until: now + wait,
            since: now,
            mended: false,
        }
    }

    /// Returns the refusal as one that follows `earlier`. After a change that may have removed the cause, the proxy may
    /// only be repeating its earlier answer. Then the refusal ends with that repetition.
    fn after(mut self, earlier: &Self) -> Self {
        let repeated = earlier.since + REPEATED;
        let is_repeated = earlier.error.kind() == self.error.kind() && self.since < repeated;
        if earlier.mended && is_repeated {
            self.until = self.until.min(repeated.max(self.since + SHORTEST));
            self.since = earlier.since;
        }
        self
    }

    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// Returns whether a record or an answer of the application's lookup, by which the tenant is served at `endpoint`,
    /// contradicts the refusal.
    fn is_outdated(&self, endpoint: &Endpoint) -> bool {
        is_gone(self.error.kind()) || !self.endpoint.is_same_place(endpoint)
    }

    /// Returns whether the refusal answers a caller that waits until `deadline`. It does if waiting does not help, or
    /// if the refusal ends too late to leave time for a login.
    pub(crate) fn answers(&self, deadline: Instant) -> bool {
        !self.error.kind().is_transient() || deadline <= self.until + ONE_CONNECT
    }

    /// Returns the error for a caller, with the time that is left as its `retry_after`.
    pub(crate) fn error(&self) -> Error {
        let left = self.until.saturating_duration_since(Instant::now());
        self.error.clone().with_retry_after(left)
    }
}

/// The stored refusals. Bounded; the least recently used one is dropped first.
#[derive(Debug)]
pub(crate) struct Refusals {
    pooled: Cache<TenantId, Refusal>,
    direct: Cache<TenantId, Refusal>,
}

impl Refusals {
    /// Creates an empty store for at most `most` tenants per host.
    pub(super) fn new(most: u64) -> Self {
        let cache = || {
            Cache::builder()
                .max_capacity(most)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(LONGEST)
                .build()
        };
        Self {
            pooled: cache(),
            direct: cache(),
        }
    }

    /// Stores `refusal`, and returns it as stored.
    pub(super) fn keep(&self, tenant: &TenantId, route: Route, refusal: Refusal) -> Refusal {
        let earlier = self.of(route).get(tenant);
        let refusal = match &earlier {
            Some(earlier) => refusal.after(earlier),
            None => refusal,
        };
        self.of(route).insert(tenant.clone(), refusal.clone());
        refusal
    }

    /// Returns the active refusal, if any.
    pub(crate) fn get(&self, tenant: &TenantId, route: Route) -> Option<Refusal> {
        let refusal = self.of(route).get(tenant)?;
        (!refusal.mended && Instant::now() < refusal.until).then_some(refusal)
    }

    /// Ends the refusals of `tenant` that are outdated now that the tenant is known to be served at `endpoint`. They
    /// may have outlived the pool that met them.
    pub(super) fn end_outdated(&self, tenant: &TenantId, endpoint: &Endpoint) {
        let is_outdated = |route| {
            let refusal = self.get(tenant, route);
            refusal.is_some_and(|it| it.is_outdated(endpoint))
        };
        if is_outdated(Route::Pooled) || is_outdated(Route::Direct) {
            self.clear(tenant.as_str());
        }
    }

    /// Ends the refusals of `tenant`: a change may have removed their cause.
    pub(crate) fn clear(&self, tenant: &str) {
        let Ok(id) = TenantId::parse(tenant) else {
            return;
        };
        for cache in [&self.pooled, &self.direct] {
            if let Some(refusal) = cache.get(&id) {
                let mended = true;
                cache.insert(id.clone(), Refusal { mended, ..refusal });
            }
        }
    }

    /// Forgets the refusal of `tenant` at one host: a login there has just succeeded.
    pub(super) fn clear_at(&self, tenant: &TenantId, route: Route) {
        self.of(route).invalidate(tenant);
    }

    fn of(&self, route: Route) -> &Cache<TenantId, Refusal> {
        match route {
            Route::Pooled => &self.pooled,
            Route::Direct => &self.direct,
        }
    }
}

/// Returns whether an error of that kind says that the tenant has no usable database.
pub(super) fn is_gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Deleted | ErrorKind::Held | ErrorKind::UnknownTenant
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::postgres("localhost", "app", "app", "hunter2"))
    }

    fn refusal(kind: ErrorKind, wait: Duration) -> Refusal {
        Refusal::new(Error::new(kind, "no").with_retry_after(wait), endpoint())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_its_host_and_its_time_and_says_how_much_is_left() {
        let (refusals, acme) = (Refusals::new(10), TenantId::parse("acme").unwrap());
        let disabled = refusal(ErrorKind::Disabled, 30 * SECOND);
        refusals.keep(&acme, Route::Pooled, disabled);
        assert!(refusals.get(&acme, Route::Direct).is_none());
        tokio::time::advance(10 * SECOND).await;
        let kept = refusals.get(&acme, Route::Pooled).unwrap();
        assert_eq!(kept.error().retry_after(), Some(20 * SECOND));
        tokio::time::advance(20 * SECOND).await;
        assert!(refusals.get(&acme, Route::Pooled).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_can_wait_until_a_passing_refusal_is_over_is_not_turned_away() {
        let limit = refusal(ErrorKind::ActiveComputeLimit, 30 * SECOND);
        assert!(limit.answers(Instant::now() + 20 * SECOND));
        let just_over = Instant::now() + 30 * SECOND + ONE_CONNECT / 2;
        assert!(limit.answers(just_over), "there is no time to connect");
        assert!(!limit.answers(Instant::now() + 40 * SECOND));
        let quota = refusal(ErrorKind::Disabled, 30 * SECOND);
        assert!(
            quota.answers(Instant::now() + 40 * SECOND),
            "waiting does not help"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_mended_is_forgotten() {
        let (refusals, acme) = (Refusals::new(10), TenantId::parse("acme").unwrap());
        refusals.keep(&acme, Route::Pooled, refusal(ErrorKind::Disabled, SECOND));
        refusals.keep(&acme, Route::Direct, refusal(ErrorKind::Disabled, SECOND));
        refusals.clear_at(&acme, Route::Pooled);
        assert!(refusals.get(&acme, Route::Pooled).is_none());
        assert!(refusals.get(&acme, Route::Direct).is_some());
        refusals.clear("acme");
        assert!(refusals.get(&acme, Route::Direct).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_when_the_tenant_is_served_again_or_lives_elsewhere() {
        let (refusals, acme) = (Refusals::new(10), TenantId::parse("acme").unwrap());
        let elsewhere = Endpoint::postgres("elsewhere", "app", "app", "hunter2");
        for (kind, now_at, ends) in [
            (ErrorKind::Deleted, &*endpoint(), true),
            (ErrorKind::Disabled, &endpoint(), false),
            (ErrorKind::Disabled, &elsewhere, true),
        ] {
            refusals.keep(&acme, Route::Direct, refusal(kind, SECOND));
            refusals.end_outdated(&acme, now_at);
            let is_over = refusals.get(&acme, Route::Direct).is_none();
            assert_eq!(is_over, ends, "{kind:?}, {now_at:?}");
        }
        let printed = format!("{refusals:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_proxy_repeats_after_something_was_mended_is_remembered_as_long_as_that() {
        let (refusals, acme) = (Refusals::new(10), TenantId::parse("acme").unwrap());
        let quota = || refusal(ErrorKind::Disabled, 60 * SECOND);
        let left = |kept: Refusal| kept.until().duration_since(Instant::now());
        assert_eq!(
            left(refusals.keep(&acme, Route::Pooled, quota())),
            60 * SECOND
        );
        tokio::time::advance(20 * SECOND).await;
        refusals.clear("acme");
        let again = refusals.keep(&acme, Route::Pooled, quota());
        assert_eq!(left(again), REPEATED.saturating_sub(20 * SECOND));
        refusals.clear("acme");
        tokio::time::advance(15 * SECOND).await;
        let anew = refusals.keep(&acme, Route::Pooled, quota());
        assert_eq!(left(anew), 60 * SECOND, "nobody repeats that any more");
    }
}
