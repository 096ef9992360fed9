//! The proxy in front of all computes: finds the endpoint, wakes it, passes bytes.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    compute::{Compute, Reached},
    startup::{BackendKey, Hello, endpoint_option, forwarded, refuse},
    world::World,
};

/// Neon's limit for TLS and the startup packet.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Times a compute may be stopped under a client that is connecting.
const TRIES: u32 = 20;
/// The emulator's own role, which no client may use.
const ADMIN: &str = "cloud_admin";
/// SQLSTATE of a Postgres that starts or stops.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE of a wrong password. Neon's own text for it has single quotes.
const INVALID_PASSWORD: &str = "28P01";

const NO_TLS: &str = "connection is insecure (try using `sslmode=require`)";
const NO_ENDPOINT: &str = "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq) for SNI support or pass the endpoint ID (first part of the domain name) as a parameter: '?options=endpoint%3D<endpoint-id>'. See more at https://neon.tech/sni";

/// What the proxy needs to serve a client.
pub(super) struct Proxy {
    world: Arc<World>,
    tls: TlsAcceptor,
    /// Where to send the cancel request for a session.
    keys: Mutex<HashMap<BackendKey, PathBuf>>,
}

impl Proxy {
    pub(super) fn new(world: Arc<World>, tls: Arc<ServerConfig>) -> Arc<Self> {
        Arc::new(Self {
            world,
            tls: TlsAcceptor::from(tls),
            keys: Mutex::default(),
        })
    }

    /// Serves clients until it is dropped.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let proxy = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(err) = proxy.client(stream).await {
                            tracing::debug!(%err, "emulator: a client's connection ended");
                        }
                    });
                }
                Err(err) => {
                    tracing::warn!(%err, "emulator: cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn client(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let greeted = timeout(HANDSHAKE_TIMEOUT, self.greet(stream)).await??;
        let Some((stream, hello)) = greeted else {
            return Ok(());
        };
        match hello {
            Hello::Cancel(key) => self.cancel(key).await,
            Hello::Startup(parameters) => self.session(stream, parameters).await,
            Hello::Ssl | Hello::Gss => Ok(()),
        }
    }

    /// TLS with or without the request for it, then the startup packet. `None` if that was all.
    async fn greet(
        &self,
        mut stream: TcpStream,
    ) -> io::Result<Option<(TlsStream<TcpStream>, Hello)>> {
        let mut first = [0];
        while stream.peek(&mut first).await? > 0 && first[0] != TLS_HANDSHAKE {
            match Hello::read(&mut stream).await? {
                Hello::Ssl => {
                    stream.write_all(b"S").await?;
                    break;
                }
                Hello::Gss => stream.write_all(b"N").await?,
                // libpq sends these without TLS.
                Hello::Cancel(key) => return self.cancel(key).await.map(|()| None),
                Hello::Startup(_) => return refuse(&mut stream, NO_TLS).await.map(|()| None),
            }
        }
        let mut stream = self.tls.accept(stream).await?;
        let hello = Hello::read(&mut stream).await?;
        Ok(Some((stream, hello)))
    }

    async fn session(
        &self,
        mut stream: TlsStream<TcpStream>,
        parameters: BTreeMap<String, String>,
    ) -> io::Result<()> {
        let named = match endpoint_named(
            stream.get_ref().1.server_name(),
            endpoint_option(&parameters),
        ) {
            Ok(named) => named,
            Err(message) => return refuse(&mut stream, &message).await,
        };
        let (id, pooled) = match named.strip_suffix("-pooler") {
            Some(id) => (id, true),
            None => (named.as_str(), false),
        };
        let user = parameters.get("user").map_or("", String::as_str);
        let compute = self.world.compute(id).filter(|_| user != ADMIN);
        let Some(compute) = compute else {
            return refuse(
                &mut stream,
                &format!("password authentication failed for user '{user}'"),
            )
            .await;
        };
        compute.log.auth_attempt();
        match begin(&compute, &forwarded(&parameters)).await {
            Ok(begun) => self.pass(stream, begun, &compute, pooled).await,
            Err(err) => {
                tracing::debug!(%err, id, "emulator: cannot reach a compute");
                refuse(&mut stream, "Couldn't connect to compute node").await
            }
        }
    }

    /// Passes bytes both ways until one side ends.
    async fn pass(
        &self,
        stream: TlsStream<TcpStream>,
        begun: Begun,
        compute: &Compute,
        pooled: bool,
    ) -> io::Result<()> {
        let Begun {
            server,
            first,
            reached,
        } = begun;
        let (mut client_in, mut client_out) = tokio::io::split(stream);
        let (mut server_in, mut server_out) = server.into_split();
        let ended = {
            let upward = async {
                // Whatever ends it: the server hears the end, and has the last word.
                let _ = copy(&mut client_in, &mut server_out).await;
                let _ = server_out.shutdown().await;
            };
            let session = async {
                let key = login(first, &mut server_in, &mut client_out).await?;
                let _session = compute.log.session();
                let _key = key.map(|key| self.remember(key, reached.socket));
                copy(&mut server_in, &mut client_out).await
            };
            // Suspending kills the pooler first: its clients see a bare close, while direct ones hear it from Postgres.
            let cut = async {
                reached.run.cancelled().await;
                if !pooled {
                    std::future::pending::<()>().await;
                }
            };
            let downward = async {
                tokio::select! {
                    biased;
                    () = cut => Ok(()),
                    passed = session => passed.map(drop),
                }
            };
            tokio::pin!(upward, downward);
            tokio::select! {
                ended = &mut downward => ended,
                () = &mut upward => downward.await,
            }
        };
        client_out.shutdown().await?;
        ended
    }

    fn remember(&self, key: BackendKey, socket: PathBuf) -> Remembered<'_> {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, socket);
        Remembered { proxy: self, key }
    }

    /// Passes a cancel request on to the compute whose session it is about.
    async fn cancel(&self, key: BackendKey) -> io::Result<()> {
        let socket = self
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        let Some(socket) = socket else { return Ok(()) };
        let mut server = UnixStream::connect(socket).await?;
        server
            .write_all(&[&[0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e][..], &key].concat())
            .await?;
        server.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }
}

