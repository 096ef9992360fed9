//! A network between clients and a server of this machine: what passes arrives late.
//!
//! Each piece arrives half a round trip after it was sent, in order, however many are under way. A connection itself
//! is there at once on one machine; its round trip is made up for before its first piece. One thread moves everything.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroU64,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustix::{
    thread::set_current_timer_slack,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tenantry::BoxError;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split, unix::AsyncFd},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::Builder,
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::Samples;

/// Bytes of one piece, at most.
const PIECE: usize = 64 * 1024;

/// The server behind a relay.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "not every benchmark has both")]
pub(crate) enum Server {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The way to a server. Its drop closes all connections.
pub(crate) struct Relay {
    address: SocketAddr,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    turns: AtomicU64,
    bytes: AtomicU64,
}

#[allow(dead_code, reason = "not every benchmark asks for everything")]
impl Relay {
    /// Leads to `server`, with so long a round trip.
    pub(crate) fn to(server: Server, round_trip: Duration) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let seen = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            // Without it each timer is late by the kernel's usual 50 us.
            let _ = set_current_timer_slack(NonZeroU64::new(1));
            runtime.block_on(async {
                tokio::select! {
                    _ = accept(listener, server, round_trip, seen) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address,
            counts,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Round trips so far: of each connection one for itself, and one for each time that its client spoke after it had
    /// been answered. Exact if a round trip is longer than anything takes at either end.
    pub(crate) fn turns(&self) -> u64 {
        self.counts.turns.load(Relaxed)
    }

    /// Bytes so far, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has nothing to say
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    server: Server,
    round_trip: Duration,
    counts: Arc<Counts>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        counts.turns.fetch_add(1, Relaxed);
        let connection = Connection {
            ready: Instant::now() + round_trip,
            one_way: round_trip / 2,
            was_answered: AtomicBool::new(true),
            counts: Arc::clone(&counts),
        };
        let server = server.clone();
        tokio::spawn(async move {
            let _ = connection.run(client, server).await; // both sides see the end
        });
    }
}

/// One connection of a client.
struct Connection {
    /// The moment at which a client on a network would have its connection, and could speak.
    ready: Instant,
    one_way: Duration,
    /// `true` if anything came to the client since it spoke last.
    was_answered: AtomicBool,
    counts: Arc<Counts>,
}

impl Connection {
    async fn run(self, client: TcpStream, server: Server) -> io::Result<()> {
        match server {
            Server::Tcp(address) => {
                let server = TcpStream::connect(address).await?;
                server.set_nodelay(true)?;
                self.pass(client, server).await
            }
            Server::Unix(path) => self.pass(client, UnixStream::connect(path).await?).await,
        }
    }

    async fn pass(
        self,
        client: TcpStream,
        server: impl AsyncRead + AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = split(server);
        let spoken = || {
            if self.was_answered.swap(false, Relaxed) {
                self.counts.turns.fetch_add(1, Relaxed);
            }
        };
        let answered = || self.was_answered.store(true, Relaxed);
        let there = self.delay(from_client, to_server, self.ready, (spoken, || {}));
        let back = self.delay(from_server, to_client, Instant::now(), (|| {}, answered));
        tokio::try_join!(there, back).map(drop)
    }

    /// Passes one direction on, until its end or an error. Nothing is sent before `ready`. Notes what is read and
    /// written.
    async fn delay(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        ready: Instant,
        (on_read, on_write): (impl Fn(), impl Fn()),
    ) -> io::Result<()> {
        let (queue, mut pieces) = mpsc::unbounded_channel();
        let reading = async {
            let mut buffer = vec![0; PIECE];
            loop {
                let length = from.read(&mut buffer).await.unwrap_or(0);
                let due = Instant::now().max(ready) + self.one_way;
                let _ = queue.send((due, buffer[..length].to_vec())); // the other half has ended, and so does this one
                if length == 0 {
                    std::future::pending::<()>().await; // the other half passes the end on
                }
                on_read();
            }
        };
        let writing = async {
            let timer = Timer::new()?;
            while let Some((due, piece)) = pieces.recv().await {
                timer.until(due).await?;
                if piece.is_empty() {
                    break;
                }
                on_write();
                self.counts.bytes.fetch_add(piece.len() as u64, Relaxed);
                to.write_all(&piece).await?;
            }
            to.shutdown().await
        };
        tokio::select! {
            () = reading => Ok(()),
            written = writing => written,
        }
    }
}

/// Waits to the microsecond. Tokio's own timers are of whole milliseconds.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "the other ways are `unsafe`, and the descriptor is its own"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    async fn until(&self, due: Instant) -> io::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut guard = self.0.readable().await?;
            let read = |timer: &AsyncFd<OwnedFd>| {
                let mut count = [0; 8];
                Ok(rustix::io::read(timer, &mut count).map(drop)?)
            };
            if let Ok(expired) = guard.try_io(read) {
                return expired;
            }
        }
    }
}

/// The round trips that a byte really takes through a relay with `round_trip`.
#[allow(dead_code, reason = "not every benchmark checks it")]
pub(crate) async fn measured(round_trip: Duration, samples: usize) -> Result<Samples, BoxError> {
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    let relay = Relay::to(Server::Tcp(echo.local_addr()?), round_trip)?;
    let mut client = TcpStream::connect(relay.address()).await?;
    client.set_nodelay(true)?;
    let (server, _) = echo.accept().await?;
    server.set_nodelay(true)?;
    let (mut heard, mut said) = server.into_split();
    let echoing = copy(&mut heard, &mut said);
    let asking = async {
        let mut took = Samples::default();
        client.write_u8(0).await?; // the first also waits for the connection
        client.read_u8().await?;
        for _ in 0..samples {
            let start = Instant::now();
            client.write_u8(0).await?;
            client.read_u8().await?;
            took.add(start.elapsed());
        }
        Ok(took)
    };
    tokio::select! {
        _ = echoing => Err("the echo has ended".into()),
        took = asking => took,
    }
}
