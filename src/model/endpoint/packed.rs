//! An endpoint as bytes, for the many that are known and not used.
//!
//! The bytes contain the password. Their owner wipes them.

use std::time::Duration;

use super::{DEFAULT_SUSPEND_WINDOW, Encryption, Endpoint, SessionReset};
use crate::model::secret::Secret;

/// Ends the first label of a pooler's name at Neon.
const POOLER: &str = "-pooler";

/// Bits of the byte with the flags. Two bits each for the reset, the pooled host and the suspend window.
const IS_NEON: u8 = 1;
const WITH_TLS: u8 = 1 << 1;
const RESET: u32 = 2;
const POOLED_HOST: u32 = 4;
const WINDOW: u32 = 6;
const MASK: u8 = 0b11;

/// Forms of the pooled host.
const SAME: u8 = 0;
const WITH_SUFFIX: u8 = 1;
const IN_FULL: u8 = 2;

/// Forms of the suspend window.
const NEVER: u8 = 0;
const ZERO: u8 = 1;
const USUAL: u8 = 2;
const WRITTEN: u8 = 3;

/// Returns the number of bytes that [`pack`] appends.
pub(crate) fn packed_len(endpoint: &Endpoint) -> usize {
    let mut len = 0;
    encode(endpoint, &mut |bytes| len += bytes.len());
    len
}

/// Appends `endpoint`. If `bytes` lacked the room, it would leave a copy of the password behind, unwiped.
pub(crate) fn pack(endpoint: &Endpoint, bytes: &mut Vec<u8>) {
    debug_assert!(bytes.capacity() - bytes.len() >= packed_len(endpoint));
    encode(endpoint, &mut |more| bytes.extend_from_slice(more));
}

/// Returns whether `bytes` are those of `endpoint`. Equal endpoints have equal bytes, and others have others.
pub(crate) fn is_packed_in(endpoint: &Endpoint, bytes: &[u8]) -> bool {
    let mut rest = Some(bytes);
    encode(endpoint, &mut |expected| {
        rest = rest.and_then(|rest| rest.strip_prefix(expected));
    });
    rest.is_some_and(<[u8]>::is_empty)
}

/// Passes the bytes of `endpoint` to `emit`, piece by piece.
fn encode(endpoint: &Endpoint, emit: &mut impl FnMut(&[u8])) {
    // Destructured, so that a new field does not compile before this function handles it.
    let Endpoint {
        direct_host,
        pooled_host,
        port,
        database,
        role,
        password,
        suspend_window,
        is_neon,
        encryption,
        max_connections,
        session_reset,
    } = endpoint;
    let host = match pooled_host {
        host if host == direct_host => SAME,
        host if is_pooler_of(host, direct_host) => WITH_SUFFIX,
        _ => IN_FULL,
    };
    let window = match *suspend_window {
        None => NEVER,
        Some(Duration::ZERO) => ZERO,
        Some(DEFAULT_SUSPEND_WINDOW) => USUAL,
        Some(_) => WRITTEN,
    };
    let reset = match session_reset {
        None => 0,
        Some(SessionReset::Never) => 1,
        Some(SessionReset::IfNeeded) => 2,
        Some(SessionReset::Always) => 3,
    };
    let flags = (u8::from(*is_neon) * IS_NEON)
        | (u8::from(*encryption == Encryption::Tls) * WITH_TLS)
        | (reset << RESET)
        | (host << POOLED_HOST)
        | (window << WINDOW);
    emit(&port.to_be_bytes());
    emit(&[flags]);
    number(max_connections.map_or(0, |most| most as u128 + 1), emit);
    if let (WRITTEN, Some(window)) = (window, suspend_window) {
        number(window.as_nanos(), emit);
    }
    text(direct_host, emit);
    if host == IN_FULL {
        text(pooled_host, emit);
    }
    for value in [database, role, password.expose()] {
        text(value, emit);
    }
}

/// Returns whether `pooled` is `direct` with the suffix of Neon's pooler at the end of its first label.
fn is_pooler_of(pooled: &str, direct: &str) -> bool {
    let (label, rest) = first_label(direct);
    let suffix = pooled.strip_prefix(label);
    suffix.and_then(|it| it.strip_prefix(POOLER)) == Some(rest)
}

fn first_label(host: &str) -> (&str, &str) {
    host.split_at(host.find('.').unwrap_or(host.len()))
}

fn text(value: &str, emit: &mut impl FnMut(&[u8])) {
    number(value.len() as u128, emit);
    emit(value.as_bytes());
}

/// Emits seven bits a byte, the lowest first, with the highest bit set in all but the last.
fn number(mut value: u128, emit: &mut impl FnMut(&[u8])) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return emit(&[low & 0x7f]);
        }
        emit(&[low | 0x80]);
    }
}

