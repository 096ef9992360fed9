//! The proxy in front of all computes: it reads the client's first packets, finds its endpoint, and lets it in.
//!
//! The order is Neon's: TLS, startup packet, password. The proxy wakes the compute after that, and the client receives
//! nothing until the compute is up.

pub(in crate::emulator) mod certificate;
pub(in crate::emulator) mod login;
pub(in crate::emulator) mod message;
pub(in crate::emulator) mod replies;
pub(in crate::emulator) mod scram;
pub(in crate::emulator) mod session;
pub(in crate::emulator) mod startup;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use self::{
    login::Refusal,
    message::{Message, refuse},
    scram::Verifier,
    session::Sessions,
    startup::{Hello, endpoint_option, forwarded, negotiation},
};
use super::{compute::Compute, world::World};
use crate::model::secret::Secret;

/// Neon's time limit for TLS and the startup packet.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// The emulator's own role, which no client may use.
const ADMIN: &str = "cloud_admin";

const NO_TLS: &str = "connection is insecure (try using `sslmode=require`)";
const NO_ENDPOINT: &str = "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq) for SNI support or pass the endpoint ID (first part of the domain name) as a parameter: '?options=endpoint%3D<endpoint-id>'. See more at https://neon.tech/sni";

/// The TLS settings that every client meets first.
pub(super) struct Gate {
    tls: TlsAcceptor,
    /// Hash of the certificate, for channel binding.
    certificate: Vec<u8>,
}

impl Gate {
    pub(super) fn new(tls: Arc<ServerConfig>, certificate: Vec<u8>) -> Self {
        let tls = TlsAcceptor::from(tls);
        Self { tls, certificate }
    }
}

/// The state that the proxy needs to serve its clients.
pub(super) struct Proxy {
    world: Arc<World>,
    gate: Gate,
    sessions: Sessions,
    // Cancelled and replaced at a restart. Held only for short reads and writes.
    life: Mutex<CancellationToken>,
}

/// A client that has sent its startup packet.
struct Client {
    stream: TlsStream<TcpStream>,
    parameters: BTreeMap<String, String>,
}

impl Proxy {
    pub(super) fn new(world: Arc<World>, gate: Gate) -> Arc<Self> {
        let sessions = Sessions::default();
        Arc::new(Self {
            world,
            gate,
            sessions,
            life: Mutex::default(),
        })
    }

