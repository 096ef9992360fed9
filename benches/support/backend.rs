//! A Postgres at the other end of pipes inside the process: it accepts every login, and answers every query with
//! one row that holds the number 1.
//!
//! For figures that must not depend on sockets, and for more connections than there may be open files. Its pipes and
//! tasks are small, so that ten thousand of them cost little beside the clients at their other end.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tenantry::{
    Endpoint, RouterBuilder,
    tokio_postgres::{Client, Config, Error, NoTls, config::SslMode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

/// Bytes that a pipe holds in each direction; a query of a benchmark and its answer are smaller.
const PIPE: usize = 512;

/// Protocol 3.0, as it stands at the start of a first packet. Anything else there is a request to cancel.
const VERSION_3: i32 = 196_608;

/// One column, named `n`: an `int4`, of which the format comes last, as text or binary.
const DESCRIPTION: &[u8] = b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0";

/// The server of every tenant. Clones are the same server.
#[derive(Clone, Default)]
pub(crate) struct Backend(Arc<Counts>);

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    open: AtomicU64,
}

#[allow(dead_code, reason = "not every benchmark asks for everything")]
impl Backend {
    /// The endpoint of `tenant` here: at a host and in a database of its own name, and never asleep.
    pub(crate) fn endpoint(tenant: &str) -> Endpoint {
        Endpoint::postgres(tenant, tenant, "app", "secret").without_tls()
    }

    /// `builder`, pointed here.
    pub(crate) fn configure(&self, builder: RouterBuilder) -> RouterBuilder {
        let backend = self.clone();
        builder.open_streams(move |_, _| std::future::ready(Ok(backend.open())))
    }

    /// A stream to it. To be called inside a runtime, where the other end is served.
    pub(crate) fn open(&self) -> DuplexStream {
        let (near, far) = duplex(PIPE);
        let session = Session {
            pipe: near,
            input: Vec::new(),
            output: Vec::new(),
            place: OpenStream::new(&self.0),
        };
        tokio::spawn(session.run());
        far
    }

    /// A bare client of it, and the task that moves its bytes.
    pub(crate) async fn connect(&self) -> Result<(Client, JoinHandle<()>), Error> {
        let mut config = Config::new();
        config
            .user("app")
            .password("secret")
            .ssl_mode(SslMode::Disable);
        let (client, connection) = config.connect_raw(self.open(), NoTls).await?;
        let task = tokio::spawn(async move {
            let _ = connection.await; // a query on it fails when it has ended
        });
        Ok((client, task))
    }

    /// Streams opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.0.opened.load(Relaxed)
    }

    /// Streams open now.
    pub(crate) fn open_now(&self) -> u64 {
        self.0.open.load(Relaxed)
    }
}

/// A stream that is open. Its drop says that it is not any more.
struct OpenStream(Arc<Counts>);

impl OpenStream {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.opened.fetch_add(1, Relaxed);
        counts.open.fetch_add(1, Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// One connection, as its server sees it.
struct Session {
    pipe: DuplexStream,
    input: Vec<u8>,
    output: Vec<u8>,
    place: OpenStream,
}

impl Session {
    async fn run(mut self) {
        // The client has gone, or has said that it goes.
        let (Ok(()) | Err(_)) = self.serve().await.map(|never| match never {});
        drop(self.place);
    }

    async fn serve(&mut self) -> io::Result<Infallible> {
        self.body().await?;
        if self.input.first_chunk().copied().map(i32::from_be_bytes) != Some(VERSION_3) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.reply(b'R', &[&[0; 4]]);
        self.reply(b'S', &[b"server_version\x0017.0\0"]);
        self.reply(b'K', &[&[0; 8]]);
        self.ready().await?;
        loop {
            let tag = self.pipe.read_u8().await?;
            self.body().await?;
            self.answer(tag).await?;
        }
    }

    /// Reads the rest of a message, from its length on.
    async fn body(&mut self) -> io::Result<()> {
        let length = self.pipe.read_u32().await?;
        self.input.resize((length as usize).saturating_sub(4), 0);
        self.pipe.read_exact(&mut self.input).await.map(drop)
    }

    async fn answer(&mut self, tag: u8) -> io::Result<()> {
        match tag {
            b'Q' => {
                self.reply(b'T', &[DESCRIPTION, &[0]]);
                self.row(b"1");
                return self.ready().await;
            }
            b'S' => return self.ready().await,
            b'P' => self.reply(b'1', &[]),
            b'B' => self.reply(b'2', &[]),
            b'C' => self.reply(b'3', &[]),
            b'D' => {
                if self.input.first() == Some(&b'S') {
                    self.reply(b't', &[&[0; 2]]);
                }
                self.reply(b'T', &[DESCRIPTION, &[1]]);
            }
            b'E' => self.row(&[0, 0, 0, 1]),
            b'X' => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ => {}
        }
        Ok(())
    }

    fn row(&mut self, value: &[u8]) {
        let length = u32::try_from(value.len()).unwrap_or_default();
        self.reply(b'D', &[&[0, 1], &length.to_be_bytes(), value]);
        self.reply(b'C', &[b"SELECT 1\0"]);
    }

    fn reply(&mut self, tag: u8, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length + 4).unwrap_or_default();
        self.output.push(tag);
        self.output.extend(length.to_be_bytes());
        for part in parts {
            self.output.extend(*part);
        }
    }

    /// Says that it is idle, outside any transaction, and sends all that was said.
    async fn ready(&mut self) -> io::Result<()> {
        self.reply(b'Z', &[b"I"]);
        self.pipe.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }
}
