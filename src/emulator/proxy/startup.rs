//! The first packets of a client, and the proxy's answers to them before it reaches a server.

use std::{collections::BTreeMap, io};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::message::Message;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// Longest startup packet that Postgres accepts, in bytes.
const LONGEST: usize = 10_000;

/// The first packet of a client.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::emulator) enum Hello {
    /// A request for TLS.
    Ssl,
    /// A request for GSS encryption, which Neon does not support.
    Gss,
    /// A request to cancel the query of another connection: its process id and secret key.
    Cancel(BackendKey),
    /// A login: the minor version of the protocol, and the parameters.
    Startup(u16, BTreeMap<String, String>),
}

/// The process id and secret key of a connection, as in BackendKeyData.
pub(in crate::emulator) type BackendKey = [u8; 8];

impl Hello {
    pub(in crate::emulator) async fn read(
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Self> {
        let length = stream.read_u32().await? as usize;
        if !(8..=LONGEST).contains(&length) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a startup packet",
            ));
        }
        let mut packet = vec![0; length - 4];
        stream.read_exact(&mut packet).await?;
        let (code, body) = packet.split_at(4);
        match (
            u32::from_be_bytes([code[0], code[1], code[2], code[3]]),
            body,
        ) {
            (SSL, _) => Ok(Self::Ssl),
            (GSS, _) => Ok(Self::Gss),
            (CANCEL, key) => key
                .try_into()
                .map(Self::Cancel)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a cancel request")),
            (_, body) => Ok(Self::Startup(
                u16::from_be_bytes([code[2], code[3]]),
                parameters(body),
            )),
        }
    }
}

fn parameters(body: &[u8]) -> BTreeMap<String, String> {
    let mut words = body
        .split(|&byte| byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned());
    let mut found = BTreeMap::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name.is_empty() {
            break;
        }
        found.insert(name, value);
    }
    found
}

/// Returns the answer to a client that asks for a newer protocol, or for parts of it that Neon does not know: the
/// client gets 3.0. Returns `None` if the client asks for neither.
pub(in crate::emulator) fn negotiation(
    minor: u16,
    parameters: &BTreeMap<String, String>,
) -> Option<Message> {
    let unknown: Vec<_> = parameters
        .keys()
        .filter(|name| name.starts_with("_pq_."))
        .collect();
    if minor == 0 && unknown.is_empty() {
        return None;
    }
    let count = u32::try_from(unknown.len()).unwrap_or(0);
    let mut body = [0_u32.to_be_bytes(), count.to_be_bytes()].concat();
    for name in unknown {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    Some(Message::new(b'v', &body))
}

/// Returns the startup packet for Postgres. Neon passes on only the parameters that it knows, and drops all others,
/// unless an option asks it not to.
pub(in crate::emulator) fn forwarded(parameters: &BTreeMap<String, String>) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    let mut put = |name: &str, value: &str| {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    };
    let options = parameters.get("options").map_or("", String::as_str);
    let all = options
        .split_ascii_whitespace()
        .any(|word| word == "neon_proxy_params_compat:true");
    for (name, value) in parameters {
        let known =
            ["user", "database", "application_name", "replication"].contains(&name.as_str());
        let own =
            ["options", "client_encoding"].contains(&name.as_str()) || name.starts_with("_pq_.");
        if known || (all && !own) {
            put(name, value);
        }
    }
    let own: Vec<_> = own_options(options).collect();
    if !own.is_empty() {
        put("options", &own.join(" "));
    }
    put("client_encoding", "UTF8");
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

/// Returns the endpoint that `options=endpoint=…` (or `project=…`) names.
pub(in crate::emulator) fn endpoint_option(parameters: &BTreeMap<String, String>) -> Option<&str> {
    let words = parameters.get("options")?.split_ascii_whitespace();
    words.into_iter().find_map(|word| {
        word.strip_prefix("endpoint=")
            .or_else(|| word.strip_prefix("project="))
    })
}

/// Returns the options that are for Postgres and not for the proxy.
fn own_options(options: &str) -> impl Iterator<Item = &str> {
    let for_proxy = |word: &&str| {
        ["endpoint=", "project=", "neon_"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    };
    options
        .split_ascii_whitespace()
        .filter(move |word| !for_proxy(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_parameters_are_passed_on() {
        let given = parameters(
            b"user\0u\0database\0d\0statement_timeout\x001\0options\0endpoint=ep-a -c geqo=off\0\0",
        );
        assert_eq!(endpoint_option(&given), Some("ep-a"));
        let packet = forwarded(&given);
        let passed = parameters(&packet[8..]);
        assert_eq!(
            passed.get("options").map(String::as_str),
            Some("-c geqo=off")
        );
        assert_eq!(
            passed.keys().collect::<Vec<_>>(),
            ["client_encoding", "database", "options", "user"]
        );
        let compat = parameters(
            b"user\0u\0work_mem\x001MB\0options\0neon_proxy_params_compat:true\0\0".as_slice(),
        );
        assert!(parameters(&forwarded(&compat)[8..]).contains_key("work_mem"));
        assert_eq!(
            packet.len(),
            u32::from_be_bytes(packet[..4].try_into().unwrap()) as usize
        );
    }

    #[tokio::test]
    async fn hostile_first_bytes_are_an_error() {
        for bytes in [
            &b"\0\0\0\x04"[..],
            b"\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0\0\0\x0c\x04\xd2\x16\x2e\0\0\0\0",
        ] {
            assert!(Hello::read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }
}
