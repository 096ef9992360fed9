//! The entry of a tenant with a record, as it is stored: in few bytes, as there may be a million of them.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, ExposeSecretMut, SecretSlice};
use tokio::time::Instant;

use super::entry::{Denied, Entry, Freshness, Known, Stamp};
use crate::{
    model::{
        endpoint::{Endpoint, packed},
        tenant::TenantId,
    },
    schema::Standing,
    sync::lru::Keyed,
};

/// The entry of a tenant with a record, and the tenant's id.
#[derive(Debug)]
pub(super) enum Kept {
    Known(PackedKnown),
    Denied(Box<(TenantId, Denied)>),
}

impl Kept {
    pub(super) fn entry(&self, began: Instant) -> Entry {
        match self {
            Self::Known(known) => Entry::Known(Known {
                endpoint: known.endpoint().into(),
                freshness: known.freshness(began),
            }),
            Self::Denied(kept) => Entry::Denied(kept.1.clone()),
        }
    }

    /// Returns the stamp at which the entry was stored, and the generation of the record.
    pub(super) fn age(&self) -> (Stamp, Option<u64>) {
        match self {
            Self::Known(known) => known.age(),
            Self::Denied(kept) => (kept.1.stored, kept.1.generation),
        }
    }
}

impl Keyed for Kept {
    fn key(&self) -> &[u8] {
        match self {
            Self::Known(known) => known.id(),
            Self::Denied(kept) => kept.0.as_str().as_bytes(),
        }
    }
}

const IS_UNTRUSTED: u8 = 1;
const IS_MISSING: u8 = 1 << 1;
const HAS_GENERATION: u8 = 1 << 2;
/// The standing is above these flags.
const STANDING_SHIFT: u32 = 3;

/// The places of what precedes the id.
const FLAGS: usize = 0;
const EXPIRES: usize = 1;
const STORED: usize = EXPIRES + 8;
const GENERATION: usize = STORED + 8;
const ID_LEN: usize = GENERATION + 8;
const ID: usize = ID_LEN + 2;

/// A known endpoint in one allocation: the freshness, the id, the endpoint. It is wiped when it is dropped.
pub(super) struct PackedKnown(SecretSlice<u8>);

impl PackedKnown {
    pub(super) fn new(
        tenant: &TenantId,
        endpoint: &Endpoint,
        freshness: Freshness,
        began: Instant,
    ) -> Self {
        let id = tenant.as_str().as_bytes();
        let len = u16::try_from(id.len()).expect("an id has at most 256 bytes");
        let mut bytes = Vec::with_capacity(ID + id.len() + packed::packed_len(endpoint));
        bytes.resize(ID_LEN, 0);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(id);
        packed::pack(endpoint, &mut bytes);
        let mut known = Self(bytes.into());
        known.set_freshness(freshness, began);
        known
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        packed::unpack(self.packed_endpoint())
    }

    pub(super) fn is_at(&self, endpoint: &Endpoint) -> bool {
        packed::is_packed_in(endpoint, self.packed_endpoint())
    }

    pub(super) fn freshness(&self, began: Instant) -> Freshness {
        let flags = self.bytes()[FLAGS];
        let (stored, generation) = self.age();
        Freshness {
            generation,
            stored,
            expires: began + Duration::from_nanos(self.number(EXPIRES)),
            is_untrusted: flags & IS_UNTRUSTED != 0,
            is_missing: flags & IS_MISSING != 0,
            standing: Standing::from_number(flags >> STANDING_SHIFT),
        }
    }

    /// Changes the freshness in place. `began` is the same instant for all entries of a cache.
    pub(super) fn set_freshness(&mut self, freshness: Freshness, began: Instant) {
        let Freshness {
            generation,
            stored,
            expires,
            is_untrusted,
            is_missing,
            standing,
        } = freshness;
        let expires = expires.duration_since(began).as_nanos();
        let flags = (u8::from(is_untrusted) * IS_UNTRUSTED)
            | (u8::from(is_missing) * IS_MISSING)
            | (u8::from(generation.is_some()) * HAS_GENERATION)
            | ((standing as u8) << STANDING_SHIFT);
        let bytes = self.0.expose_secret_mut();
        bytes[FLAGS] = flags;
        for (at, value) in [
            (EXPIRES, u64::try_from(expires).unwrap_or(u64::MAX)),
            (STORED, stored.0),
            (GENERATION, generation.unwrap_or_default()),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
    }

    fn age(&self) -> (Stamp, Option<u64>) {
        let has_generation = self.bytes()[FLAGS] & HAS_GENERATION != 0;
        let generation = has_generation.then(|| self.number(GENERATION));
        (Stamp(self.number(STORED)), generation)
    }

    pub(super) fn id(&self) -> &[u8] {
        let bytes = self.bytes();
        let len = u16::from_be_bytes([bytes[ID_LEN], bytes[ID_LEN + 1]]);
        &bytes[ID..ID + usize::from(len)]
    }

    fn packed_endpoint(&self) -> &[u8] {
        &self.bytes()[ID + self.id().len()..]
    }

    fn number(&self, at: usize) -> u64 {
        let eight = self.bytes()[at..].first_chunk().copied();
        u64::from_be_bytes(eight.unwrap_or_default())
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Shows nothing of the password.
impl fmt::Debug for PackedKnown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = String::from_utf8_lossy(self.id());
        f.debug_tuple("PackedKnown").field(&id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::zeroize::ZeroizeOnDrop;

    fn wiped_on_drop(_: &impl ZeroizeOnDrop) {}

    #[tokio::test(start_paused = true)]
    async fn a_known_endpoint_is_one_allocation_that_is_wiped_and_never_shown() {
        let began = Instant::now();
        let endpoint = Endpoint::postgres("localhost", "app", "role", "hunter2");
        let tenant = TenantId::parse(&"t".repeat(TenantId::MAX_LEN)).unwrap();
        let mut freshness = Freshness {
            generation: None,
            stored: Stamp(u64::MAX),
            expires: began,
            is_untrusted: true,
            is_missing: false,
            standing: Standing::Current,
        };
        let mut known = PackedKnown::new(&tenant, &endpoint, freshness, began);
        for generation in [None, Some(0), Some(u64::MAX)] {
            freshness.generation = generation;
            freshness.expires += Duration::from_nanos(1);
            freshness.is_missing = !freshness.is_missing;
            freshness.is_untrusted = !freshness.is_missing;
            freshness.standing = Standing::from_number(freshness.standing as u8 + 1);
            known.set_freshness(freshness, began);
            assert_eq!(known.freshness(began), freshness);
            assert_eq!(known.endpoint(), endpoint);
            assert_eq!(known.id(), tenant.as_str().as_bytes());
        }
        assert!(known.is_at(&endpoint) && !known.is_at(&endpoint.port(1)));
        wiped_on_drop(&known.0);
        let kept = Kept::Known(known);
        assert!(!format!("{kept:?}").contains("hunter2"), "{kept:?}");
        assert_eq!(size_of::<Kept>(), 16);
    }
}