/// A session's key, known as long as the session lasts.
struct Remembered<'a> {
    proxy: &'a Proxy,
    key: BackendKey,
}

impl Drop for Remembered<'_> {
    fn drop(&mut self) {
        self.proxy
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

/// The endpoint that SNI or the option names; both must agree.
fn endpoint_named(sni: Option<&str>, option: Option<&str>) -> Result<String, String> {
    let from_sni = sni
        .and_then(|name| name.split('.').next())
        .filter(|label| label.starts_with("ep-"));
    match (from_sni, option) {
        (Some(sni), Some(option)) if sni != option => Err(format!(
            "Inconsistent project name inferred from SNI ('{sni}') and project option ('{option}')."
        )),
        (Some(named), _) | (None, Some(named)) => Ok(named.to_owned()),
        (None, None) => Err(NO_ENDPOINT.to_owned()),
    }
}

/// A session that Postgres has taken up.
struct Begun {
    server: UnixStream,
    /// What it said first.
    first: Message,
    reached: Reached,
}

/// Wakes the compute, connects and sends the startup packet; again if the compute was stopped in between, which the
/// client does not notice at Neon either.
async fn begin(
    compute: &Arc<Compute>,
    startup: &[u8],
) -> Result<Begun, Box<dyn Error + Send + Sync>> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for _ in 0..TRIES {
        let reached = compute.wake().await?;
        let attempt = async {
            let mut server = UnixStream::connect(&reached.socket).await?;
            server.write_all(startup).await?;
            let first = Message::read(&mut server).await?;
            Ok::<_, io::Error>((server, first))
        };
        match attempt.await {
            Ok((_, first)) if first.text(b'C').as_deref() == Some(CANNOT_CONNECT_NOW) => {}
            Ok((server, first)) if !reached.run.is_cancelled() => {
                return Ok(Begun {
                    server,
                    first,
                    reached,
                });
            }
            Ok(_) => {}
            Err(err) => last = err,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(last.into())
}

/// A message of the server's.
struct Message(Vec<u8>);

impl Message {
    async fn read(server: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = vec![0; 5];
        server.read_exact(&mut bytes).await?;
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        bytes.resize(length + 1, 0);
        server.read_exact(&mut bytes[5..]).await?;
        Ok(Self(bytes))
    }

    fn tag(&self) -> u8 {
        self.0[0]
    }

    fn body(&self) -> &[u8] {
        &self.0[5..]
    }

    /// A field of an error.
    fn text(&self, field: u8) -> Option<String> {
        let fields = (self.tag() == b'E').then(|| self.body().split(|&byte| byte == 0))?;
        let found = fields
            .into_iter()
            .find_map(|text| text.strip_prefix(&[field]))?;
        Some(String::from_utf8_lossy(found).into_owned())
    }
}

/// Passes the server's messages on, from `first` to the first ReadyForQuery; the key is what BackendKeyData said. An
/// error loses its severity and its code on the way, as at Neon.
async fn login(
    first: Message,
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Option<BackendKey>> {
    let (mut key, mut message) = (None, first);
    loop {
        match message.tag() {
            b'E' => {
                let text = message.text(b'M').unwrap_or_default();
                let refused = message.text(b'C').as_deref() == Some(INVALID_PASSWORD);
                let text = if refused {
                    text.replace('"', "'")
                } else {
                    text
                };
                refuse(client, &text).await?;
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            b'K' => key = message.body().try_into().ok(),
            _ => {}
        }
        client.write_all(&message.0).await?;
        if !matches!(message.tag(), b'S' | b'K') {
            client.flush().await?;
        }
        if message.tag() == b'Z' {
            return Ok(key);
        }
        message = Message::read(server).await?;
    }
}
