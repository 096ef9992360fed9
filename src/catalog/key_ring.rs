//! Secrets sealed with a key that only the application has, so that they can be stored in a catalog that others read.
//!
//! A sealed secret is bound to its place. An attacker who can write to the catalog may move a sealed password to
//! another tenant, or change its host. The password then fails to open, and is not sent there.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    error::Unspecified,
    hmac,
};
use secrecy::{ExposeSecret, SecretBox};

use crate::model::{config::InvalidConfig, secret::Secret};

/// First byte of every sealed secret, so that a later release can add another format.
const FORMAT: u8 = 1;
/// Length of an AES-GCM nonce in bytes. With random nonces, one key may seal 2³² values.
const NONCE: usize = 12;
/// Length of a mark in bytes.
const MARK: usize = 16;
/// Label from which the key of the marks is derived, together with the key of the ring.
const MARKS: &[u8] = b"tenantry: marks of sealed values, 1";

/// The keys with which a catalog seals passwords. The newest key seals; every key opens.
///
/// Each key is 32 random bytes (`openssl rand -hex 32`), with an id that is stored in the clear beside each sealed
/// password. The cipher is AES-256-GCM. To change keys, give every replica the new key as the second one, then as the
/// first with the old one behind it. Then call [`Postgres::reseal`](crate::catalog::Postgres::reseal), and after that
/// remove the old key.
///
/// ```
/// use tenantry::KeyRing;
///
/// # let (new, old) = ([1; 32], [2; 32]);
/// let keys = KeyRing::new("2027", new).and("2026", old);
/// assert_eq!(format!("{keys:?}"), r#"KeyRing["2027", "2026"]"#);
/// ```
#[derive(Clone)]
pub struct KeyRing(Vec<Key>);

#[derive(Clone)]
struct Key {
    id: Arc<str>,
    bytes: Arc<SecretBox<[u8; 32]>>,
}

impl KeyRing {
    /// Longest id of a key, in bytes.
    pub const MAX_ID_LEN: usize = 64;

    /// Creates a ring of one key, which seals and opens. Ids are checked at the use of the ring: each is unique, and
    /// has 1 to 64 bytes without white space, colons, commas and control characters.
    pub fn new(id: impl Into<String>, key: [u8; 32]) -> Self {
        Self(vec![Key::new(id.into(), key)])
    }

    /// Adds an older key, which only opens.
    #[must_use]
    pub fn and(mut self, id: impl Into<String>, key: [u8; 32]) -> Self {
        self.0.push(Key::new(id.into(), key));
        self
    }

    /// Reads `id:key` pairs from text, such as an environment variable, with the newest key first. A key is 64
    /// hexadecimal digits; pairs are separated by white space or commas.
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let pairs = text.split(|c: char| c.is_whitespace() || c == ',');
        let keys = pairs
            .filter(|pair| !pair.is_empty())
            .map(Key::parse)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                InvalidConfig::new("a key is an id, a colon and 64 hexadecimal digits")
            })?;
        let ring = Self(keys);
        ring.check()?;
        Ok(ring)
    }

    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == ':' || c == ',';
        let bad = |id: &str| id.is_empty() || id.len() > Self::MAX_ID_LEN || id.contains(odd);
        let ids = || self.0.iter().map(|key| &*key.id);
        if self.0.is_empty() {
            return Err(InvalidConfig::new("a key ring needs a key"));
        }
        if ids().any(bad) {
            return Err(InvalidConfig::new(
                "the id of a key must have 1 to 64 bytes, and no white space, colon, comma or control character",
            ));
        }
        if ids()
            .enumerate()
            .any(|(at, id)| ids().skip(at + 1).any(|it| it == id))
        {
            return Err(InvalidConfig::new("two keys of the ring have the same id"));
        }
        if self
            .0
            .iter()
            .any(|key| key.bytes.expose_secret() == &[0; 32])
        {
            return Err(InvalidConfig::new(
                "a key of the ring is all zeros; make one with openssl rand -hex 32",
            ));
        }
        Ok(())
    }

    /// Returns the key that seals.
    fn newest(&self) -> Result<&Key, Unsealable> {
        self.0.first().ok_or(Unsealable::Broken)
    }

    pub(super) fn newest_id(&self) -> &str {
        self.0.first().map_or("", |key| &*key.id)
    }

    /// Seals `secret` so that it opens only in `place`.
    pub(super) fn seal(&self, secret: &Secret, place: &Binding) -> Result<Sealed, Unsealable> {
        let key = self.newest()?;
        let mut text = secret.expose().as_bytes().to_vec();
        let nonce = key
            .cipher()
            .and_then(|it| it.seal_in_place_append_tag(Aad::from(key.bound(place)), &mut text));
        let nonce = nonce.map_err(|Unspecified| Unsealable::Broken)?;
        let bytes = [&[FORMAT][..], nonce.as_ref(), &text].concat();
        let key_id = key.id.to_string();
        Ok(Sealed { key_id, bytes })
    }

    /// Opens a secret that was sealed for `place`.
    pub(crate) fn open(&self, sealed: &Sealed, place: &Binding) -> Result<Secret, Unsealable> {
        let key = self.0.iter().find(|key| *key.id == *sealed.key_id);
        let key = key.ok_or_else(|| Unsealable::UnknownKey(sealed.key_id.clone()))?;
        let (&format, rest) = sealed.bytes.split_first().ok_or(Unsealable::Broken)?;
        if format != FORMAT {
            return Err(Unsealable::UnknownFormat(format));
        }
        let (nonce, text) = rest.split_at_checked(NONCE).ok_or(Unsealable::Broken)?;
        let broken = |Unspecified| Unsealable::Broken;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(broken)?;
        let mut text = text.to_vec();
        let opened = key
            .cipher()
            .and_then(|it| {
                it.open_in_place(nonce, Aad::from(key.bound(place)), &mut text)
                    .map(|it| it.len())
            })
            .map_err(broken)?;
        text.truncate(opened);
        String::from_utf8(text)
            .map(Secret::new)
            .map_err(|_| Unsealable::Broken)
    }

    /// Returns one mark per key, the newest key's first. Equal marks mean that the same secret was sealed for the same
    /// place, which shows without opening it. A mark is useless without the key.
    pub(super) fn marks(&self, secret: &Secret, place: &Binding) -> Vec<(String, Vec<u8>)> {
        let mark = |key: &Key| {
            let bytes = key.bytes.expose_secret();
            let own = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), MARKS);
            let bound = key.bound(place);
            let mut mark =
                hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, own.as_ref()));
            mark.update(&bound);
            mark.update(secret.expose().as_bytes());
            (key.id.to_string(), mark.sign().as_ref()[..MARK].to_vec())
        };
        self.0.iter().map(mark).collect()
    }
}

