//! A client that shows what is on the wire, message by message.

use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{LONG, TestEnv};

/// A message of the server's, and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) tag: char,
    pub(crate) body: Vec<u8>,
    pub(crate) after: Duration,
}

impl Message {
    /// The kind of an `Authentication…` message.
    pub(crate) fn kind(&self) -> u32 {
        u32::from_be_bytes(self.body[..4].try_into().unwrap())
    }

    /// A field of an error.
    pub(crate) fn field(&self, field: char) -> Option<String> {
        let fields = self
            .body
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy);
        fields
            .into_iter()
            .find_map(|text| text.strip_prefix(field).map(str::to_owned))
    }
}

/// The way in which a server closes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CloseKind {
    /// With TLS's own goodbye.
    Closed,
    /// The bare end of the TCP stream.
    Cut,
}

/// A connection that has said nothing but TLS.
pub(crate) struct RawClient {
    stream: TlsStream<TcpStream>,
    start: Instant,
}

impl RawClient {
    /// TLS without the request for it, for the name `host` (an address sends no SNI).
    pub(crate) async fn connect(env: &TestEnv, host: &str) -> Self {
        let start = Instant::now();
        let stream = TcpStream::connect(env.emulator.proxy_address())
            .await
            .unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let stream = TlsConnector::from(env.tls_config())
            .connect(name, stream)
            .await
            .unwrap();
        Self { stream, start }
    }

    pub(crate) async fn startup(&mut self, minor: u16, parameters: &[(&str, &str)]) {
        let mut body = [3_u16.to_be_bytes(), minor.to_be_bytes()].concat();
        for (name, value) in parameters {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.stream
            .write_all(&[&length[..], &body].concat())
            .await
            .unwrap();
    }

    pub(crate) async fn send(&mut self, tag: u8, body: &[u8]) {
        self.send_all(&[(tag, body)]).await;
    }

    /// Several messages at once: the first may make the server close.
    pub(crate) async fn send_all(&mut self, messages: &[(u8, &[u8])]) {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
            bytes.extend([&[*tag], &length[..], body].concat());
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(b'Q', format!("{sql}\0").as_bytes()).await;
        self.until('Z').await
    }

    /// The next message; `None` when the server has closed.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let mut head = [0; 5];
        let read = timeout(LONG, self.stream.read_exact(&mut head))
            .await
            .expect("silent");
        read.ok()?;
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Message {
            tag: char::from(head[0]),
            body,
            after: self.start.elapsed(),
        })
    }

    /// The messages that are still to come, and how the server closes.
    pub(crate) async fn until_closed(&mut self) -> (Vec<Message>, CloseKind) {
        let mut seen = Vec::new();
        while let Some(message) = self.next().await {
            seen.push(message);
        }
        // What ended the last message ends this too, and tells why.
        let ended = self.stream.read(&mut [0]).await;
        let end = match ended {
            Ok(0) => CloseKind::Closed,
            Ok(_) => panic!("half a message"),
            Err(_) => CloseKind::Cut,
        };
        (seen, end)
    }

    /// Messages up to one with `tag`, or an error, or the end.
    pub(crate) async fn until(&mut self, tag: char) -> Vec<Message> {
        let mut seen = Vec::new();
        while let Some(message) = self.next().await {
            let last = message.tag == tag || (message.tag == 'E' && tag != 'Z');
            seen.push(message);
            if last {
                break;
            }
        }
        seen
    }

    /// Answers SCRAM without channel binding; ends with the proof sent.
    pub(crate) async fn answer_scram(&mut self, password: &str) {
        let offer = self.next().await.unwrap();
        assert_eq!((offer.tag, offer.kind()), ('R', 10), "{offer:?}");
        assert_eq!(&offer.body[4..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let first = scram.message().to_vec();
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        self.send(b'p', &[b"SCRAM-SHA-256\0", &length[..], &first].concat())
            .await;
        let challenge = self.next().await.unwrap();
        assert_eq!(
            (challenge.tag, challenge.kind()),
            ('R', 11),
            "{challenge:?}"
        );
        scram.update(&challenge.body[4..]).unwrap();
        let proof = scram.message().to_vec();
        self.send(b'p', &proof).await;
    }

    /// Logs in as the project's own role; the messages from the proof to the end of the login.
    pub(crate) async fn log_in(&mut self, password: &str, more: &[(&str, &str)]) -> Vec<Message> {
        let mut parameters = vec![("user", "neondb_owner"), ("database", "neondb")];
        parameters.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        parameters.extend(more);
        self.startup(0, &parameters).await;
        self.answer_scram(password).await;
        self.until_ready().await
    }

    /// Messages up to ReadyForQuery, an error, or the end.
    pub(crate) async fn until_ready(&mut self) -> Vec<Message> {
        let mut seen = Vec::new();
        while let Some(message) = self.next().await {
            let last = matches!(message.tag, 'Z' | 'E');
            seen.push(message);
            if last {
                break;
            }
        }
        seen
    }
}
