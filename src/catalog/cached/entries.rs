//! One entry for each tenant: what the catalog said of it last, and how far that may be trusted.
//!
//! Entries grow old and stay: a tenant that was known once goes on being served while the catalog is down. A late answer is
//! told from a new one by one count over all that happens here: an answer to a question from before the tenant was
//! [invalidated](EntryCache::invalidate) is not taken.

mod entry;

use std::{
    hash::{BuildHasher, RandomState},
    mem,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    model::{endpoint::Endpoint, error::Error, tenant::TenantId},
    sync::{lock, retry::chance},
};

pub(crate) use entry::{Denial, Denied, Entry, Known, Stamp};

/// Time for which a denial is the answer.
const DENIED_FOR: Duration = Duration::from_secs(10);
/// Ids without a record that are remembered. They come from outside, so anybody can fill this.
const MAX_UNKNOWN: u64 = 10_000;
/// Tenants share this many notes of when they were invalidated. One that was not is read once more, rarely.
const STRIPES: usize = 1024;

/// All entries. Bounded; the least recently used leaves first.
#[derive(Debug)]
pub(crate) struct EntryCache {
    /// Of tenants that have, or had, a record.
    recorded: Cache<TenantId, Entry>,
    /// Of ids that have none. Apart, so that made-up ids displace no tenant.
    unknown: Cache<TenantId, Denied>,
    // When a tenant of each stripe was last invalidated. Held while an entry of the stripe is changed.
    invalidated: Box<[Mutex<Stamp>]>,
    stripe_of: RandomState,
    last_stamp: AtomicU64,
    /// When all tenants were invalidated.
    all_invalidated: AtomicU64,
    ttl: Duration,
}

impl EntryCache {
    pub(crate) fn new(max_recorded: u64, ttl: Duration) -> Self {
        let lru = EvictionPolicy::lru;
        Self {
            recorded: Cache::builder()
                .max_capacity(max_recorded)
                .eviction_policy(lru())
                .build(),
            unknown: Cache::builder()
                .max_capacity(MAX_UNKNOWN)
                .eviction_policy(lru())
                .build(),
            invalidated: (0..STRIPES).map(|_| Mutex::new(Stamp(0))).collect(),
            stripe_of: RandomState::new(),
            last_stamp: AtomicU64::new(1),
            all_invalidated: AtomicU64::new(0),
            ttl,
        }
    }

