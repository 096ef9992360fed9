//! Opens a connection with exactly one login, and taps it from its first byte.
//!
//! tokio-postgres's own `connect` repeats a refused login at every address of the host, and its `connect_timeout`
//! covers only TCP. Here the addresses race only for the socket, the login is sent once, and one deadline covers both.

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

/// Approximate time after which a vanished peer is noticed.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

type TlsConnector = <MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect;

/// Opens connections within the budget. All tenants share one dialer.
pub(crate) struct Dialer {
    pub(crate) budget: Arc<Budget>,
    resolve: Arc<dyn AnyResolve>,
    /// The source of pipes, which replace sockets if it is set.
    pipes: Option<Pipes>,
    tls: MakeRustlsConnect,
    hosts: Hosts,
}

/// A connection that has logged in.
pub(crate) struct Dialed {
    pub(crate) client: Client,
    pub(crate) status: Arc<ConnectionStatus>,
    /// The id of its permit in the budget.
    pub(crate) permit_id: PermitId,
    /// The endpoint at which it was opened.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The task that moves the bytes. It must run for the client to work, and ends with the connection.
    pub(crate) task: ConnectionTask,
    /// The server's notifications, on a direct connection.
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

    /// Waits for the permit to open one more connection for `holder`. `None` is for a connection of no pool.
    ///
    /// # Errors
    /// The timeout of `progress` if its deadline passes first.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
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

    /// Returns the error for a caller that waits while all connections are in use.
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
    /// Dropping the future closes the socket. A wake that it has started at Neon goes on.
    pub(crate) async fn dial(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        deadline: Instant,
        permit: Permit,
    ) -> Result<Dialed, Error> {
        let reached = OnceLock::new();
        let attempt = self.connect_and_log_in(endpoint, route, permit, &reached);
        let dialed = timeout_at(deadline, attempt).await;
        let dialed = dialed.unwrap_or(Err(DialFailure::Silent));
        if let Some(address) = reached.get() {
            let answered = match &dialed {
                Ok(dialed) => dialed.status.peer.set(*address).is_ok(),
                Err(DialFailure::Login(err)) => err.as_db_error().is_some(),
                Err(DialFailure::Unreachable(_) | DialFailure::Silent) => false,
            };
            self.hosts.note(*address, answered);
        }
        self.learn(endpoint, route, dialed)
    }

    /// Tries once, and stores in `reached` the address that accepted the socket.
    async fn connect_and_log_in(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        permit: Permit,
        reached: &OnceLock<SocketAddr>,
    ) -> Result<Dialed, DialFailure> {
        let permit_id = permit.id();
        let opened = self.open_socket(endpoint.host(route), endpoint.port).await;
        let (socket, address) = opened.map_err(DialFailure::Unreachable)?;
        let _ = address.map(|address| reached.set(address));
        let stream = Stream::new(socket, Some(permit));
        self.log_in(endpoint, route, stream, permit_id).await
    }

    /// Updates the memory of the host's outdated password by the result of a login, and judges a failed login by it.
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

    /// Asks the server at `peer`, the address of `token`'s connection, to stop what runs on it. The result says whether
    /// the request was sent, not whether a query was stopped.
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
                None => self.open_socket(host, endpoint.port).await?.0,
            };
            let stream = Stream::new(socket, None); // no session, so no permit
            let sent = match endpoint.encryption {
                Encryption::None => token.cancel_query_raw(stream, NoTls).await,
                Encryption::Tls => {
                    token
                        .cancel_query_raw(stream, self.tls_connector(host)?)
                        .await
                }
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
        permit_id: PermitId,
    ) -> Result<Dialed, DialFailure> {
        let host = endpoint.host(route);
        let config = endpoint.pg_config();
        let status = ConnectionStatus::with_reset(endpoint.session_reset_at(route));
        let (client, (task, notifications)) = match endpoint.encryption {
            Encryption::None => {
                let tapped = Tap::new(stream, Arc::clone(&status));
                let connected = config.connect_raw(tapped, NoTls).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, driven(connection, &status, route))
            }
            Encryption::Tls => {
                let connector = self.tls_connector(host).map_err(DialFailure::Unreachable)?;
                let tls = Tapped {
                    connector,
                    status: Arc::clone(&status),
                };
                let connected = config.connect_raw(stream, tls).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, driven(connection, &status, route))
            }
        };
        status.mark_logged_in();
        Ok(Dialed {
            client,
            status,
            permit_id,
            endpoint: Arc::clone(endpoint),
            task,
            notifications,
        })
    }

    fn tls_connector(&self, host: &str) -> io::Result<TlsConnector> {
        <MakeRustlsConnect as MakeTlsConnect<Stream>>::make_tls_connect(&mut self.tls.clone(), host)
            .map_err(io::Error::other)
    }

    /// Opens a socket to the address of `host` that answers first, and returns that address too. A pipe has no address.
    async fn open_socket(&self, host: &str, port: u16) -> io::Result<(Socket, Option<SocketAddr>)> {
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

/// Returns the key under which a host is remembered.
fn place(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// Returns the task that drives `connection`, and the receiver of its notifications, which a pooler does not send.
fn driven<S, T>(
    connection: Connection<S, T>,
    status: &Arc<ConnectionStatus>,
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
        Box::pin(TrackedTask::new(drive, Arc::clone(status))),
        notifications,
    )
}

/// Sets the options that detect a vanished peer: keepalive on an idle socket, a limit on unacknowledged data otherwise.
///
/// Neither reaches Postgres: Neon's proxy answers both, so a sleeping compute stays asleep.
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
