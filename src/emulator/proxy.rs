//! The proxy in front of all computes: finds the endpoint, wakes it, passes bytes.

use std::{
    collections::{BTreeMap, HashMap},
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
use tokio_util::sync::CancellationToken;

use super::{
    compute::{Compute, Reached},
    startup::{BackendKey, Hello, endpoint_option, forwarded, refuse},
    world::World,
};

/// Neon's limit for TLS and the startup packet.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

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
        let Some(compute) = self.world.compute(id) else {
            return refuse(
                &mut stream,
                &format!("password authentication failed for user '{user}'"),
            )
            .await;
        };
        compute.log.auth_attempt();
        let (server, reached) = match reach(&compute).await {
            Ok(reached) => reached,
            Err(err) => {
                tracing::debug!(%err, id, "emulator: cannot reach a compute");
                return refuse(&mut stream, "Couldn't connect to compute node").await;
            }
        };
        // Suspending kills the pooler first: its clients see a bare close, while direct ones hear it from Postgres.
        let cut = if pooled {
            reached.pooler
        } else {
            CancellationToken::new()
        };
        self.pass(
            stream,
            server,
            forwarded(&parameters),
            &compute,
            reached.socket,
            cut,
        )
        .await
    }

    /// Passes bytes both ways until one side ends.
    async fn pass(
        &self,
        stream: TlsStream<TcpStream>,
        mut server: UnixStream,
        startup: Vec<u8>,
        compute: &Compute,
        socket: PathBuf,
        cut: CancellationToken,
    ) -> io::Result<()> {
        server.write_all(&startup).await?;
        let (mut client_in, mut client_out) = tokio::io::split(stream);
        let (mut server_in, mut server_out) = server.into_split();
        let upward = async {
            copy(&mut client_in, &mut server_out).await?;
            server_out.shutdown().await
        };
        let downward = async {
            let key = login(&mut server_in, &mut client_out).await?;
            let _session = compute.log.session();
            let _key = key.map(|key| self.remember(key, socket));
            let copied = tokio::select! {
                copied = copy(&mut server_in, &mut client_out) => copied.map(drop),
                () = cut.cancelled() => Ok(()),
            };
            client_out.shutdown().await?;
            copied
        };
        tokio::pin!(upward, downward);
        tokio::select! {
            ended = &mut downward => ended,
            ended = &mut upward => match ended {
                Ok(()) => downward.await, // the server has heard the goodbye and ends as well
                Err(err) => Err(err),
            },
        }
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

/// Wakes the compute and connects; once more if it was stopped in between.
async fn reach(
    compute: &Arc<Compute>,
) -> Result<(UnixStream, Reached), Box<dyn std::error::Error + Send + Sync>> {
    let reached = compute.wake().await?;
    if let Ok(server) = UnixStream::connect(&reached.socket).await {
        return Ok((server, reached));
    }
    let reached = compute.wake().await?;
    Ok((UnixStream::connect(&reached.socket).await?, reached))
}

/// Passes the server's messages on until the first ReadyForQuery; the key is what BackendKeyData said.
async fn login(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Option<BackendKey>> {
    let mut key = None;
    loop {
        let mut message = vec![0; 5];
        server.read_exact(&mut message).await?;
        let length = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
        message.resize(length + 1, 0);
        server.read_exact(&mut message[5..]).await?;
        if message[0] == b'K' {
            key = message[5..].try_into().ok();
        }
        client.write_all(&message).await?;
        if message[0] != b'S' && message[0] != b'K' {
            client.flush().await?;
        }
        if message[0] == b'Z' {
            return Ok(key);
        }
    }
}