/// Returns the endpoint that was [packed](pack) in `bytes`.
///
/// # Panics
/// If `bytes` are not those of an endpoint.
pub(crate) fn unpack(bytes: &[u8]) -> Endpoint {
    let mut reader = Reader(bytes);
    let port = u16::from_be_bytes([reader.byte(), reader.byte()]);
    let flags = reader.byte();
    let max_connections = reader.number().checked_sub(1);
    let suspend_window = match (flags >> WINDOW) & MASK {
        NEVER => None,
        ZERO => Some(Duration::ZERO),
        USUAL => Some(DEFAULT_SUSPEND_WINDOW),
        _ => Some(duration(reader.number())),
    };
    let direct_host = reader.text().to_owned();
    let pooled_host = match (flags >> POOLED_HOST) & MASK {
        SAME => direct_host.clone(),
        WITH_SUFFIX => {
            let (label, rest) = first_label(&direct_host);
            [label, POOLER, rest].concat()
        }
        _ => reader.text().to_owned(),
    };
    Endpoint {
        direct_host,
        pooled_host,
        port,
        database: reader.text().to_owned(),
        role: reader.text().to_owned(),
        password: Secret::new(reader.text()),
        suspend_window,
        is_neon: flags & IS_NEON != 0,
        encryption: match flags & WITH_TLS {
            0 => Encryption::None,
            _ => Encryption::Tls,
        },
        max_connections: max_connections.map(size),
        session_reset: match (flags >> RESET) & MASK {
            0 => None,
            1 => Some(SessionReset::Never),
            2 => Some(SessionReset::IfNeeded),
            _ => Some(SessionReset::Always),
        },
    }
}

const NANOS: u128 = 1_000_000_000;

fn duration(nanos: u128) -> Duration {
    let second = u64::try_from(nanos / NANOS).expect("the seconds of a duration");
    let nano = u32::try_from(nanos % NANOS).expect("less than a second");
    Duration::new(second, nano)
}

fn size(value: u128) -> usize {
    usize::try_from(value).expect("a size of this machine")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u128 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u128::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }

    fn text(&mut self) -> &'a str {
        let len = size(self.number());
        std::str::from_utf8(self.take(len)).expect("the text that was packed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(endpoint: &Endpoint) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(packed_len(endpoint));
        let room = bytes.capacity();
        pack(endpoint, &mut bytes);
        assert_eq!((bytes.len(), bytes.capacity()), (room, room));
        bytes
    }

    fn any_text() -> String {
        const HOSTS: [&str; 7] = [
            "",
            "ep-a.neon.tech",
            "ep-a-pooler.neon.tech",
            "ep-a",
            "ep-a-pooler",
            "::1",
            "bücher",
        ];
        match fastrand::u8(..3) {
            0 => "é".repeat(fastrand::usize(..300)),
            _ => HOSTS[fastrand::usize(..HOSTS.len())].to_owned(),
        }
    }

    fn any_endpoint() -> Endpoint {
        let any = |of: &[Option<usize>]| of[fastrand::usize(..of.len())];
        let resets = [
            None,
            Some(SessionReset::Never),
            Some(SessionReset::IfNeeded),
            Some(SessionReset::Always),
        ];
        let windows = [
            None,
            Some(Duration::ZERO),
            Some(DEFAULT_SUSPEND_WINDOW),
            Some(Duration::MAX),
            Some(Duration::from_nanos(fastrand::u64(..))),
        ];
        Endpoint {
            direct_host: any_text(),
            pooled_host: any_text(),
            port: fastrand::u16(..),
            database: any_text(),
            role: any_text(),
            password: any_text().into(),
            suspend_window: windows[fastrand::usize(..windows.len())],
            is_neon: fastrand::bool(),
            encryption: [Encryption::Tls, Encryption::None][fastrand::usize(..2)],
            max_connections: any(&[None, Some(0), Some(7), Some(300), Some(usize::MAX)]),
            session_reset: resets[fastrand::usize(..resets.len())],
        }
    }

    #[test]
    fn what_was_packed_is_unpacked_and_equals_nothing_else() {
        fastrand::seed(18);
        let mut earlier = any_endpoint();
        for _ in 0..5000 {
            let endpoint = any_endpoint();
            let bytes = packed(&endpoint);
            assert_eq!(unpack(&bytes), endpoint);
            assert!(is_packed_in(&endpoint, &bytes));
            assert_eq!(is_packed_in(&earlier, &bytes), earlier == endpoint);
            let mut changed = endpoint.clone();
            changed.role.push('x');
            assert!(!is_packed_in(&changed, &bytes));
            assert!(!is_packed_in(&endpoint, &[&bytes[..], &[0]].concat()));
            earlier = endpoint;
        }
    }

    #[test]
    fn a_usual_endpoint_at_neon_costs_one_byte_a_field_more_than_its_text() {
        let endpoint = Endpoint::neon(
            "ep-cool-dew-a1b2c3d4.us-east-2.aws.neon.tech",
            "ep-cool-dew-a1b2c3d4-pooler.us-east-2.aws.neon.tech",
            "neondb",
            "neondb_owner",
            "npg_0123456789ab",
        );
        assert_eq!(packed(&endpoint).len(), 44 + 6 + 12 + 16 + 4 + 4);
    }
}
