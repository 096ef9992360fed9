//! `SipHash` of a text in one piece.
//!
//! The standard library's hasher is made for input that comes in pieces, and takes twice as many instructions for a
//! short text. The hash has a random key, because ids come from outside.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
};

/// Builds hashers with one key, for maps whose keys are texts.
#[derive(Clone)]
pub(crate) struct TextHash {
    key: [u64; 2],
}

impl TextHash {
    /// Creates one with a random key.
    pub(crate) fn new() -> Self {
        let key = [0, 1].map(|half| RandomState::new().hash_one(half));
        Self { key }
    }
}

// As for the standard library's: a known key would let ids be chosen that collide.
impl fmt::Debug for TextHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextHash").finish_non_exhaustive()
    }
}

impl BuildHasher for TextHash {
    type Hasher = TextHasher;

    #[inline]
    fn build_hasher(&self) -> TextHasher {
        let (key, hash) = (self.key, 0);
        TextHasher { key, hash }
    }
}

/// Hashes one text.
pub(crate) struct TextHasher {
    key: [u64; 2],
    hash: u64,
}

impl Hasher for TextHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.hash, 0, "one text");
        self.hash = sip13(self.key, bytes);
    }

    /// Ignores the mark at the end of a text, which separates it from the next one.
    #[inline]
    fn write_u8(&mut self, _: u8) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

/// Returns `SipHash-1-3` of `bytes`, which the standard library has too.
#[inline]
fn sip13([first, second]: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = [
        first ^ 0x736f_6d65_7073_6575,
        second ^ 0x646f_7261_6e64_6f6d,
        first ^ 0x6c79_6765_6e65_7261,
        second ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        absorb(&mut state, u64::from_le_bytes(*word));
    }
    let rest = match bytes.last_chunk::<8>() {
        _ if rest.is_empty() => 0,
        Some(end) => u64::from_le_bytes(*end) >> (64 - 8 * rest.len()),
        None => rest
            .iter()
            .rfold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    absorb(&mut state, (bytes.len() as u64) << 56 | rest);
    state[2] ^= 0xff;
    for _ in 0..3 {
        mix(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline]
fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    mix(state);
    state[0] ^= word;
}

#[inline]
fn mix([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32).wrapping_add(*d);
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *d = d.rotate_left(21) ^ *a;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use super::*;

    #[test]
    fn it_is_the_hash_of_the_standard_library() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..=bytes.len() {
            let bytes = &bytes[..length];
            let mut standard = DefaultHasher::new(); // its key is zero
            standard.write(bytes);
            assert_eq!(sip13([0, 0], bytes), standard.finish(), "{length}");
        }
    }

    #[test]
    fn every_map_has_another_key() {
        let [one, other] = [TextHash::new(), TextHash::new()].map(|it| it.hash_one("acme"));
        assert_ne!(one, other);
        let hash = TextHash::new();
        assert_ne!(hash.hash_one("acme"), hash.hash_one("acmf"));
        assert_ne!(hash.key[0], hash.key[1]);
    }
}
