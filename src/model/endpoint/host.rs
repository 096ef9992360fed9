//! The check of an endpoint's host.

use std::net::Ipv6Addr;

use rustls::pki_types::ServerName;

/// Returns `host` without the brackets that an IPv6 address has in a URL.
pub(super) fn bare(host: &str) -> &str {
    let inside = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inside.filter(|it| is_ipv6(it)).unwrap_or(host)
}

/// Returns the reason why `host` cannot be reached and what to change, or `None` if it may be reachable. The text does
/// not repeat `host`, because a URL holds a password.
pub(super) fn fault(host: &str, needs_certificate: bool) -> Option<&'static str> {
    let host = bare(host);
    if host.is_empty() {
        return Some("is empty; give a host name or an address");
    }
    if host.starts_with(['/', '@']) {
        return Some(
            "is the path of a socket, but tenantry connects by TCP; give a host name or an address",
        );
    }
    if host.contains("://") || host.contains('=') {
        return Some(
            "is a connection string; give only its host here, and its port, database, role and password in their own \
             fields",
        );
    }
    if host.contains(|it: char| it.is_whitespace() || it.is_control()) {
        return Some("contains a space, a line break or a control character; remove it");
    }
    if host.contains(':') && !is_ipv6(host) {
        return Some("contains a port; give the port in its own field");
    }
    let is_name = || ServerName::try_from(host).is_ok();
    (needs_certificate && !is_name())
        .then_some("is not a valid host name; give a host name or an address")
}

/// Returns whether `host` is an IPv6 address, maybe with a zone.
fn is_ipv6(host: &str) -> bool {
    let address = host.split_once('%').map_or(host, |(address, _)| address);
    address.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_is_told_by_what_it_is() {
        for (host, said) in [
            ("", "empty"),
            ("[]", "not a valid"),
            ("/run/postgresql", "socket"),
            ("@abstract", "socket"),
            (
                "postgres://app:hunter2@db.example.org/app",
                "connection string",
            ),
            ("host=db.example.org user=app", "connection string"),
            ("db.example.org\n", "line break"),
            (" db.example.org", "space"),
            ("db.example.org:5432", "port"),
            ("10.0.0.1:5432", "port"),
            ("[::1]:5432", "port"),
            ("db.example.org/app", "not a valid"),
            ("app@db.example.org", "not a valid"),
            ("a.example.org,b.example.org", "not a valid"),
            ("bücher.example.org", "not a valid"),
            ("fe80::1%eth0", "not a valid"),
        ] {
            let fault = fault(host, true).unwrap_or_else(|| panic!("{host:?} passes"));
            assert!(fault.contains(said), "{host:?} {fault}");
            assert!(!fault.contains("hunter2"));
        }
    }

    #[test]
    fn names_and_addresses_pass() {
        for host in [
            "localhost",
            "db",
            "db_1.example.org",
            "db.example.org.",
            "ep-cool-dew-1-pooler.us-east-2.aws.neon.tech",
            "10.0.0.1",
            "::1",
            "[::1]",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(fault(host, true), None, "{host}");
        }
        assert_eq!(
            fault("fe80::1%eth0", false),
            None,
            "where no name is proved"
        );
    }

    #[test]
    fn brackets_are_taken_off_an_address_only() {
        assert_eq!(bare("[::1]"), "::1");
        assert_eq!(bare("[fe80::1%eth0]"), "fe80::1%eth0");
        assert_eq!(bare("::1"), "::1");
        assert_eq!(bare("[db]"), "[db]");
        assert_eq!(bare("[::1]:5432"), "[::1]:5432");
    }
}
