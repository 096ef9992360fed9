//! Tenant ids, and the namespace that keeps environments apart.
//!
//! Both are parsed once, at the edge. After that every function trusts the type.

use std::{borrow::Borrow, fmt, sync::Arc};

use super::chain;

/// A tenant's id, valid by construction: 1 to 256 bytes without NUL.
///
/// Ids are compared byte for byte. `Acme` and `acme`, or the composed and the decomposed form of `é`, are different
/// tenants and never share a database.
///
/// ```
/// use tenantry::TenantId;
///
/// let tenant: TenantId = "acme".parse()?;
/// assert_eq!(tenant.as_str(), "acme");
/// assert!("".parse::<TenantId>().is_err());
/// # Ok::<_, tenantry::InvalidTenantId>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Length of the longest id, in bytes.
    pub const MAX_LEN: usize = 256;

    /// Parses an id of 1 to 256 bytes without NUL.
    pub fn parse(raw: &str) -> Result<Self, InvalidTenantId> {
        if raw.is_empty() || raw.len() > Self::MAX_LEN || raw.contains('\0') {
            return Err(InvalidTenantId(()));
        }
        Ok(Self(raw.into()))
    }

    /// Returns the id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TenantId {
    type Err = InvalidTenantId;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Self::parse(raw)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for TenantId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Allows cache lookups by a borrowed `&str`, without an allocation.
impl Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The error for text that is not a tenant id: ids have 1 to 256 bytes and no NUL.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct InvalidTenantId(());

impl fmt::Display for InvalidTenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a tenant id has 1 to {} bytes and no NUL",
            TenantId::MAX_LEN
        )
    }
}

/// Writes the text of `Display`, because `main` prints a returned error through `Debug`.
impl fmt::Debug for InvalidTenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chain::write(f, self)
    }
}

impl std::error::Error for InvalidTenantId {}

/// A namespace of tenant ids. It keeps environments apart: `staging` and `production` may have the same tenant ids, and
/// never share a database.
///
/// A namespace has 1 to 32 bytes of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Length of the longest namespace, in bytes.
    pub const MAX_LEN: usize = 32;

    /// Parses a namespace of 1 to 32 bytes of `a-z`, `0-9` and `-`.
    pub fn parse(raw: &str) -> Result<Self, InvalidNamespace> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if raw.is_empty() || raw.len() > Self::MAX_LEN || !raw.bytes().all(plain) {
            return Err(InvalidNamespace(()));
        }
        Ok(Self(raw.into()))
    }

    /// Returns the namespace as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Namespace {
    type Err = InvalidNamespace;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Self::parse(raw)
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error for text that is not a namespace: namespaces have 1 to 32 bytes of `a-z`, `0-9` and `-`.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct InvalidNamespace(());

impl fmt::Display for InvalidNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a namespace has 1 to {} bytes of a-z, 0-9 and -",
            Namespace::MAX_LEN
        )
    }
}

/// Writes the text of `Display`, because `main` prints a returned error through `Debug`.
impl fmt::Debug for InvalidNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chain::write(f, self)
    }
}

impl std::error::Error for InvalidNamespace {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_to_256_bytes_without_nul() {
        for good in [
            "a",
            "ACME",
            "../../etc",
            "'; drop table--",
            "e\u{301}",
            &"x".repeat(256),
        ] {
            assert_eq!(
                TenantId::parse(good).map(|id| id.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in ["", "a\0b", &"x".repeat(257)] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_are_plain_words() {
        assert!(Namespace::parse("prod-eu-1").is_ok());
        for bad in ["", "Prod", "a b", "a_b", &"x".repeat(33)] {
            assert!(Namespace::parse(bad).is_err(), "{bad:?}");
        }
    }
}
