//! One connection, opened once, watched from its first byte.
//!
//! tokio-postgres's own `connect` repeats a refused login at every address of the host, and its `connect_timeout` ends
//! with TCP. Here the addresses race only for the socket; the login is sent once; one deadline stands over all of it.

mod hosts;
mod race;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{CancelToken, Client, Connection, NoTls, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use self::hosts::Hosts;
use super::{
    driver::{Drive, Notifications},
    status::{ConnectionStatus, TrackedTask},
    stream::{Pipes, Socket, Stream},
    tap::{Tap, Tapped},
    verdict::{self, DialFailure},
};
use crate::{
    limits::budget::{Budget, Owner, Permit, PermitId},
    model::{
        endpoint::{Encryption, Endpoint, Route},
        error::{Error, ErrorKind},
        resolve::AnyResolve,
    },
    sync::progress::Progress,
};

/// A peer that vanished without a word is noticed after about this long.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

type Connector = <MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect;

/// Opens connections, as many as there may be. One for all tenants.
pub(crate) struct Dialer {
    pub(crate) budget: Arc<Budget>,
    resolve: Arc<dyn AnyResolve>,
    /// Opened instead of sockets, if there.
    pipes: Option<Pipes>,
    tls: MakeRustlsConnect,
    hosts: Hosts,
}

/// A connection that has logged in.
pub(crate) struct Dialed {
    pub(crate) client: Client,
    pub(crate) watch: Arc<ConnectionStatus>,
    /// By which the budget knows it.
    pub(crate) seat: PermitId,
    /// Where it was opened.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Moves the bytes; must run for the client to work, and ends with the connection.
    pub(crate) task: ConnectionTask,
    /// What the server says unasked, on a direct connection.
    pub(crate) notifications: Option<Notifications>,
}

pub(crate) type ConnectionTask =
    Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

impl Dialer {
    pub(crate) fn new(
        budget: Arc<Budget>,
        resolve: Arc<dyn AnyResolve>,
        pipes: Option<Pipes>,
        tls: ClientConfig,
    ) -> Self {
        Self {
            budget,
            resolve,
            pipes,
            tls: MakeRustlsConnect::new(tls),
            hosts: Hosts::default(),
        }
    }

    /// The right to open one more connection, when it is the turn of `holder`, or of a connection that is nobody's.
    ///
    /// # Errors
    /// What `progress` says if its time is over.
    ///
    /// # Cancel safety
    /// Dropping it gives up the turn.
    pub(crate) async fn permit(
        &self,
        holder: Option<&Weak<dyn Owner>>,
        progress: &Progress,
    ) -> Result<Permit, Error> {
        let mut taken = pin!(self.budget.take(holder));
        if let Some(permit) = taken.as_mut().now_or_never() {
            return Ok(permit);
        }
        progress.note(&self.all_in_use());
        let taken = timeout_at(progress.deadline(), taken).await;
        taken.map_err(|_| progress.timed_out())
    }

    /// The error for whoever waits for a connection that nobody has to spare.
    pub(crate) fn all_in_use(&self) -> Error {
        let limit = self.budget.limit();
        let message = format!(
            "all {limit} connections are in use; raise max_connections, or hold them for less time"
        );
        Error::new(ErrorKind::Overloaded, message).with_retry_after(self.budget.wait())
    }

    /// Logs in at `endpoint`, once, by `deadline`. The permit lasts until the other side has ended the connection.
    ///
    /// # Cancel safety
    /// Dropping it closes the socket; at Neon the wake it may have started goes on.
    pub(crate) async fn dial(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        deadline: Instant,
        permit: Permit,
    ) -> Result<Dialed, Error> {
        let reached = OnceLock::new();
        let attempt = self.attempt(endpoint, route, permit, &reached);
        let dialed = timeout_at(deadline, attempt).await;
        let dialed = dialed.unwrap_or(Err(DialFailure::Silent));
        if let Some(address) = reached.get() {
            let answered = match &dialed {
                Ok(dialed) => dialed.watch.peer.set(*address).is_ok(),
                Err(DialFailure::Login(err)) => err.as_db_error().is_some(),
                Err(DialFailure::Unreachable(_) | DialFailure::Silent) => false,
            };
            self.hosts.note(*address, answered);
        }
        self.learn(endpoint, route, dialed)
    }

    /// Tries once, and says in `reached` which address has taken the socket.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        permit: Permit,
        reached: &OnceLock<SocketAddr>,
    ) -> Result<Dialed, DialFailure> {
        let seat = permit.seat();
        let opened = self.open(endpoint.host(route), endpoint.port).await;
        let (socket, address) = opened.map_err(DialFailure::Unreachable)?;
        let _ = address.map(|address| reached.set(address));
        let stream = Stream::new(socket, Some(permit));
        self.log_in(endpoint, route, stream, seat).await
    }

