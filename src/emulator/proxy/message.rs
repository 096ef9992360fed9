//! The messages of the Postgres protocol that the proxy itself reads and writes.

use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message before a session exists, in bytes.
const LONGEST: usize = 1 << 20;

/// One message: tag, length, body.
pub(in crate::emulator) struct Message(Vec<u8>);

// The body is not shown: a client's answer may be a password in clear text.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({:?}, ..)", char::from(self.tag()))
    }
}

impl Message {
    /// Creates a message to be sent.
    pub(in crate::emulator) fn new(tag: u8, body: &[u8]) -> Self {
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        Self([&[tag], &length.to_be_bytes()[..], body].concat())
    }

    /// Creates an `Authentication…` message.
    pub(in crate::emulator) fn authentication(kind: u32, body: &[u8]) -> Self {
        Self::new(b'R', &[&kind.to_be_bytes()[..], body].concat())
    }

    pub(in crate::emulator) async fn read(
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Self> {
        let mut bytes = vec![0; 5];
        stream.read_exact(&mut bytes).await?;
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        if !(4..=LONGEST).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message"));
        }
        bytes.resize(length + 1, 0);
        stream.read_exact(&mut bytes[5..]).await?;
        Ok(Self(bytes))
    }

    pub(in crate::emulator) async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        stream.write_all(&self.0).await
    }

    pub(in crate::emulator) fn tag(&self) -> u8 {
        self.0[0]
    }

    pub(in crate::emulator) fn body(&self) -> &[u8] {
        &self.0[5..]
    }

    /// Returns a field of an error message.
    pub(in crate::emulator) fn field(&self, field: u8) -> Option<String> {
        let mut fields = (self.tag() == b'E').then(|| self.body().split(|&byte| byte == 0))?;
        let found = fields.find_map(|text| text.strip_prefix(&[field]))?;
        Some(String::from_utf8_lossy(found).into_owned())
    }
}

/// Sends an error as Neon's proxy does before a session exists, then closes the connection. The error has severity
/// ERROR, SQLSTATE `code`, the text, and no other field.
pub(in crate::emulator) async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    code: &str,
    text: &str,
) -> io::Result<()> {
    let body = format!("SERROR\0C{code}\0M{text}\0\0");
    Message::new(b'E', body.as_bytes()).write(stream).await?;
    stream.shutdown().await
}
