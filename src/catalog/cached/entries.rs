//! The cached entry of each tenant: the catalog's last answer, and how far it may be trusted.
//!
//! Entries become stale and stay, so that a known tenant keeps being served while the catalog is down. Stamps from one
//! counter order all events of the cache, and show late answers: if the tenant was
//! [invalidated](EntryCache::invalidate) after a question was asked, the answer is not stored.

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

/// Time for which a denial is returned.
const DENIED_FOR: Duration = Duration::from_secs(10);
/// Most ids without a record that are cached. They come from outside, so any client can fill this cache.
const MAX_UNKNOWN: u64 = 10_000;
/// Number of stripes. The tenants of a stripe share the stamp of their last invalidation, so that the invalidation of
/// one rarely causes another to be read once more.
const STRIPES: usize = 1024;

/// The entries of all tenants. Bounded; the least recently used entry is evicted first.
#[derive(Debug)]
pub(crate) struct EntryCache {
    /// Entries of tenants that have, or had, a record.
    recorded: Cache<TenantId, Entry>,
    /// Denials of ids that have none. Separate, so that made-up ids evict no tenant.
    unknown: Cache<TenantId, Denied>,
    // Stamp of the last invalidation in each stripe. Held while an entry of the stripe is changed.
    invalidated: Box<[Mutex<Stamp>]>,
    stripe_of: RandomState,
    last_stamp: AtomicU64,
    /// Stamp of the last invalidation of all tenants.
    all_invalidated: AtomicU64,
    ttl: Duration,
}

impl EntryCache {
    pub(in crate::catalog) fn new(max_recorded: u64, ttl: Duration) -> Self {
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

    /// Returns the stamp of this moment. A caller takes it before it asks the catalog, and passes it with the answer.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp(self.last_stamp.fetch_add(1, SeqCst))
    }

    /// Returns the entry of `tenant`. A known endpoint is returned however old it is, a denial only while it holds.
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

    /// Returns whether there is an entry of `tenant`, however old.
    pub(crate) fn contains(&self, tenant: &TenantId) -> bool {
        self.recorded.contains_key(tenant) || self.unknown.contains_key(tenant)
    }

    /// Returns whether the record of `tenant` should be read again.
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

    /// Stores the endpoint of `tenant`, from an answer to a question of `asked`. Returns `false`, and stores nothing,
    /// if a newer answer may be stored, or has to be read.
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

    /// Stores the endpoint of `tenant` as stale: its record has to be read again.
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

    /// Stores the reason for which `tenant` cannot be served, from an answer to a question of `asked`. Returns `false`
    /// as [`insert_known`](Self::insert_known) does.
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

    /// Notes that the record of `tenant` is invalid. A known and trusted tenant keeps being served, and its record is
    /// read again after a while.
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

    /// Notes that `tenant` has moved to an endpoint that cannot be used yet. The known endpoint is used only if no
    /// newer one can be read.
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
            // The denial no longer holds. The next flight reads the endpoint.
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

    /// Notes that the catalog no longer has a record of a known tenant. Returns its known endpoint, and whether the
    /// loss is news.
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

    /// Returns whether the last record of `tenant` forbade its use or was invalid.
    pub(crate) fn was_refused(&self, tenant: &TenantId) -> bool {
        let entry = self.recorded.get(tenant);
        matches!(entry, Some(Entry::Denied(it)) if it.denial.is_refusal())
    }

    /// Notes that the record of `tenant` may have changed: its entry is stale, and so is every answer under way.
    pub(crate) fn invalidate(&self, tenant: &TenantId) {
        self.invalidate_with(tenant, false);
    }

    /// Invalidates `tenant`, and notes that its endpoint may be wrong: it is used only if no newer one can be read.
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

    /// Returns whether no change of `tenant` was noted after `asked`. Rarely, a change of another tenant counts, too.
    pub(crate) fn is_unchanged_since(&self, tenant: &TenantId, asked: Stamp) -> bool {
        *self.stripe(tenant) <= asked && self.all_invalidated.load(SeqCst) <= asked.0
    }

    /// Notes that every record may have changed.
    pub(crate) fn invalidate_all(&self) {
        self.all_invalidated.store(self.stamp().0, SeqCst);
        self.unknown.invalidate_all();
    }

    /// Notes that this process has written a usable record of `tenant`, by a write that began at `began`. Answers from
    /// before it are no longer stored. Returns the stamp up to which the writer knows all changes, and whether the
    /// tenant's pool has to follow.
    pub(super) fn note_published(&self, tenant: &TenantId, began: Stamp) -> (Stamp, bool) {
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

    /// Notes that this process has written a record of `tenant` that must not be used, because of `denial`.
    pub(super) fn note_withdrawn(&self, tenant: &TenantId, began: Stamp, denial: Denial) -> Stamp {
        let mut invalidated = self.stripe(tenant);
        let written = self.note_written(&mut invalidated, began);
        self.store_denial(tenant, Some(0), denial);
        written
    }

    /// Returns the stamp up to which the writer knows all changes. A change that was noted since `began` may be later
    /// than the write; then the writer knows only the changes up to `began`.
    fn note_written(&self, invalidated: &mut Stamp, began: Stamp) -> Stamp {
        if *invalidated > began {
            return began;
        }
        *invalidated = self.stamp();
        *invalidated
    }

    /// Returns whether an answer to a question of `asked` is at least as new as every noted change.
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
        // An entry that was stored after `asked` may be older or newer than this answer. Only the generation can tell.
        self.entry(tenant)
            .is_none_or(|it| it.stored() < asked || it.generation() < generation)
    }

    fn next_expiry(&self) -> Instant {
        // Nine to eleven tenths of the TTL, so that entries that were stored together do not expire together.
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
