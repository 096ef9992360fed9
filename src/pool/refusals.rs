//! Why a tenant's database cannot be had for now, remembered outside its pool.
//!
//! A pool comes and goes with its use; what Neon said about the tenant stays true meanwhile, and its proxy would only
//! repeat it (30 s). So it is kept here, per tenant and host, and told at once to whoever asks.

use std::time::Duration;

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    connection::verdict::REPEATED,
    model::{
        endpoint::Route,
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
};

/// How long a refusal is remembered that does not say itself when to come back.
const BRIEFLY: Duration = Duration::from_secs(5);
/// Shortest time for which one is.
const SHORTEST: Duration = Duration::from_secs(1);
/// Time that a login takes at the least, where the database sleeps: Neon starts a compute in a few hundred milliseconds.
const ONE_CONNECT: Duration = Duration::from_millis(500);
/// Nothing is remembered for longer than this.
const LONGEST: Duration = Duration::from_secs(120);

/// What is remembered of one tenant at one host.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    error: Error,
    until: Instant,
    /// When it was told for the first time: from then on Neon's proxy repeats it.
    since: Instant,
    /// Whether somebody has changed something that may have mended it: it is no answer any more.
    mended: bool,
}

impl Refusal {
    pub(crate) fn new(error: Error) -> Self {
        let wait = error.retry_after().unwrap_or(BRIEFLY).min(LONGEST);
        let now = Instant::now();
        Self {
            error,
            until: now + wait,
            since: now,
            mended: false,
        }
    }

    /// The same, told once more after something was mended. As long as the proxy may only be repeating what it said before, it
    /// is remembered no longer than that.
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

    /// Whether it is the answer for a caller who waits until `patience`: at once, if waiting would not help. What is over
    /// only just before leaves no time to connect.
    pub(crate) fn answers(&self, patience: Instant) -> bool {
        !self.error.kind().is_transient() || patience <= self.until + ONE_CONNECT
    }

    /// What the caller gets, with the time that is left.
    pub(crate) fn error(&self) -> Error {
        let left = self.until.saturating_duration_since(Instant::now());
        self.error.clone().with_retry_after(left)
    }
}

/// All that is remembered. Bounded; the least recently used leaves first.
#[derive(Debug)]
pub(crate) struct Refusals {
    pooled: Cache<TenantId, Refusal>,
    direct: Cache<TenantId, Refusal>,
}

impl Refusals {
    /// Remembers nothing yet, and at most `most` tenants per host.
    pub(crate) fn new(most: u64) -> Self {
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

    /// Remembers `refusal`; returns it as it is remembered.
    pub(crate) fn keep(&self, tenant: &TenantId, route: Route, refusal: Refusal) -> Refusal {
        let earlier = self.of(route).get(tenant);
        let refusal = match &earlier {
            Some(earlier) => refusal.after(earlier),
            None => refusal,
        };
        self.of(route).insert(tenant.clone(), refusal.clone());
        refusal
    }

    /// What holds now.
    pub(crate) fn get(&self, tenant: &TenantId, route: Route) -> Option<Refusal> {
        let refusal = self.of(route).get(tenant)?;
        (!refusal.mended && Instant::now() < refusal.until).then_some(refusal)
    }

    /// Forgets what is remembered of `tenant`: something was changed that may have mended it.
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

    /// Forgets what is remembered of `tenant` at one host: it has just been reached there.
    pub(crate) fn clear_at(&self, tenant: &TenantId, route: Route) {
        self.of(route).invalidate(tenant);
    }

    fn of(&self, route: Route) -> &Cache<TenantId, Refusal> {
        match route {
            Route::Pooled => &self.pooled,
            Route::Direct => &self.direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refusal(kind: ErrorKind, wait: Duration) -> Refusal {
        Refusal::new(Error::new(kind, "no").with_retry_after(wait))
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
