//! What was read of each tenant, and how far it may be trusted.
//!
//! Entries grow old and stay: a tenant that was known once goes on being served while the catalog is down. What comes in
//! late is told from what is new by one count over all that happens here: an answer that was asked for before somebody
//! said that it may have changed is not taken.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    breaker::chance, endpoint::Endpoint, error::Error, record::State, retry::lock, tenant::TenantId,
};

/// How long it is remembered that a tenant cannot be had.
const DENIED_FOR: Duration = Duration::from_secs(10);
/// How many of those are remembered. Their ids come from outside, so anybody can fill it.
const MOST_DENIED: u64 = 10_000;
/// Tenants share this many notes of when they were called in question. One that was not is asked for once more, rarely.
const STRIPES: usize = 1024;

/// The moment at which a question was asked. Later ones are greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Moment(u64);

/// Where a tenant lives, as was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) endpoint: Arc<Endpoint>,
    /// The record's generation, if the endpoint came with one.
    pub(crate) generation: Option<u64>,
    stored: Moment,
    expires: Instant,
    /// Whether the application has said that something was changed: it is used only if nobody can be asked.
    pub(crate) distrusted: bool,
    /// Whether the catalog has no record of it any more.
    vanished: bool,
}

/// That a tenant cannot be had, as was read at some time.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    /// Why; none if it is merely not known.
    pub(crate) error: Option<Error>,
    /// The generation of its record; none if the catalog never had one.
    recorded: Option<u64>,
    stored: Moment,
    until: Instant,
}

/// What is remembered of one tenant.
#[derive(Clone, Debug)]
pub(crate) enum Recalled {
    Known(Known),
    Denied(Denied),
}

/// All that is remembered. Bounded; the least recently used leaves first.
#[derive(Debug)]
pub(crate) struct Memo {
    known: Cache<TenantId, Known>,
    denied: Cache<TenantId, Denied>,
    // When a tenant of each stripe was last called in question. Held while an entry of the stripe is changed.
    questioned: Box<[Mutex<Moment>]>,
    stripe_of: RandomState,
    now: AtomicU64,
    /// When all tenants were.
    all_questioned: AtomicU64,
    ttl: Duration,
}

impl Memo {
    pub(crate) fn new(most_known: u64, ttl: Duration) -> Self {
        let lru = EvictionPolicy::lru;
        let known = Cache::builder()
            .max_capacity(most_known)
            .eviction_policy(lru());
        let denied = Cache::builder()
            .max_capacity(MOST_DENIED)
            .eviction_policy(lru());
        Self {
            known: known.build(),
            denied: denied.build(),
            questioned: (0..STRIPES).map(|_| Mutex::new(Moment(0))).collect(),
            stripe_of: RandomState::new(),
            now: AtomicU64::new(1),
            all_questioned: AtomicU64::new(0),
            ttl,
        }
    }