impl Key {
    fn new(id: String, bytes: [u8; 32]) -> Self {
        Self {
            id: id.into(),
            bytes: Arc::new(SecretBox::new(Box::new(bytes))),
        }
    }

    fn parse(pair: &str) -> Option<Self> {
        let (id, digits) = pair.split_once(':')?;
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(16 * digit(0)? + digit(1)?).ok()?;
        }
        Some(Self::new(id.to_owned(), bytes))
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, Unspecified> {
        RandomizedNonceKey::new(&AES_256_GCM, self.bytes.expose_secret())
    }

    /// Returns the data that is authenticated besides the secret: the format, the key's id, the place.
    fn bound(&self, place: &Binding) -> Vec<u8> {
        let mut bound = vec![FORMAT];
        push(&mut bound, self.id.as_bytes());
        bound.extend_from_slice(&place.0);
        bound
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRing")?;
        f.debug_list()
            .entries(self.0.iter().map(|key| &key.id))
            .finish()
    }
}

/// The place that a sealed secret is bound to.
#[derive(Debug, Default)]
pub(crate) struct Binding(Vec<u8>);

impl Binding {
    /// Creates a place from several words; the length of each is kept, so that no two lists of words look the same.
    pub(super) fn new(words: &[&str]) -> Self {
        let mut place = Vec::new();
        for word in words {
            push(&mut place, word.as_bytes());
        }
        Self(place)
    }
}

fn push(to: &mut Vec<u8>, word: &[u8]) {
    to.extend_from_slice(&(word.len() as u64).to_be_bytes());
    to.extend_from_slice(word);
}

/// A sealed secret, and the id of its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Sealed {
    pub(super) key_id: String,
    pub(super) bytes: Vec<u8>,
}

/// The reason for which a sealed secret does not open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Unsealable {
    /// The ring has no key with this id.
    UnknownKey(String),
    /// A later version of the crate sealed the secret.
    UnknownFormat(u8),
    /// The sealed secret was changed, or belongs to another place or to another key with the same id.
    Broken,
}

impl fmt::Display for Unsealable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey(id) => write!(
                f,
                "it is sealed with the key {id:?}, which is not in the key ring; add that key"
            ),
            Self::UnknownFormat(format) => write!(
                f,
                "it is sealed in format {format}, which this version of tenantry does not know; upgrade"
            ),
            Self::Broken => f.write_str(
                "its seal is broken: it was changed, or sealed for another tenant, role or host, or with a different \
                 key of the same id",
            ),
        }
    }
}