    /// Returns the stamp of this moment: to be taken before a question is asked, and shown with its answer.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp(self.last_stamp.fetch_add(1, SeqCst))
    }

    /// Returns the entry of `tenant`: however old, if the tenant is known; as long as it holds, if it is denied.
    pub(crate) fn get(&self, tenant: &TenantId) -> Option<Entry> {
        match self.entry(tenant)? {
            Entry::Denied(denied) if self.is_over(&denied) => None,
            entry => Some(entry),
        }
    }

    fn entry(&self, tenant: &TenantId) -> Option<Entry> {
        let unknown = || self.unknown.get(tenant).map(Entry::Denied);
        self.recorded.get(tenant).or_else(unknown)
    }

    /// Whether there is an entry of `tenant`, however old.
    pub(crate) fn contains(&self, tenant: &TenantId) -> bool {
        self.recorded.contains_key(tenant) || self.unknown.contains_key(tenant)
    }

    /// Whether the record of `tenant` should be read again.
    pub(crate) fn is_stale(&self, tenant: &TenantId) -> bool {
        match self.get(tenant) {
            Some(Entry::Known(known)) => self.is_expired(&known),
            Some(Entry::Denied(_)) => false,
            None => true,
        }
    }

    fn is_over(&self, denied: &Denied) -> bool {
        Instant::now() >= denied.until || denied.stored.0 < self.all_invalidated.load(SeqCst)
    }

    pub(crate) fn is_expired(&self, known: &Known) -> bool {
        Instant::now() >= known.expires || known.stored.0 < self.all_invalidated.load(SeqCst)
    }

    /// Remembers where `tenant` lives by an answer to a question of `asked`. Returns `false`, and remembers nothing, if
    /// a newer answer may be there, or has to be fetched.
    pub(crate) fn insert_known(
        &self,
        tenant: &TenantId,
        asked: Stamp,
        generation: Option<u64>,
        endpoint: &Arc<Endpoint>,
    ) -> bool {
        let stripe = self.stripe(tenant);
        let is_newest = self.is_newest(*stripe, tenant, asked, generation);
        if is_newest {
            let expires = self.next_expiry();
            self.store_known(tenant, generation, endpoint, expires);
        }
        is_newest
    }

    /// Remembers where `tenant` lives, and that the record has to be read again.
    pub(crate) fn insert_stale(&self, tenant: &TenantId, endpoint: &Arc<Endpoint>) {
        let _stripe = self.stripe(tenant);
        self.store_known(tenant, None, endpoint, Instant::now());
    }

    fn store_known(
        &self,
        tenant: &TenantId,
        generation: Option<u64>,
        endpoint: &Arc<Endpoint>,
        expires: Instant,
    ) {
        let known = Known {
            endpoint: Arc::clone(endpoint),
            generation,
            stored: self.stamp(),
            expires,
            is_untrusted: false,
            is_missing: false,
        };
        self.unknown.invalidate(tenant);
        self.recorded.insert(tenant.clone(), Entry::Known(known));
    }

    /// Remembers why `tenant` cannot be had, by an answer to a question of `asked`. Returns `false` as
    /// [`insert_known`](Self::insert_known) does.
    pub(crate) fn insert_denial(
        &self,
        tenant: &TenantId,
        asked: Stamp,
        generation: Option<u64>,
        denial: Denial,
    ) -> bool {
        let stripe = self.stripe(tenant);
        let is_newest = self.is_newest(*stripe, tenant, asked, generation);
        if is_newest {
            self.store_denial(tenant, generation, denial);
        }
        is_newest
    }

    fn store_denial(&self, tenant: &TenantId, generation: Option<u64>, denial: Denial) {
        let denied = Denied {
            denial,
            generation,
            stored: self.stamp(),
            until: Instant::now() + DENIED_FOR,
        };
        if matches!(denied.denial, Denial::Unknown(_)) {
            self.recorded.invalidate(tenant);
            self.unknown.insert(tenant.clone(), denied);
        } else {
            self.unknown.invalidate(tenant);
            self.recorded.insert(tenant.clone(), Entry::Denied(denied));
        }
    }

    /// Remembers that the record of `tenant` makes no sense. A tenant that is known and trusted is served further, and
    /// its record is read again after a while.
    pub(crate) fn insert_broken(&self, tenant: &TenantId, asked: Stamp, error: Error) -> bool {
        let stripe = self.stripe(tenant);
        if !self.is_newest(*stripe, tenant, asked, Some(0)) {
            return false;
        }
        match self.recorded.get(tenant) {
            Some(Entry::Known(known)) if !known.is_untrusted => self.postpone(tenant, known),
            _ => self.store_denial(tenant, Some(0), Denial::Broken(error)),
        }
        true
    }

    /// Notes that `tenant` has moved to where it cannot be reached yet: what is known is used only if nobody can be
    /// asked.
    pub(crate) fn mark_moved(&self, tenant: &TenantId, asked: Stamp, generation: u64) -> bool {
        let stripe = self.stripe(tenant);
        if !self.is_newest(*stripe, tenant, asked, Some(generation)) {
            return false;
        }
        match self.recorded.get(tenant) {
            Some(Entry::Known(mut known)) => {
                known.is_untrusted = true;
                self.postpone(tenant, known);
            }
            // Where it lives is for the next flight to find out; a denial that held before does not any more.
            Some(Entry::Denied(_)) => self.recorded.invalidate(tenant),
            None => self.unknown.invalidate(tenant),
        }
        true
    }

    fn postpone(&self, tenant: &TenantId, mut known: Known) {
        known.expires = Instant::now() + DENIED_FOR;
        known.stored = self.stamp();
        self.recorded.insert(tenant.clone(), Entry::Known(known));
    }

    /// Notes that the catalog has no record any more of a tenant that was known. Returns where it was known to live, and
    /// whether that is news.
    pub(crate) fn mark_missing(&self, tenant: &TenantId) -> Option<(Arc<Endpoint>, bool)> {
        let _stripe = self.stripe(tenant);
        let Some(Entry::Known(mut known)) = self.recorded.get(tenant) else {
            return None;
        };
        let is_news = !mem::replace(&mut known.is_missing, true);
        (known.expires, known.is_untrusted) = (self.next_expiry(), false);
        let endpoint = Arc::clone(&known.endpoint);
        self.recorded.insert(tenant.clone(), Entry::Known(known));
        Some((endpoint, is_news))
    }

    /// Whether `tenant` was refused by a record that the catalog had.
    pub(crate) fn was_refused(&self, tenant: &TenantId) -> bool {
        let entry = self.recorded.get(tenant);
        matches!(entry, Some(Entry::Denied(it)) if it.denial.is_refusal())
    }

    /// Notes that the record of `tenant` may have changed: its entry is old, and so is every answer under way.
    pub(crate) fn invalidate(&self, tenant: &TenantId) {
        self.invalidate_with(tenant, false);
    }

    /// Does the same, and notes that the entry is wrong as long as anybody can be asked.
    pub(crate) fn mark_untrusted(&self, tenant: &TenantId) {
        self.invalidate_with(tenant, true);
    }

    fn invalidate_with(&self, tenant: &TenantId, is_wrong: bool) {
        let mut invalidated = self.stripe(tenant);
        *invalidated = self.stamp();
        match self.entry(tenant) {
            Some(Entry::Known(mut known)) => {
                known.expires = Instant::now();
                known.is_untrusted |= is_wrong;
                self.recorded.insert(tenant.clone(), Entry::Known(known));
            }
            Some(Entry::Denied(mut denied)) if !matches!(denied.denial, Denial::Unknown(_)) => {
                denied.until = Instant::now();
                self.recorded.insert(tenant.clone(), Entry::Denied(denied));
            }
            Some(Entry::Denied(_)) | None => self.unknown.invalidate(tenant),
        }
    }

    /// Returns whether no change of `tenant` was heard after `asked`. Another tenant's counts too, rarely.
    pub(crate) fn is_unchanged_since(&self, tenant: &TenantId, asked: Stamp) -> bool {
        *self.stripe(tenant) <= asked && self.all_invalidated.load(SeqCst) <= asked.0
    }

    /// Notes that every record may have changed.
    pub(crate) fn invalidate_all(&self) {
        self.all_invalidated.store(self.stamp().0, SeqCst);
        self.unknown.invalidate_all();
    }

    /// Notes that this process has written a record of `tenant` that may be used, by a write that began at `began`: no answer
    /// from before is taken any more. Returns the stamp of what the writer knows, and whether the pool of the tenant has to
    /// follow.
    pub(crate) fn note_published(&self, tenant: &TenantId, began: Stamp) -> (Stamp, bool) {
        let mut invalidated = self.stripe(tenant);
        let written = self.note_written(&mut invalidated, began);
        let Some(Entry::Known(mut known)) = self.recorded.get(tenant) else {
            self.recorded.invalidate(tenant);
            self.unknown.invalidate(tenant);
            return (written, false);
        };
        known.expires = Instant::now();
        self.recorded.insert(tenant.clone(), Entry::Known(known));
        (written, true)
    }

    /// Notes that this process has written a record of `tenant` that must not be used, for `denial`.
    pub(crate) fn note_withdrawn(&self, tenant: &TenantId, began: Stamp, denial: Denial) -> Stamp {
        let mut invalidated = self.stripe(tenant);
        let written = self.note_written(&mut invalidated, began);
        self.store_denial(tenant, Some(0), denial);
        written
    }

    /// If a change was heard of since the write began, it may be a later one: then the writer knows no more than it did.
    fn note_written(&self, invalidated: &mut Stamp, began: Stamp) -> Stamp {
        if *invalidated > began {
            return began;
        }
        *invalidated = self.stamp();
        *invalidated
    }

    /// Whether an answer to a question of `asked` is at least as new as all that is known to have happened.
    fn is_newest(
        &self,
        invalidated: Stamp,
        tenant: &TenantId,
        asked: Stamp,
        generation: Option<u64>,
    ) -> bool {
        if asked < invalidated || asked.0 < self.all_invalidated.load(SeqCst) {
            return false;
        }
        // An entry that was stored since may have been read later or earlier than this. Only the generation can tell.
        self.entry(tenant)
            .is_none_or(|it| it.stored() < asked || it.generation() < generation)
    }

    fn next_expiry(&self) -> Instant {
        // From nine to eleven tenths, so that what was read together is not read together again.
        let tenths = self.ttl / 10 * 9;
        Instant::now() + tenths + self.ttl / 5 * u32::from(chance()) / u32::from(u8::MAX)
    }

    fn stripe(&self, tenant: &TenantId) -> MutexGuard<'_, Stamp> {
        let hash = self.stripe_of.hash_one(tenant).to_be_bytes();
        let stripe = usize::from(u16::from_be_bytes([hash[0], hash[1]])) % STRIPES;
        lock(&self.invalidated[stripe])
    }
}

#[cfg(test)]
mod tests;