    /// Drops all client connections without a message, not even TLS's, and forgets the errors that it repeats, like a
    /// proxy that is killed and started again.
    pub(super) fn restart(&self) {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *life).cancel();
        self.world.forget();
    }

    fn life(&self) -> CancellationToken {
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.clone()
    }

    /// Serves clients until the future is dropped.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (proxy, life) = (Arc::clone(&self), self.life());
                    tokio::spawn(async move {
                        let served = life
                            .run_until_cancelled(Box::pin(proxy.client(stream)))
                            .await;
                        if let Some(Err(err)) = served {
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
        match timeout(HANDSHAKE_TIMEOUT, self.greet(stream)).await?? {
            Some(client) => self.admit(client).await,
            None => Ok(()),
        }
    }

    /// Starts TLS, with or without a request for it, then reads the startup packet. Returns `None` if the connection is
    /// done.
    async fn greet(&self, mut stream: TcpStream) -> io::Result<Option<Client>> {
        let mut first = [0];
        while stream.peek(&mut first).await? > 0 && first[0] != TLS_HANDSHAKE {
            match Hello::read(&mut stream).await? {
                Hello::Ssl => {
                    stream.write_all(b"S").await?;
                    break;
                }
                Hello::Gss => stream.write_all(b"N").await?,
                // libpq sends cancel requests without TLS.
                Hello::Cancel(key) => return self.sessions.cancel(key).await.map(|()| None),
                Hello::Startup(..) => {
                    return refuse(&mut stream, "XX000", NO_TLS).await.map(|()| None);
                }
            }
        }
        let mut stream = self.gate.tls.accept(stream).await?;
        self.note_handshake(&stream);
        match Hello::read(&mut stream).await? {
            Hello::Startup(minor, parameters) => {
                if let Some(answer) = negotiation(minor, &parameters) {
                    answer.write(&mut stream).await?;
                }
                Ok(Some(Client { stream, parameters }))
            }
            Hello::Cancel(key) => self.sessions.cancel(key).await.map(|()| None),
            Hello::Ssl | Hello::Gss => Ok(None),
        }
    }

    /// Records the handshake at the endpoint that its SNI names.
    fn note_handshake(&self, stream: &TlsStream<TcpStream>) {
        let (_, tls) = stream.get_ref();
        let Ok(Some(named)) = endpoint_named(tls.server_name(), None) else {
            return;
        };
        let (id, _) = split_pooled(&named);
        if let (Some(compute), Some(kind)) = (self.world.compute(id), tls.handshake_kind()) {
            compute.log.handshake(kind);
        }
    }

    /// Lets a client in and serves it to its end.
    async fn admit(&self, mut client: Client) -> io::Result<()> {
        match self.check(&mut client).await {
            Ok((compute, pooled, proved)) => {
                let Client { stream, parameters } = client;
                let startup = forwarded(&parameters);
                let codes = self.world.settings.live_codes;
                self.sessions
                    .serve(stream, &startup, &compute, pooled, proved, codes)
                    .await
            }
            Err(Refusal(text)) => {
                let code = code_of(self.world.settings.live_codes, &text);
                refuse(&mut client.stream, code, &text).await
            }
        }
    }

    /// Checks the login. Returns the client's compute, whether it wants the pooler, and the message that completes the
    /// login.
    async fn check(&self, client: &mut Client) -> Result<(Arc<Compute>, bool, Message), Refusal> {
        let Client { stream, parameters } = client;
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        let user = parameters.get("user").cloned();
        let user =
            user.ok_or_else(|| Refusal("Parameter 'user' is missing in startup packet.".into()))?;
        let Some(named) = endpoint_named(sni.as_deref(), endpoint_option(parameters))? else {
            let (named, password) = login::endpoint_in_password(stream, NO_ENDPOINT).await?;
            let (compute, pooled) = self.find(&named, &user)?;
            let password = Secret::new(password);
            let known = compute.filter(|compute| compute.contents().takes(&user, &password));
            let compute = known.ok_or_else(|| Refusal(login::wrong_password(&user)))?;
            return Ok((compute, pooled, Message::authentication(0, &[])));
        };
        let (compute, pooled) = self.find(&named, &user)?;
        // A client that names an endpoint or a role that does not exist is still asked for its password.
        let verifier = compute
            .as_ref()
            .map_or_else(Verifier::mock, |compute| compute.contents().verifier(&user));
        let proved = login::authenticate(stream, &user, &verifier, &self.gate.certificate).await?;
        let compute = compute.ok_or_else(|| Refusal(login::wrong_password(&user)))?;
        Ok((compute, pooled, proved))
    }

    /// Returns the compute that `named` names, and whether it names the pooler's host. Counts the attempt.
    fn find(&self, named: &str, user: &str) -> Result<(Option<Arc<Compute>>, bool), Refusal> {
        let (id, pooled) = split_pooled(named);
        let compute = self.world.compute(id).filter(|_| user != ADMIN);
        if let Some(compute) = &compute {
            compute.log.auth_attempt();
            if let Some(text) = compute.faults.on_access() {
                return Err(Refusal(text.to_owned()));
            }
        }
        Ok((compute, pooled))
    }
}

/// Returns the id of the endpoint that `named` names, and whether it names the pooler's host.
fn split_pooled(named: &str) -> (&str, bool) {
    match named.strip_suffix("-pooler") {
        Some(id) => (id, true),
        None => (named, false),
    }
}

/// Returns the endpoint that SNI or the option names. Both must agree. Returns `None` if neither names one.
fn endpoint_named(sni: Option<&str>, option: Option<&str>) -> Result<Option<String>, Refusal> {
    let from_sni = sni
        .and_then(|name| name.split('.').next())
        .filter(|label| label.starts_with("ep-"));
    match (from_sni, option) {
        (Some(sni), Some(option)) if sni != option => Err(Refusal(format!(
            "Inconsistent project name inferred from SNI ('{sni}') and project option ('{option}')."
        ))),
        (named, other) => Ok(named.or(other).map(str::to_owned)),
    }
}

/// Returns the SQLSTATE of an error before a session exists: `XX000` for everything, or the code that the live service
/// sends by now.
pub(super) fn code_of(live: bool, text: &str) -> &'static str {
    if !live {
        "XX000"
    } else if text.starts_with("password authentication failed") {
        "28P01"
    } else if text.starts_with("The endpoint has been disabled") {
        "28000"
    } else if text.starts_with("Failed to acquire permit") {
        "53300"
    } else {
        "XX000"
    }
}
