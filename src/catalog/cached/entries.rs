//! The cached entry of each tenant: the catalog's last answer, and how far it may be trusted.
//!
//! Entries become stale and stay, so that a known tenant keeps being served while the catalog is down. Stamps from one
//! counter order all events of the cache, and show late answers: if the tenant was
//! [invalidated](EntryCache::invalidate) after a question was asked, the answer is not stored.

mod entry;
mod kept;
mod shards;

use std::{
    mem,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::{
    model::{endpoint::Endpoint, error::Error, tenant::TenantId},
    schema::Standing,
    sync::retry::chance,
};

pub(crate) use entry::{Denial, Denied, Entry, Freshness, Known, Stamp};
use kept::{Kept, PackedKnown};
use shards::{Locked, Shards};

/// Time for which a denial is returned.
const DENIED_FOR: Duration = Duration::from_secs(10);
/// Most ids without a record that are cached. They come from outside, so any client can fill this cache.
const MAX_UNKNOWN: u64 = 10_000;

/// The entries of all tenants. Bounded; among the entries of a shard, the least recently used one is evicted first.
#[derive(Debug)]
pub(crate) struct EntryCache {
    /// Entries of tenants that have, or had, a record.
    recorded: Shards,
    /// Denials of ids that have none. Separate, so that made-up ids evict no tenant.
    unknown: Cache<TenantId, Denied>,
    /// `true` once `unknown` had an entry. Set and read under the lock of the tenant's shard. Until then, a preload
    /// need not search `unknown` for each tenant.
    has_unknown: AtomicBool,
    last_stamp: AtomicU64,
    /// Stamp of the last invalidation of all tenants.
    all_invalidated: AtomicU64,
    ttl: Duration,
}

impl EntryCache {
    pub(in crate::catalog) fn new(max_recorded: u64, ttl: Duration) -> Self {
        Self {
            recorded: Shards::new(max_recorded),
            unknown: Cache::builder()
                .max_capacity(MAX_UNKNOWN)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            has_unknown: AtomicBool::new(false),
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
        let recorded = self
            .recorded
            .lock(tenant)
            .entry()
            .map(|it| it.entry(self.recorded.began));
        recorded.or_else(|| self.unknown.get(tenant).map(Entry::Denied))
    }

    /// Returns whether there is an entry of `tenant`, however old.
    pub(crate) fn contains(&self, tenant: &TenantId) -> bool {
        self.recorded.lock(tenant).peek().is_some() || self.unknown.contains_key(tenant)
    }

    /// Returns the standing of `tenant`, if an endpoint of it is known.
    pub(crate) fn standing(&self, tenant: &TenantId) -> Option<Standing> {
        let mut locked = self.recorded.lock(tenant);
        let known = locked.known()?;
        Some(known.freshness(self.recorded.began).standing)
    }

    /// Returns whether an endpoint of `tenant` is known, however old.
    pub(crate) fn is_known(&self, tenant: &TenantId) -> bool {
        self.recorded.lock(tenant).known().is_some()
    }

    /// Returns whether the record of `tenant` should be read again.
    pub(crate) fn is_stale(&self, tenant: &TenantId) -> bool {
        match self.recorded.lock(tenant).entry() {
            Some(Kept::Known(known)) => self.is_expired(&known.freshness(self.recorded.began)),
            Some(Kept::Denied(kept)) => self.is_over(&kept.1),
            None => self.unknown.get(tenant).is_none_or(|it| self.is_over(&it)),
        }
    }

    /// Returns whether the entry of `tenant` is stale only because it is old: nothing says that it may be wrong.
    pub(super) fn is_only_old(&self, tenant: &TenantId) -> bool {
        let all_invalidated = self.all_invalidated.load(SeqCst);
        self.recorded.lock(tenant).known().is_some_and(|known| {
            let freshness = known.freshness(self.recorded.began);
            !freshness.is_untrusted && freshness.stored.0 >= all_invalidated
        })
    }

    fn is_over(&self, denied: &Denied) -> bool {
        Instant::now() >= denied.until || denied.stored.0 < self.all_invalidated.load(SeqCst)
    }

    /// Returns whether a known endpoint should be read again.
    pub(crate) fn is_expired(&self, known: &Freshness) -> bool {
        Instant::now() >= known.expires || known.stored.0 < self.all_invalidated.load(SeqCst)
    }

    /// Stores the endpoint of `tenant`, from an answer to a question put at `asked_at`. Returns `false`, and stores
    /// nothing, if a newer answer may be stored, or has to be read.
    pub(crate) fn insert_known(
        &self,
        tenant: &TenantId,
        asked_at: Stamp,
        generation: Option<u64>,
        endpoint: &Endpoint,
        standing: Standing,
    ) -> bool {
        let mut locked = self.recorded.lock(tenant);
        let is_newest = self.is_newest(&locked, tenant, asked_at, generation);
        if is_newest {
            let expires = self.next_expiry();
            self.store_known(
                &mut locked,
                tenant,
                (generation, standing),
                endpoint,
                expires,
            );
        }
        is_newest
    }

    /// Stores the endpoint of `tenant` as stale: its record has to be read again.
    pub(crate) fn insert_stale(&self, tenant: &TenantId, endpoint: &Endpoint, standing: Standing) {
        let mut locked = self.recorded.lock(tenant);
        let now = Instant::now();
        self.store_known(&mut locked, tenant, (None, standing), endpoint, now);
    }

    fn store_known(
        &self,
        locked: &mut Locked<'_>,
        tenant: &TenantId,
        (generation, standing): (Option<u64>, Standing),
        endpoint: &Endpoint,
        expires: Instant,
    ) {
        let freshness = Freshness {
            generation,
            stored: self.stamp(),
            expires,
            is_untrusted: false,
            is_missing: false,
            standing,
        };
        let began = self.recorded.began;
        if let Some(known) = locked.known().filter(|it| it.is_at(endpoint)) {
            return known.set_freshness(freshness, began);
        }
        let known = PackedKnown::new(tenant, endpoint, freshness, began);
        if self.has_unknown.load(Relaxed) {
            self.unknown.invalidate(tenant);
        }
        locked.store(Kept::Known(known));
    }

    /// Stores the reason for which `tenant` cannot be served, from an answer to a question put at `asked_at`. Returns
    /// `false` as [`insert_known`](Self::insert_known) does.
    pub(crate) fn insert_denial(
        &self,
        tenant: &TenantId,
        asked_at: Stamp,
        generation: Option<u64>,
        denial: Denial,
    ) -> bool {
        let mut locked = self.recorded.lock(tenant);
        let is_newest = self.is_newest(&locked, tenant, asked_at, generation);
        if is_newest {
            self.store_denial(&mut locked, tenant, generation, denial);
        }
        is_newest
    }

    fn store_denial(
        &self,
        locked: &mut Locked<'_>,
        tenant: &TenantId,
        generation: Option<u64>,
        denial: Denial,
    ) {
        let denied = Denied {
            denial,
            generation,
            stored: self.stamp(),
            until: Instant::now() + DENIED_FOR,
        };
        if matches!(denied.denial, Denial::Unknown(_)) {
            locked.remove();
            self.has_unknown.store(true, Relaxed);
            self.unknown.insert(tenant.clone(), denied);
        } else {
            let kept = Kept::Denied(Box::new((tenant.clone(), denied)));
            self.unknown.invalidate(tenant);
            locked.store(kept);
        }
    }

    /// Notes that the record of `tenant` is invalid. A known and trusted tenant keeps being served, and its record is
    /// read again after a while.
    pub(crate) fn insert_broken(&self, tenant: &TenantId, asked_at: Stamp, error: Error) -> bool {
        let mut locked = self.recorded.lock(tenant);
        if !self.is_newest(&locked, tenant, asked_at, Some(0)) {
            return false;
        }
        let is_trusted = |it: &PackedKnown| !it.freshness(self.recorded.began).is_untrusted;
        if locked.known().is_some_and(|it| is_trusted(it)) {
            locked.change_known(|known| self.postpone(known));
        } else {
            self.store_denial(&mut locked, tenant, Some(0), Denial::Broken(error));
        }
        true
    }

    /// Notes that `tenant` has moved to an endpoint that cannot be used yet. The known endpoint is used only if no
    /// newer one can be read.
    pub(crate) fn mark_moved(&self, tenant: &TenantId, asked_at: Stamp, generation: u64) -> bool {
        let mut locked = self.recorded.lock(tenant);
        if !self.is_newest(&locked, tenant, asked_at, Some(generation)) {
            return false;
        }
        let is_known = locked.change_known(|known| {
            known.is_untrusted = true;
            self.postpone(known);
        });
        if !is_known {
            // The denial no longer holds. The next flight reads the endpoint.
            locked.remove();
            self.unknown.invalidate(tenant);
        }
        true
    }

    fn postpone(&self, known: &mut Freshness) {
        known.expires = Instant::now() + DENIED_FOR;
        known.stored = self.stamp();
    }

    /// Notes that the catalog no longer has a record of a known tenant. Returns its known endpoint, and whether the
    /// loss is news.
    pub(crate) fn mark_missing(&self, tenant: &TenantId) -> Option<(Arc<Endpoint>, bool)> {
        let mut locked = self.recorded.lock(tenant);
        let mut is_news = false;
        locked.change_known(|known| {
            is_news = !mem::replace(&mut known.is_missing, true);
            (known.expires, known.is_untrusted) = (self.next_expiry(), false);
        });
        let endpoint = locked.known()?.endpoint();
        Some((Arc::new(endpoint), is_news))
    }

    /// Returns whether the last record of `tenant` forbade its use or was invalid.
    pub(crate) fn was_refused(&self, tenant: &TenantId) -> bool {
        let mut locked = self.recorded.lock(tenant);
        matches!(locked.entry(), Some(Kept::Denied(it)) if it.1.denial.is_refusal())
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
        let mut locked = self.recorded.lock(tenant);
        locked.set_invalidated(self.stamp());
        let is_known = locked.change_known(|known| {
            known.expires = Instant::now();
            known.is_untrusted |= is_wrong;
        });
        match locked.entry() {
            _ if is_known => {}
            Some(Kept::Denied(kept)) => kept.1.until = Instant::now(),
            _ => self.unknown.invalidate(tenant),
        }
    }

    /// Returns whether no change of `tenant` was noted after `asked_at`. Rarely, a change of another tenant counts,
    /// too.
    pub(crate) fn is_unchanged_since(&self, tenant: &TenantId, asked_at: Stamp) -> bool {
        self.recorded.lock(tenant).invalidated() <= asked_at
            && self.all_invalidated.load(SeqCst) <= asked_at.0
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
        let mut locked = self.recorded.lock(tenant);
        let written = self.note_written(&mut locked, began);
        let is_known = locked.change_known(|known| {
            known.expires = Instant::now();
        });
        if !is_known {
            locked.remove();
            self.unknown.invalidate(tenant);
        }
        (written, is_known)
    }

    /// Notes that this process has written a record of `tenant` that must not be used, because of `denial`.
    pub(super) fn note_withdrawn(&self, tenant: &TenantId, began: Stamp, denial: Denial) -> Stamp {
        let mut locked = self.recorded.lock(tenant);
        let written = self.note_written(&mut locked, began);
        self.store_denial(&mut locked, tenant, Some(0), denial);
        written
    }

    /// Returns the stamp up to which the writer knows all changes. A change that was noted since `began` may be later
    /// than the write; then the writer knows only the changes up to `began`.
    fn note_written(&self, locked: &mut Locked<'_>, began: Stamp) -> Stamp {
        if locked.invalidated() > began {
            return began;
        }
        let written = self.stamp();
        locked.set_invalidated(written);
        written
    }

    /// Returns whether an answer to a question put at `asked_at` is at least as new as every noted change.
    fn is_newest(
        &self,
        locked: &Locked<'_>,
        tenant: &TenantId,
        asked_at: Stamp,
        generation: Option<u64>,
    ) -> bool {
        let all_invalidated = Stamp(self.all_invalidated.load(SeqCst));
        if asked_at < locked.invalidated().max(all_invalidated) {
            return false;
        }
        let unknown = || {
            let denied = self
                .has_unknown
                .load(Relaxed)
                .then(|| self.unknown.get(tenant));
            denied.flatten().map(|it| (it.stored, it.generation))
        };
        // An entry that was stored after `asked_at` may be older or newer than this answer. Only the generation can
        // tell.
        locked
            .peek()
            .map(Kept::age)
            .or_else(unknown)
            .is_none_or(|(stored, present)| stored < asked_at || present < generation)
    }

    fn next_expiry(&self) -> Instant {
        // Nine to eleven tenths of the TTL, so that entries that were stored together do not expire together.
        let tenths = self.ttl / 10 * 9;
        Instant::now() + tenths + self.ttl / 5 * u32::from(chance()) / u32::from(u8::MAX)
    }
}

#[cfg(test)]
mod tests;
