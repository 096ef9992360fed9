//! Host names: the host of a request, and the domain that has the tenants' subdomains.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, header::HOST, request::Parts};
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::unusable;
use crate::model::{config::InvalidConfig, error::Error};

/// Longest host name, in bytes.
const LONGEST_NAME: usize = 253;
/// Longest label of a host name, in bytes.
const LONGEST_LABEL: usize = 63;

/// Returns the host that the request is sent to, without its port, in lower case; `None` if it names none. HTTP/2 and
/// proxies send it in the target.
///
/// # Errors
/// Fails if it cannot be read as one host: header and target differ, there are several headers, or the host has bytes
/// that no host has.
pub(super) fn of(head: &Parts) -> Result<Option<String>, Error> {
    let in_header = of_header(&head.headers)?;
    let target = head.uri.authority();
    let in_target = target.and_then(|it| parse(it.as_str()).transpose());
    let in_target = in_target.transpose().map_err(|NoHost| no_host())?;
    match (in_target, in_header) {
        (Some(target), Some(header)) if target != header => Err(unusable(
            "the request's target and its Host header name different hosts",
        )),
        (target, header) => Ok(target.or(header)),
    }
}

fn of_header(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut values = headers.get_all(HOST).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(unusable("the request has several Host headers"));
    }
    let text = value.to_str().map_err(|_| no_host())?;
    parse(text).map_err(|NoHost| no_host())
}

fn no_host() -> Error {
    unusable("the request's host is neither a host name nor an IP address")
}

/// The error for a text that is not a host with or without a port.
struct NoHost;

/// Reads a host with or without a port, and returns it without; `None` if the text is empty.
fn parse(text: &str) -> Result<Option<String>, NoHost> {
    if text.is_empty() {
        return Ok(None);
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(NoHost)?;
        let address: Ipv6Addr = address.parse().map_err(|_| NoHost)?;
        let port = match rest {
            "" => "",
            rest => rest.strip_prefix(':').ok_or(NoHost)?,
        };
        (format!("[{address}]"), port)
    } else {
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        let name = name.strip_suffix('.').unwrap_or(name);
        if !is_name(name) {
            return Err(NoHost);
        }
        (name.to_ascii_lowercase(), port)
    };
    let is_port = port.bytes().all(|it| it.is_ascii_digit());
    let fits = port.is_empty() || port.parse::<u16>().is_ok();
    if is_port && fits {
        Ok(Some(host))
    } else {
        Err(NoHost)
    }
}

/// Returns whether the text can be the name of a host, also in a private network, where names may have `_`.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        let is_known = bytes.all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_');
        (1..=LONGEST_LABEL).contains(&label.len()) && is_known
    };
    text.len() <= LONGEST_NAME && text.split('.').all(is_label)
}

/// Returns whether `label`, in lower case, is one label of a host name (RFC 1123), or of an internationalized one in
/// its ASCII form (`xn--…`).
pub(super) fn is_label(label: &str) -> bool {
    !label.contains('.') && to_ascii(label).is_some_and(|it| it == label)
}

/// Returns a host name in its ASCII form; `None` if it is not a host name.
fn to_ascii(name: &str) -> Option<String> {
    let (hyphens, length) = (Hyphens::CheckFirstLast, DnsLength::Verify);
    let ascii = Uts46::new().to_ascii(name.as_bytes(), AsciiDenyList::STD3, hyphens, length);
    ascii.ok().map(std::borrow::Cow::into_owned)
}

/// Returns the suffix of the tenants' hosts below `domain`: `.example.com`. A dot before or after `domain` is removed,
/// and an internationalized name is converted to its ASCII form, as browsers send it.
///
/// # Errors
/// Fails if no host can be below it.
pub(super) fn suffix(domain: &str) -> Result<String, InvalidConfig> {
    let refuse = |why: &str| {
        Err(InvalidConfig::new(format!(
            "subdomain_of({domain:?}): {why}; write the domain alone, such as \"example.com\""
        )))
    };
    let name = domain.strip_prefix('.').unwrap_or(domain);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.contains('/') {
        return refuse("a domain has no scheme and no path");
    }
    if domain.parse::<IpAddr>().is_ok() || name.starts_with('[') {
        return refuse("an IP address has no subdomains");
    }
    if name.contains(':') {
        return refuse("a domain has no port, and the ports of hosts are ignored");
    }
    if name.contains('*') {
        return refuse("a domain has no wildcard; each label below the domain is one tenant");
    }
    match to_ascii(name) {
        // A label of one letter, a dot, and the domain must fit.
        Some(name) if name.len() + 2 <= LONGEST_NAME => Ok(format!(".{name}")),
        _ => refuse("this is not a host name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_below_which_no_host_can_be_is_refused_with_what_to_write() {
        let long = format!("{}.com", ["a"; 125].join("."));
        for (domain, says) in [
            ("", "not a host name"),
            (".", "not a host name"),
            ("example..com", "not a host name"),
            ("..example.com", "not a host name"),
            ("exa mple.com", "not a host name"),
            ("example.com\n", "not a host name"),
            ("my_net.example", "not a host name"),
            ("xn--a.example", "not a host name"),
            (&long, "not a host name"),
            ("example.com:8080", "no port"),
            ("https://example.com", "no scheme"),
            ("example.com/t", "no path"),
            ("*.example.com", "no wildcard"),
            ("127.0.0.1", "IP address"),
            ("::1", "IP address"),
            ("[::1]", "IP address"),
        ] {
            let err = suffix(domain).unwrap_err().to_string();
            assert!(err.contains(says), "{err}");
            assert!(err.contains("write the domain alone"), "{err}");
        }
    }

    #[test]
    fn a_label_is_one_of_a_host_name_in_ascii() {
        let longest = "a".repeat(63);
        for label in [
            "acme",
            "a",
            "4711",
            "a-b",
            "my--app",
            "xn--bcher-kva",
            &longest,
        ] {
            assert!(is_label(label), "{label}");
        }
        let too_long = "a".repeat(64);
        for label in [
            "", "a.b", "-a", "a-", "a_b", "a b", "*", "a%2e", "bob@acme", "Acme", "bücher",
            "xn--a", "xn--", &too_long,
        ] {
            assert!(!is_label(label), "{label}");
        }
    }
}
