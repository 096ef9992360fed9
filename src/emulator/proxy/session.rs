//! The session of a client that is let in: the proxy connects it to its compute, passes bytes, and forwards cancel
//! requests.

use std::{
    collections::HashMap,
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, copy},
    net::{TcpStream, UnixStream},
    time::sleep,
};
use tokio_rustls::server::TlsStream;

use super::{
    code_of,
    message::{Message, refuse},
    replies::Replies,
    startup::BackendKey,
};
use crate::emulator::{compute::Compute, fault::Fate, host::process::connect};

/// Most attempts to connect one client. Its compute may be stopped during any of them.
const TRIES: u32 = 20;
/// SQLSTATE of a Postgres that is starting or stopping.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// Text of a Postgres that is stopping. The proxy hides it from the client, but passes on the text of one that is
/// starting or recovering.
const STOPS: &str = "the database system is shutting down";

const UNSUPPORTED_PARAMETER: &str = ". Please use unpooled connection or remove this parameter from the startup package. More details: https://neon.tech/docs/connect/connection-errors#unsupported-startup-parameter";

type ClientIn = ReadHalf<TlsStream<TcpStream>>;
type ClientOut = WriteHalf<TlsStream<TcpStream>>;

/// The open sessions.
#[derive(Default)]
pub(in crate::emulator) struct Sessions {
    // The socket for the cancel requests of each session. Held only for short reads and writes.
    keys: Mutex<HashMap<BackendKey, PathBuf>>,
}

impl Sessions {
    /// Wakes the compute and passes bytes both ways until one side ends. `proved` is held back until the compute is up.
    pub(in crate::emulator) async fn serve(
        &self,
        mut stream: TlsStream<TcpStream>,
        startup: &[u8],
        compute: &Arc<Compute>,
        pooled: bool,
        proved: Message,
        live_codes: bool,
    ) -> io::Result<()> {
        match begin(compute, startup, pooled).await {
            Ok(Begun::Session(session)) => self.pass(stream, session, proved, compute).await,
            Ok(Begun::Silence) => hear_out(stream).await,
            Ok(Begun::Refused(text)) => {
                refuse(&mut stream, code_of(live_codes, &text), &text).await
            }
            Err(err) => {
                tracing::debug!(%err, "emulator: cannot reach a compute");
                refuse(&mut stream, "XX000", "Couldn't connect to compute node").await
            }
        }
    }

    async fn pass(
        &self,
        stream: TlsStream<TcpStream>,
        session: Session,
        proved: Message,
        compute: &Arc<Compute>,
    ) -> io::Result<()> {
        let (mut client_in, mut client_out) = tokio::io::split(stream);
        let client = (&mut client_in, &mut client_out);
        let ended = self.converse(client, session, proved, compute).await;
        client_out.shutdown().await?;
        ended
    }

    /// Runs the session up to the point at which the client's connection can be closed.
    async fn converse(
        &self,
        (client_in, client_out): (&mut ClientIn, &mut ClientOut),
        session: Session,
        proved: Message,
        compute: &Arc<Compute>,
    ) -> io::Result<()> {
        let Session {
            server,
            greeting,
            key,
            socket,
        } = session;
        // Dropped after the server's halves and before the client's, even if the proxy restarts.
        let _session = compute.log.session();
        let (mut server_in, mut server_out) = server.into_split();
        let upward = async {
            // However the copy ends, the server sees the end, and may still send its last messages.
            let _ = copy(client_in, &mut server_out).await;
            let _ = server_out.shutdown().await;
        };
        let session = async {
            // Everything goes out in one burst: the client has received nothing since it sent its proof.
            proved.write(client_out).await?;
            client_out.write_all(&greeting).await?;
            client_out.flush().await?;
            compute.meter.transferred(greeting.len());
            let _key = key.map(|key| self.remember(key, socket));
            downward(&mut server_in, client_out, compute).await
        };
        tokio::pin!(upward, session);
        tokio::select! {
            ended = &mut session => ended,
            () = &mut upward => session.await,
        }
    }