impl std::error::Error for Unsealable {}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [&str; 3] = ["test", "acme", "ep-a-1.example.org"];

    fn ring() -> KeyRing {
        KeyRing::new("new", [7; 32])
    }

    fn secret() -> Secret {
        Secret::new("hunter2")
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_looks_different_each_time() {
        let (keys, here) = (ring(), Binding::new(&HERE));
        let (one, other) = (keys.seal(&secret(), &here), keys.seal(&secret(), &here));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_ne!(one.bytes, other.bytes);
        assert_eq!(keys.open(&one, &here), Ok(secret()));
        assert_eq!(keys.open(&other, &here), Ok(secret()));
        assert!(!one.bytes.windows(7).any(|part| part == b"hunter2"));
        let empty = keys.seal(&Secret::new(""), &here).unwrap();
        assert_eq!(keys.open(&empty, &here), Ok(Secret::new("")));
    }

    #[test]
    fn what_is_sealed_does_not_open_anywhere_else() {
        let keys = ring();
        let sealed = keys.seal(&secret(), &Binding::new(&HERE)).unwrap();
        let elsewhere: [&[&str]; 6] = [
            &["prod", "acme", "ep-a-1.example.org"],
            &["test", "acm", "eep-a-1.example.org"],
            &["test", "Acme", "ep-a-1.example.org"],
            &["test", "acme", "ep-a-1.example.com"],
            &["testacme", "ep-a-1.example.org"],
            &[],
        ];
        for place in elsewhere {
            assert_eq!(
                keys.open(&sealed, &Binding::new(place)),
                Err(Unsealable::Broken),
                "{place:?}"
            );
        }
    }

    #[test]
    fn older_keys_open_and_the_newest_seals() {
        let here = Binding::new(&HERE);
        let old = ring().seal(&secret(), &here).unwrap();
        let keys = KeyRing::new("newer", [8; 32]).and("new", [7; 32]);
        assert_eq!(keys.open(&old, &here), Ok(secret()));
        assert_eq!(keys.seal(&secret(), &here).unwrap().key_id, "newer");
    }

    #[test]
    fn the_wrong_key_and_whatever_was_changed_is_refused() {
        let here = Binding::new(&HERE);
        let sealed = ring().seal(&secret(), &here).unwrap();
        let stranger = KeyRing::new("other", [7; 32]);
        assert_eq!(
            stranger.open(&sealed, &here),
            Err(Unsealable::UnknownKey("new".into()))
        );
        let renamed = Sealed {
            key_id: "other".into(),
            ..sealed.clone()
        };
        assert_eq!(
            stranger.open(&renamed, &here),
            Err(Unsealable::Broken),
            "the id is bound, too"
        );
        let namesake = KeyRing::new("new", [9; 32]);
        assert_eq!(namesake.open(&sealed, &here), Err(Unsealable::Broken));
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert!(ring().open(&changed, &here).is_err(), "byte {at}");
        }
        for len in 0..sealed.bytes.len() {
            let mut cut = sealed.clone();
            cut.bytes.truncate(len);
            assert_eq!(
                ring().open(&cut, &here),
                Err(Unsealable::Broken),
                "{len} bytes"
            );
        }
        let mut later = sealed;
        later.bytes[0] = 2;
        assert_eq!(
            ring().open(&later, &here),
            Err(Unsealable::UnknownFormat(2))
        );
    }

    #[test]
    fn a_mark_is_the_same_for_the_same_secret_in_the_same_place_only() {
        let here = Binding::new(&HERE);
        let mark = ring().marks(&secret(), &here);
        assert_eq!(mark, ring().marks(&secret(), &here));
        assert_ne!(mark, ring().marks(&Secret::new("hunter3"), &here));
        assert_ne!(mark, ring().marks(&secret(), &Binding::new(&["test"])));
        assert_ne!(mark, KeyRing::new("new", [8; 32]).marks(&secret(), &here));
        let both = KeyRing::new("newer", [8; 32])
            .and("new", [7; 32])
            .marks(&secret(), &here);
        assert_eq!(both[1], mark[0]);
    }

    #[test]
    fn a_ring_that_cannot_be_meant_is_refused() {
        assert_eq!(ring().and("old", [1; 32]).check(), Ok(()));
        for bad in ["", "a b", "a:b", "a\n", &"x".repeat(65)] {
            assert!(KeyRing::new(bad, [7; 32]).check().is_err(), "{bad:?}");
        }
        assert!(ring().and("new", [1; 32]).check().is_err());
        assert!(KeyRing::new("zeros", [0; 32]).check().is_err());
    }

    #[test]
    fn a_ring_is_read_from_text() {
        let digits = |digit: &str| digit.repeat(64);
        let text = format!(" b:{},a:{}\n", digits("2"), digits("1"));
        let keys = KeyRing::parse(&text).unwrap();
        assert_eq!(keys.newest_id(), "b");
        let here = Binding::new(&HERE);
        let old = KeyRing::new("a", [0x11; 32])
            .seal(&secret(), &here)
            .unwrap();
        assert_eq!(keys.open(&old, &here), Ok(secret()));
        for bad in [
            "",
            "a",
            "a:12",
            &format!("a:{}", digits("é")),
            &format!("a:{}", digits("g")),
        ] {
            let err = KeyRing::parse(bad).unwrap_err().to_string();
            assert!(!err.contains(&digits("g")), "{err}");
        }
        let short = format!("a:{}", "+f".repeat(32));
        assert!(KeyRing::parse(&short).is_err());
    }

    #[test]
    fn debug_shows_ids_only() {
        let printed = format!(
            "{:?}",
            KeyRing::new("id", *b"thirty-two bytes of a secret key").and("b", [1; 32])
        );
        assert_eq!(printed, r#"KeyRing["id", "b"]"#);
    }
}