    /// Remembers what the end of a login says of the host's password, and tells its failure in the light of that.
    fn learn(
        &self,
        endpoint: &Endpoint,
        route: Route,
        dialed: Result<Dialed, DialFailure>,
    ) -> Result<Dialed, Error> {
        let (host, port) = (endpoint.host(route), endpoint.port);
        let (place, password) = (place(host, port), &endpoint.password);
        let failure = match dialed {
            Ok(dialed) => {
                self.hosts.note_login(&place);
                return Ok(dialed);
            }
            Err(failure) => failure,
        };
        let lags = self.hosts.may_lag_behind(&place, password);
        let err = verdict::on_connect(failure, host, port, lags);
        if err.kind() == ErrorKind::StaleCredential && !lags {
            self.hosts.note_outdated(&place, password);
        }
        Err(err)
    }

    /// Asks the server at `peer`, which is that of the connection that `token` belongs to, to stop what runs on it. Nobody
    /// learns whether it did, only whether the request got through.
    pub(crate) async fn cancel(
        &self,
        token: CancelToken,
        endpoint: &Endpoint,
        route: Route,
        peer: Option<&SocketAddr>,
    ) -> io::Result<()> {
        let host = endpoint.host(route);
        let request = async {
            let socket = match peer {
                Some(peer) => tuned(TcpStream::connect(peer).await?).map(Socket::Tcp)?,
                None => self.open(host, endpoint.port).await?.0,
            };
            let stream = Stream::new(socket, None); // no session, so nothing to count
            let sent = match endpoint.encryption {
                Encryption::None => token.cancel_query_raw(stream, NoTls).await,
                Encryption::Tls => token.cancel_query_raw(stream, self.connector(host)?).await,
            };
            sent.map_err(io::Error::other)
        };
        let sent = timeout(CANCEL_TIMEOUT, request).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(err) = &sent {
            tracing::debug!(host, %err, "cancel request failed");
        }
        sent
    }

    async fn log_in(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        stream: Stream,
        seat: PermitId,
    ) -> Result<Dialed, DialFailure> {
        let host = endpoint.host(route);
        let config = endpoint.pg_config();
        let watch = ConnectionStatus::with_reset(endpoint.session_reset_at(route));
        let (client, (task, notifications)) = match endpoint.encryption {
            Encryption::None => {
                let tapped = Tap::new(stream, Arc::clone(&watch));
                let connected = config.connect_raw(tapped, NoTls).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, driven(connection, &watch, route))
            }
            Encryption::Tls => {
                let connector = self.connector(host).map_err(DialFailure::Unreachable)?;
                let tls = Tapped {
                    connector,
                    watch: Arc::clone(&watch),
                };
                let connected = config.connect_raw(stream, tls).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, driven(connection, &watch, route))
            }
        };
        watch.mark_logged_in();
        Ok(Dialed {
            client,
            watch,
            seat,
            endpoint: Arc::clone(endpoint),
            task,
            notifications,
        })
    }

    fn connector(&self, host: &str) -> io::Result<Connector> {
        <MakeRustlsConnect as MakeTlsConnect<Stream>>::make_tls_connect(&mut self.tls.clone(), host)
            .map_err(io::Error::other)
    }

    /// Opens a socket to the address of `host` that answers first, and says which that is; a pipe has none.
    async fn open(&self, host: &str, port: u16) -> io::Result<(Socket, Option<SocketAddr>)> {
        if let Some(pipes) = &self.pipes {
            return Ok((pipes.open(host, port).await?, None));
        }
        let addresses = self.resolve.resolve(host, port).await?;
        let addresses = race::order(addresses, |it| self.hosts.is_useless(it));
        let (number, stream) = race::race(&addresses, TcpStream::connect).await?;
        for overtaken in &addresses[..number] {
            self.hosts.note(*overtaken, false);
        }
        Ok((tuned(stream).map(Socket::Tcp)?, Some(addresses[number])))
    }
}

/// Key by which a host is remembered.
fn place(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// The task that drives `connection`, and where its notifications come out: where a pooler stands there are none.
fn driven<S, T>(
    connection: Connection<S, T>,
    watch: &Arc<ConnectionStatus>,
    route: Route,
) -> (ConnectionTask, Option<Notifications>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (drive, notifications) = match route {
        Route::Pooled => (Drive::new(connection), None),
        Route::Direct => {
            let (drive, notifications) = Drive::telling(connection);
            (drive, Some(notifications))
        }
    };
    (
        Box::pin(TrackedTask::new(drive, Arc::clone(watch))),
        notifications,
    )
}

/// Sets what notices a peer that vanished: keepalive when idle, a limit on unacknowledged data when not.
///
/// Neither reaches Postgres: Neon's proxy answers both, so a sleeping compute sleeps on.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(PEER_TIMEOUT)
        .with_interval(PEER_TIMEOUT / 3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    Ok(stream)
}