    fn remember(&self, key: BackendKey, socket: PathBuf) -> Remembered<'_> {
        self.keys().insert(key, socket);
        Remembered {
            sessions: self,
            key,
        }
    }

    /// Forwards a cancel request to the compute of its session.
    pub(in crate::emulator) async fn cancel(&self, key: BackendKey) -> io::Result<()> {
        let Some(socket) = self.keys().get(&key).cloned() else {
            return Ok(());
        };
        let mut server = connect(&socket).await?;
        let request = [&[0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e][..], &key].concat();
        server.write_all(&request).await?;
        server.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<BackendKey, PathBuf>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on the server's bytes until the server ends, or until the answer to a COMMIT is to get lost.
async fn downward(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    compute: &Arc<Compute>,
) -> io::Result<()> {
    let mut replies = Replies::default();
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = server.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        let committed = replies.pass(&piece[..length]);
        let lost = committed.filter(|_| compute.faults.loses_commit());
        let passed = &piece[..lost.unwrap_or(length)];
        client.write_all(passed).await?;
        client.flush().await?;
        compute.meter.transferred(passed.len());
        if lost.is_some() {
            compute.crash();
            return Ok(());
        }
    }
}

/// A session's key, remembered as long as the session lasts.
struct Remembered<'a> {
    sessions: &'a Sessions,
    key: BackendKey,
}

impl Drop for Remembered<'_> {
    fn drop(&mut self) {
        self.sessions.keys().remove(&self.key);
    }
}

/// The outcome of a startup packet.
enum Begun {
    Session(Session),
    /// A refusal with this text. Neon loses its severity and code.
    Refused(String),
    /// No answer. The client receives nothing.
    Silence,
}

impl Begun {
    /// Returns the outcome that a fault causes; `None` if there is no fault.
    fn by(fate: Fate) -> Option<Self> {
        match fate {
            Fate::Connects => None,
            Fate::Told(text) => Some(Self::Refused(text)),
            Fate::Silence => Some(Self::Silence),
        }
    }
}

/// Sends nothing, and waits until the client disconnects.
async fn hear_out(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let mut heard = [0; 256];
    while stream.read(&mut heard).await? > 0 {}
    Ok(())
}

/// A session that Postgres has accepted.
struct Session {
    server: UnixStream,
    /// All messages of the server up to the first ReadyForQuery.
    greeting: Vec<u8>,
    key: Option<BackendKey>,
    /// Socket for its cancel requests.
    socket: PathBuf,
}

/// Wakes the compute, connects and sends the startup packet. Tries again if the compute is stopped in between: Neon's
/// clients do not notice that either.
async fn begin(
    compute: &Arc<Compute>,
    startup: &[u8],
    pooled: bool,
) -> Result<Begun, Box<dyn Error + Send + Sync>> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for _ in 0..TRIES {
        if let Some(text) = compute.faults.repeated(pooled) {
            return Ok(Begun::Refused(text));
        }
        if !compute.is_awake()
            && let Some(begun) =
                Begun::by(compute.faults.on_wake(pooled, || compute.refusal()).await)
        {
            return Ok(begun);
        }
        let reached = compute.wake().await?;
        if let Some(begun) = Begun::by(compute.faults.on_connect().await) {
            return Ok(begun);
        }
        let socket = if pooled {
            reached.pooled
        } else {
            reached.direct
        };
        match greet(socket, startup).await {
            Ok(Ok(session)) if !reached.run.is_cancelled() => {
                return Ok(Begun::Session(session));
            }
            Ok(Err(refused)) => {
                let (code, text) = (refused.field(b'C'), refused.field(b'M'));
                let text = text.unwrap_or_default();
                if code.as_deref() != Some(CANNOT_CONNECT_NOW) || text != STOPS {
                    return Ok(Begun::Refused(told(&text)));
                }
            }
            Ok(_) => {}
            Err(err) => last = err,
        }
        sleep(Duration::from_millis(5)).await;
    }
    Err(last.into())
}

/// Returns the error text for the client. The proxy adds advice to one of the pooler's errors.
fn told(text: &str) -> String {
    let advice = if text.starts_with("unsupported startup parameter") {
        UNSUPPORTED_PARAMETER
    } else {
        ""
    };
    format!("{text}{advice}")
}

/// Sends the startup packet and reads the answer: a session, or an error.
async fn greet(socket: PathBuf, startup: &[u8]) -> io::Result<Result<Session, Message>> {
    let mut server = connect(&socket).await?;
    server.write_all(startup).await?;
    let (mut greeting, mut key) = (Vec::new(), None);
    loop {
        let message = Message::read(&mut server).await?;
        match message.tag() {
            b'E' => return Ok(Err(message)),
            b'K' => key = message.body().try_into().ok(),
            _ => {}
        }
        message.write(&mut greeting).await?;
        if message.tag() == b'Z' {
            return Ok(Ok(Session {
                server,
                greeting,
                key,
                socket,
            }));
        }
    }
}
