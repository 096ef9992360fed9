//! TLS that begins before the driver takes part, so that a socket can be encrypted long before its login.

use std::{
    future::{Ready, ready},
    io, mem,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::{
    Client, Config, Connection, Error,
    config::SslNegotiation,
    tls::{TlsConnect, TlsStream},
};

/// The message that asks a Postgres server for TLS: its length, and its code.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The answer of a server that agrees to TLS.
const AGREED: u8 = b'S';

/// Starts TLS on `stream`, after a request for it unless `config` goes without. A failure is the error that the driver
/// would have returned.
pub(super) async fn start_tls<S, C>(
    config: &Config,
    mut stream: S,
    connector: C,
) -> Result<C::Stream, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: TlsConnect<S, Error = io::Error>,
{
    let answer = match config.get_ssl_negotiation() {
        SslNegotiation::Postgres => ask_for_tls(&mut stream).await,
        _ => Ok(AGREED),
    };
    let begun = match answer {
        Ok(AGREED) => connector.connect(stream).await,
        // The driver never comes to the handshake, because it gets the same answer.
        _ => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    match begun {
        Ok(encrypted) => Ok(encrypted),
        Err(err) => {
            let failed = Negotiated::<C::Stream>(Err(err));
            let refused = config.connect_raw(Asked(answer), failed).await;
            Err(refused.map(drop).expect_err("its TLS has failed"))
        }
    }
}

async fn ask_for_tls<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<u8> {
    stream.write_all(&TLS_REQUEST).await?;
    stream.read_u8().await
}

/// Logs in on `encrypted`, a stream on which TLS is done.
pub(super) async fn log_in<T: TlsStream + Unpin>(
    config: &Config,
    encrypted: T,
) -> Result<(Client, Connection<Asked, T>), Error> {
    let tls = Negotiated(Ok(encrypted));
    config.connect_raw(Asked(Ok(AGREED)), tls).await
}

/// The stream that the driver gets in place of the socket: it discards the driver's request for TLS, and repeats the
/// server's answer to the earlier request.
///
/// The driver's settings stay as they are, because the driver's cancel requests need them too.
pub(super) struct Asked(io::Result<u8>);

impl AsyncRead for Asked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answer = mem::replace(&mut self.0, Ok(AGREED));
        Poll::Ready(answer.map(|answer| buf.put_slice(&[answer])))
    }
}

impl AsyncWrite for Asked {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A TLS connector whose handshake is over, with or without success.
struct Negotiated<T>(io::Result<T>);

impl<T: TlsStream + Unpin> TlsConnect<Asked> for Negotiated<T> {
    type Stream = T;
    type Error = io::Error;
    type Future = Ready<io::Result<T>>;

    fn connect(self, _: Asked) -> Self::Future {
        ready(self.0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::duplex,
        time::{Duration, timeout},
    };
    use tokio_postgres::{config::SslMode, tls::NoTlsStream};

    use super::*;

    /// Returns the error for a client that asks for TLS and gets `answer`.
    async fn refusal(answer: &[u8]) -> Error {
        let (client_end, mut server_end) = duplex(64);
        let mut config = Config::new();
        config.ssl_mode(SslMode::Require);
        let server = async {
            let mut request = [0; 8];
            server_end.read_exact(&mut request).await.unwrap();
            assert_eq!(request, TLS_REQUEST);
            server_end.write_all(answer).await.unwrap();
            drop(server_end);
        };
        let starting = start_tls(&config, client_end, NoHandshake);
        let (begun, ()) = tokio::join!(timeout(Duration::from_secs(5), starting), server);
        begun.unwrap().map(drop).unwrap_err()
    }

    /// A connector whose handshake is never reached.
    struct NoHandshake;

    impl<S> TlsConnect<S> for NoHandshake {
        type Stream = NoTlsStream;
        type Error = io::Error;
        type Future = Ready<io::Result<NoTlsStream>>;

        fn connect(self, _: S) -> Self::Future {
            panic!("the server has not agreed");
        }
    }

    #[tokio::test]
    async fn a_refused_request_for_tls_is_the_drivers_own_error() {
        let refused = refusal(b"N").await;
        assert!(
            refused
                .to_string()
                .starts_with("error performing TLS handshake"),
            "{refused}"
        );
        let cut = refusal(b"").await;
        assert!(
            cut.to_string()
                .starts_with("error communicating with the server"),
            "{cut}"
        );
    }
}
