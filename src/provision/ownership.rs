//! Identification of a tenant's database: by its name, and by the tags written on it.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::model::tenant::{Namespace, TenantId};

/// Tag that holds the namespace.
const NAMESPACE_TAG: &str = "tenantry-namespace";
/// Tag that holds the tenant's id, byte for byte.
const TENANT_TAG: &str = "tenantry-tenant";
/// Tag that holds the id of the attempt that created the database.
const ATTEMPT_TAG: &str = "tenantry-attempt";

pub(crate) type Tags = BTreeMap<String, String>;

/// Returns the tags of the database that an attempt creates.
pub(super) fn tags(namespace: &Namespace, tenant: &TenantId, attempt: &str) -> Tags {
    [
        (NAMESPACE_TAG, namespace.as_str()),
        (TENANT_TAG, tenant.as_str()),
        (ATTEMPT_TAG, attempt),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Returns the namespace and the tenant in the tags, byte for byte.
pub(crate) fn owner(tags: &Tags) -> Option<(&str, &str)> {
    Some((tags.get(NAMESPACE_TAG)?, tags.get(TENANT_TAG)?))
}

/// Returns the id of the attempt that created the database, if the tags have it.
pub(crate) fn attempt(tags: &Tags) -> Option<&str> {
    tags.get(ATTEMPT_TAG).map(String::as_str)
}

/// Returns the prefix of the names of all databases of a namespace. A namespace with a longer name may share it.
pub(crate) fn prefix(namespace: &Namespace) -> String {
    format!("{namespace}-")
}

/// Returns the name of a tenant's database. It begins with a readable part, and a hash of namespace and raw id (128
/// bits kept) makes it unique.
pub(crate) fn name(namespace: &Namespace, tenant: &TenantId) -> String {
    let mut hash = Sha256::new();
    // The length keeps ("a", "bc") and ("ab", "c") apart.
    hash.update((namespace.as_str().len() as u64).to_be_bytes());
    hash.update(namespace.as_str());
    hash.update(tenant.as_str());
    let digest = hash.finalize();
    let kept = u128::from_be_bytes(std::array::from_fn(|place| digest[place]));
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let readable: String = tenant.as_str().chars().take(40).map(plain).collect();
    format!("{}{readable}-{kept:032x}", prefix(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn named(namespace: &str, tenant: &str) -> String {
        name(
            &Namespace::parse(namespace).unwrap(),
            &TenantId::parse(tenant).unwrap(),
        )
    }

    #[test]
    fn different_ids_and_namespaces_never_share_a_name() {
        let long = "x".repeat(255);
        let ids = [
            "acme",
            "ACME",
            "Acme",
            "ac me",
            "ac-me",
            "ac_me",
            "ac.me",
            "acme-",
            "-acme",
            "\u{e9}",
            "e\u{301}",
            "..",
            "%",
            "'",
            &format!("{long}1"),
            &format!("{long}2"),
        ];
        let mut names: HashSet<_> = ids.iter().map(|id| named("prod", id)).collect();
        names.extend(ids.iter().map(|id| named("test", id))); // a namespace of the same length
        names.extend([named("a", "bc"), named("ab", "c"), named("prod-a", "cme")]);
        assert_eq!(names.len(), 2 * ids.len() + 3);
        let hashes: HashSet<_> = names.iter().map(|name| &name[name.len() - 32..]).collect();
        assert_eq!(hashes.len(), names.len(), "the hash alone keeps them apart");
    }

    #[test]
    fn a_name_is_stable_and_fits_neon() {
        // Changing this string orphans every project ever created.
        assert_eq!(
            named("prod", "Acme, Inc."),
            "prod-acme--inc--d3eca8fd8dde6511af9e32e779dbf511"
        );
        assert!(named(&"n".repeat(32), &"x".repeat(256)).len() <= 256);
    }
}
