//! The entries of tenants with a record: bounded, in shards with a lock and an order of use each.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use tokio::time::Instant;

use super::{
    entry::{Freshness, Stamp},
    kept::{Kept, PackedKnown},
};
use crate::{
    model::tenant::TenantId,
    sync::{lock, lru::Lru},
};

/// Number of stripes. The tenants of a stripe share the stamp of their last invalidation, so that the invalidation of
/// one rarely causes another to be read once more.
const STRIPES: usize = 1024;
/// About as many entries share a lock, and one order of use.
const ENTRIES_PER_SHARD: u64 = 1000;

/// The entries of tenants with a record. Among the entries of a shard, the least recently used one is evicted first.
#[derive(Debug)]
pub(super) struct Shards {
    // Each is locked for one operation on the entry of one tenant.
    locks: Box<[Mutex<Lru<Kept>>]>,
    /// Number of entries in all shards.
    len: AtomicU64,
    max: u64,
    /// Stamp of the last invalidation in each stripe. Read and changed under the lock of the tenant's shard.
    invalidated: Box<[AtomicU64]>,
    hasher: RandomState,
    /// Start of the time in the entries.
    pub(super) began: Instant,
}

/// The shard of a tenant, locked.
pub(super) struct Locked<'a> {
    shard: MutexGuard<'a, Lru<Kept>>,
    key: &'a [u8],
    stripe: usize,
    shards: &'a Shards,
}

impl Shards {
    pub(super) fn new(max: u64) -> Self {
        let shards = usize::try_from(max / ENTRIES_PER_SHARD).unwrap_or(STRIPES);
        let shards = shards.clamp(1, STRIPES).next_power_of_two();
        let hasher = RandomState::new();
        let shard = |_| Mutex::new(Lru::new(hasher.clone()));
        Self {
            locks: (0..shards).map(shard).collect(),
            len: AtomicU64::new(0),
            max,
            invalidated: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            hasher,
            began: Instant::now(),
        }
    }

    pub(super) fn lock<'a>(&'a self, tenant: &'a TenantId) -> Locked<'a> {
        let key = tenant.as_str().as_bytes();
        // Bits that choose no place in the table of a shard.
        let [_, _, high, low, ..] = self.hasher.hash_one(key).to_be_bytes();
        let stripe = usize::from(u16::from_be_bytes([high, low])) % STRIPES;
        Locked {
            shard: lock(&self.locks[stripe % self.locks.len()]),
            key,
            stripe,
            shards: self,
        }
    }

    /// Returns the number of shards, the number of entries in them, and the number that is counted.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, u64) {
        let len = self.locks.iter().map(|shard| lock(shard).len()).sum();
        (self.locks.len(), len, self.len.load(Relaxed))
    }
}

impl Locked<'_> {
    /// Returns the entry of the tenant, which is the one used last then.
    pub(super) fn entry(&mut self) -> Option<&mut Kept> {
        self.shard.get(self.key)
    }

    /// Returns the entry of the tenant, which is not used by that.
    pub(super) fn peek(&self) -> Option<&Kept> {
        self.shard.peek(self.key)
    }

    /// Returns the known endpoint of the tenant.
    pub(super) fn known(&mut self) -> Option<&mut PackedKnown> {
        match self.entry()? {
            Kept::Known(known) => Some(known),
            Kept::Denied(_) => None,
        }
    }

    /// Changes the freshness of the known endpoint. Returns `false` if none is known.
    pub(super) fn change_known(&mut self, change: impl FnOnce(&mut Freshness)) -> bool {
        let began = self.shards.began;
        let Some(known) = self.known() else {
            return false;
        };
        let mut freshness = known.freshness(began);
        change(&mut freshness);
        known.set_freshness(freshness, began);
        true
    }

    /// Stores the entry of the tenant. If there are too many, the oldest one in its shard goes.
    pub(super) fn store(&mut self, kept: Kept) {
        let is_new = self.shard.insert(kept).is_none();
        if is_new && self.shards.len.fetch_add(1, Relaxed) >= self.shards.max {
            self.shard.pop_oldest();
            self.shards.len.fetch_sub(1, Relaxed);
        }
    }

    /// Removes the entry of the tenant.
    pub(super) fn remove(&mut self) {
        if self.shard.remove(self.key).is_some() {
            self.shards.len.fetch_sub(1, Relaxed);
        }
    }

    /// Returns the stamp of the last invalidation of the tenant, or of another one in its stripe.
    pub(super) fn invalidated(&self) -> Stamp {
        Stamp(self.shards.invalidated[self.stripe].load(SeqCst))
    }

    pub(super) fn set_invalidated(&mut self, stamp: Stamp) {
        self.shards.invalidated[self.stripe].store(stamp.0, SeqCst);
    }
}