    /// This moment: to be taken before a question is asked, and shown with its answer.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.now.fetch_add(1, SeqCst))
    }

    pub(crate) fn recall(&self, tenant: &TenantId) -> Option<Recalled> {
        if let Some(denied) = self.denied.get(tenant)
            && Instant::now() < denied.until
        {
            return Some(Recalled::Denied(denied));
        }
        self.known.get(tenant).map(Recalled::Known)
    }

    /// Whether anything is remembered of `tenant`, however old.
    pub(crate) fn remembers(&self, tenant: &TenantId) -> bool {
        self.known.contains_key(tenant) || self.denied.contains_key(tenant)
    }

    /// Whether what is remembered of `tenant` should be read again.
    pub(crate) fn is_due(&self, tenant: &TenantId) -> bool {
        match self.recall(tenant) {
            Some(Recalled::Known(known)) => self.is_expired(&known),
            Some(Recalled::Denied(_)) => false,
            None => true,
        }
    }

    pub(crate) fn is_expired(&self, known: &Known) -> bool {
        Instant::now() >= known.expires || known.stored.0 < self.all_questioned.load(SeqCst)
    }

    /// Remembers where `tenant` lives by an answer to what was asked at `asked`. `false` if a newer one may be there, or
    /// have to be.
    pub(crate) fn keep(
        &self,
        tenant: &TenantId,
        asked: Moment,
        generation: Option<u64>,
        endpoint: &Arc<Endpoint>,
    ) -> bool {
        let stripe = self.stripe(tenant);
        if !self.may_take(*stripe, tenant, asked, generation) {
            return false;
        }
        let known = Known {
            endpoint: Arc::clone(endpoint),
            generation,
            stored: self.now(),
            expires: self.next_expiry(),
            distrusted: false,
            vanished: false,
        };
        self.denied.invalidate(tenant);
        self.known.insert(tenant.clone(), known);
        true
    }

    /// Remembers where `tenant` lives, and that this should be read again.
    pub(crate) fn keep_expired(&self, tenant: &TenantId, endpoint: &Arc<Endpoint>) {
        let stripe = self.stripe(tenant);
        let known = Known {
            endpoint: Arc::clone(endpoint),
            generation: None,
            stored: self.now(),
            expires: Instant::now(),
            distrusted: false,
            vanished: false,
        };
        self.denied.invalidate(tenant);
        self.known.insert(tenant.clone(), known);
        drop(stripe);
    }

    /// Remembers, in place of where `tenant` lives, that it cannot be had, by an answer to what was asked at `asked`.
    /// `false` as for [`keep`](Self::keep).
    pub(crate) fn deny(
        &self,
        tenant: &TenantId,
        asked: Moment,
        recorded: Option<u64>,
        error: Option<Error>,
    ) -> bool {
        let stripe = self.stripe(tenant);
        if !self.may_take(*stripe, tenant, asked, recorded) {
            return false;
        }
        self.known.invalidate(tenant);
        let denied = Denied {
            error,
            recorded,
            stored: self.now(),
            until: Instant::now() + DENIED_FOR,
        };
        self.denied.insert(tenant.clone(), denied);
        true
    }

    /// Forgets `tenant`, whose record says neither that it may be used nor that it may not. `false` as for
    /// [`keep`](Self::keep).
    pub(crate) fn clear(&self, tenant: &TenantId, asked: Moment, generation: u64) -> bool {
        let stripe = self.stripe(tenant);
        let takes = self.may_take(*stripe, tenant, asked, Some(generation));
        if takes {
            self.known.invalidate(tenant);
            self.denied.invalidate(tenant);
        }
        takes
    }

    /// Where `tenant` was known to live of whom the catalog has no record any more, and whether that is news.
    pub(crate) fn vanished(&self, tenant: &TenantId) -> Option<(Arc<Endpoint>, bool)> {
        let _stripe = self.stripe(tenant);
        let mut known = self.known.get(tenant)?;
        let news = !std::mem::replace(&mut known.vanished, true);
        (known.expires, known.distrusted) = (self.next_expiry(), false);
        let endpoint = Arc::clone(&known.endpoint);
        self.known.insert(tenant.clone(), known);
        Some((endpoint, news))
    }

    /// Whether `tenant` cannot be had although the catalog had a record of it.
    pub(crate) fn was_recorded(&self, tenant: &TenantId) -> bool {
        let denied = self.denied.get(tenant);
        denied.is_some_and(|denied| denied.recorded.is_some())
    }

    /// Takes note that the record of `tenant` may have changed: what is remembered is old, and what is about to be
    /// answered, too.
    pub(crate) fn question(&self, tenant: &TenantId) {
        self.question_with(tenant, false);
    }

    /// The same, and takes what is remembered for wrong as long as anybody can be asked.
    pub(crate) fn distrust(&self, tenant: &TenantId) {
        self.question_with(tenant, true);
    }

    fn question_with(&self, tenant: &TenantId, distrusts: bool) {
        let mut questioned = self.stripe(tenant);
        *questioned = self.now();
        if let Some(mut known) = self.known.get(tenant) {
            known.expires = Instant::now();
            known.distrusted |= distrusts;
            self.known.insert(tenant.clone(), known);
        }
        if let Some(mut denied) = self.denied.get(tenant) {
            denied.until = Instant::now();
            self.denied.insert(tenant.clone(), denied);
        }
    }

    /// Takes note that every record may have changed.
    pub(crate) fn question_all(&self) {
        self.all_questioned.store(self.now().0, SeqCst);
        self.denied
            .iter()
            .for_each(|(tenant, _)| self.question(&tenant));
    }

    /// Takes note that the record of `tenant` was written here, with that state; says whether somebody should hear of it.
    pub(crate) fn written(&self, tenant: &TenantId, state: State) -> bool {
        let mut questioned = self.stripe(tenant);
        match state {
            State::Ready => {
                self.denied.invalidate(tenant);
                let Some(mut known) = self.known.get(tenant) else {
                    return false;
                };
                known.expires = Instant::now();
                self.known.insert(tenant.clone(), known);
                true
            }
            State::Held | State::Deleting | State::Deleted => {
                *questioned = self.now();
                self.known.invalidate(tenant);
                true
            }
            State::Claimed | State::Creating | State::Preparing => false,
        }
    }

    /// Whether the answer to what was asked at `asked` is at least as new as all that is known to have happened.
    fn may_take(
        &self,
        questioned: Moment,
        tenant: &TenantId,
        asked: Moment,
        generation: Option<u64>,
    ) -> bool {
        if asked < questioned || asked.0 < self.all_questioned.load(SeqCst) {
            return false;
        }
        // What came in since may have been read later or earlier than this. Only the generation can tell.
        let known = self.known.get(tenant);
        let known = known.map(|known| (known.stored, known.generation));
        let denied = self.denied.get(tenant);
        let denied = denied.map(|denied| (denied.stored, denied.recorded));
        let mut present = known.into_iter().chain(denied);
        present.all(|(stored, present)| stored < asked || present < generation)
    }

    fn next_expiry(&self) -> Instant {
        // From nine to eleven tenths, so that what was read together is not read together again.
        let tenths = self.ttl / 10 * 9;
        Instant::now() + tenths + self.ttl / 5 * u32::from(chance()) / u32::from(u8::MAX)
    }

    fn stripe(&self, tenant: &TenantId) -> MutexGuard<'_, Moment> {
        let hash = self.stripe_of.hash_one(tenant).to_be_bytes();
        let stripe = usize::from(u16::from_be_bytes([hash[0], hash[1]])) % STRIPES;
        lock(&self.questioned[stripe])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const TTL: Duration = Duration::from_secs(300);

    fn memo() -> (Memo, TenantId) {
        (Memo::new(100, TTL), TenantId::parse("acme").unwrap())
    }

    fn at(host: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint::postgres(host, "d", "r", "p"))
    }

    fn host(memo: &Memo, tenant: &TenantId) -> Option<String> {
        match memo.recall(tenant)? {
            Recalled::Known(known) => Some(known.endpoint.direct_host.clone()),
            Recalled::Denied(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_grows_old_and_stays() {
        let (memo, acme) = memo();
        assert!(memo.keep(&acme, memo.now(), Some(1), &at("a")));
        assert!(!memo.is_due(&acme));
        tokio::time::advance(Duration::from_secs(269)).await;
        assert!(!memo.is_due(&acme), "not a tenth early");
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(memo.is_due(&acme), "nor a tenth late");
        tokio::time::advance(TTL * 1000).await;
        assert_eq!(host(&memo, &acme).as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_asked_for_before_a_question_is_not_taken() {
        let (memo, acme) = memo();
        for question in [Memo::question, |memo: &Memo, _: &TenantId| {
            memo.question_all();
        }] {
            let asked = memo.now();
            question(&memo, &acme);
            assert!(!memo.keep(&acme, asked, Some(9), &at("old")));
            assert!(!memo.deny(&acme, asked, Some(9), None));
            assert!(!memo.clear(&acme, asked, 9));
            assert!(memo.keep(&acme, memo.now(), Some(1), &at("new")));
            assert_eq!(host(&memo, &acme).as_deref(), Some("new"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_answers_under_way_at_once_the_greater_generation_stays() {
        let (memo, acme) = memo();
        let (earliest, early, late) = (memo.now(), memo.now(), memo.now());
        assert!(memo.keep(&acme, late, Some(2), &at("two")));
        assert!(!memo.keep(&acme, early, Some(1), &at("one")));
        assert!(!memo.deny(&acme, early, Some(1), None));
        assert!(memo.keep(&acme, early, Some(3), &at("three")));
        // A catalog that was restored from a backup counts on from there.
        assert!(memo.keep(&acme, memo.now(), Some(1), &at("one")));
        assert_eq!(host(&memo, &acme).as_deref(), Some("one"));
        // A tombstone changes no generation.
        assert!(memo.deny(&acme, memo.now(), Some(1), None));
        assert!(!memo.keep(&acme, earliest, Some(1), &at("one")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_denial_is_short_and_does_not_forget_that_there_was_a_record() {
        let (memo, acme) = memo();
        let deleted = || Some(Error::new(ErrorKind::Deleted, "gone"));
        assert!(memo.deny(&acme, memo.now(), Some(1), deleted()));
        assert!(matches!(memo.recall(&acme), Some(Recalled::Denied(_))));
        memo.question(&acme);
        assert!(memo.recall(&acme).is_none() && memo.was_recorded(&acme));
        assert!(memo.deny(&acme, memo.now(), Some(1), deleted()));
        tokio::time::advance(DENIED_FOR).await;
        assert!(memo.recall(&acme).is_none() && memo.was_recorded(&acme));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_has_vanished_is_news_once_and_leaves_what_is_known() {
        let (memo, acme) = memo();
        assert!(memo.vanished(&acme).is_none());
        memo.keep(&acme, memo.now(), Some(1), &at("a"));
        for news in [true, false, false] {
            tokio::time::advance(TTL * 2).await;
            let (endpoint, is_news) = memo.vanished(&acme).unwrap();
            assert_eq!((endpoint.direct_host.as_str(), is_news), ("a", news));
            assert!(!memo.is_due(&acme), "not asked for over and over");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn both_kinds_of_memory_are_bounded() {
        let (memo, _) = memo();
        for number in 0..MOST_DENIED + 5000 {
            let tenant = TenantId::parse(&format!("t{number}")).unwrap();
            if number < 1000 {
                memo.keep(&tenant, memo.now(), Some(1), &at("a"));
            } else {
                memo.deny(&tenant, memo.now(), None, None);
            }
        }
        memo.known.run_pending_tasks();
        memo.denied.run_pending_tasks();
        assert_eq!(memo.known.entry_count(), 100);
        assert_eq!(memo.denied.entry_count(), MOST_DENIED);
    }
}
