//! The stream under a connection: a socket, or a pipe inside the process.
//!
//! It carries the permit of its connection, so that the permit is not given back before the other side has ended.
//!
//! Pipes are for tests and benches: paused time runs ahead of real sockets, and tens of thousands of sockets exceed the
//! limit on open files. [`Socket`] is an enum and not a boxed trait, so that the compiler still sees that a dial is
//! `Send`.

use std::{
    future::Future,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};

use crate::limits::budget::Permit;

/// Longest wait for the other side to end a connection that was dropped half-way.
const LINGER: Duration = Duration::from_secs(1);

/// The transport of one connection's bytes.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// The permit; `None` on a stream that opens no session.
    permit: Option<Permit>,
    /// `true` once the other side has ended it.
    ended: bool,
}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Pipe(DuplexStream),
    /// The place of a socket that was taken out of a dropped stream.
    Gone,
}

impl Stream {
    pub(super) fn new(socket: Socket, permit: Option<Permit>) -> Self {
        let ended = false;
        Self {
            socket,
            permit,
            ended,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let socket = mem::replace(&mut self.socket, Socket::Gone);
        // The server counts a dropped connection until it notices the end.
        if !self.ended
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(linger(socket, permit));
        }
    }
}

/// Waits until the other side has ended the connection, for [`LINGER`] at most, and then gives the permit back.
async fn linger(mut socket: Socket, permit: Permit) {
    let other_side_ended = async {
        let mut rest = [0; 256];
        if socket.shutdown().await.is_ok() {
            while socket.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        }
    };
    let _ = timeout(LINGER, other_side_ended).await;
    drop(socket);
    drop(permit);
}

type Opened = Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>>;
type Open = dyn Fn(&str, u16) -> Opened + Send + Sync;

/// Opens a pipe to a host and port instead of a socket.
#[derive(Clone)]
pub(crate) struct Pipes(Arc<Open>);

impl Pipes {
    pub(crate) fn new<F, Fut>(open: F) -> Self
    where
        F: Fn(&str, u16) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<DuplexStream>> + Send + 'static,
    {
        Self(Arc::new(move |host, port| Box::pin(open(host, port))))
    }

    pub(crate) async fn open(&self, host: &str, port: u16) -> io::Result<Socket> {
        (self.0)(host, port).await.map(Socket::Pipe)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, buf));
        self.ended |= read.is_err() || (before > 0 && buf.remaining() == before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    // The TLS layer writes several records at once if the stream supports it.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Pipe(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Pipe(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Gone => gone(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Pipe(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Gone => gone(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Pipe(stream) => stream.is_write_vectored(),
            Self::Gone => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_flush(cx),
            Self::Gone => gone(),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Gone => gone(),
        }
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::duplex,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::limits::budget::Budget;

    #[tokio::test(start_paused = true)]
    async fn the_permit_lasts_until_the_other_side_has_ended_and_not_for_ever() {
        let budget = Budget::new(2, 0);
        let mut theirs = Vec::new();
        for _ in 0..2 {
            let (ours, its) = duplex(64);
            theirs.push(its);
            drop(Stream::new(
                Socket::Pipe(ours),
                Some(budget.take(None).await),
            ));
        }
        let dropped = Instant::now();
        sleep(LINGER / 2).await;
        assert_eq!(budget.used(), 2, "the other side may not have noticed yet");
        drop(theirs.pop());
        sleep(LINGER / 4).await;
        assert_eq!(budget.used(), 1);
        budget.emptied().await;
        assert_eq!(dropped.elapsed(), LINGER, "it never ended");
    }

    #[tokio::test(start_paused = true)]
    async fn the_permit_is_given_back_at_once_where_the_other_side_ended_first() {
        let budget = Budget::new(1, 0);
        let (ours, theirs) = duplex(64);
        let permit = budget.take(None).await;
        let mut stream = Stream::new(Socket::Pipe(ours), Some(permit));
        drop(theirs);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        drop(stream);
        assert_eq!(budget.used(), 0);
    }
}
