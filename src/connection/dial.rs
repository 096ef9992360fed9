//! Opens a connection with exactly one login, and taps it from its first byte.
//!
//! tokio-postgres's own `connect` repeats a refused login at every address of the host, and its `connect_timeout`
//! covers only TCP. Here the addresses race only for the socket, the login is sent once, and one deadline covers both.

mod hosts;
mod negotiated;
pub(crate) mod opened;
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

use self::{hosts::Hosts, opened::Opened};
use super::{
    driver::{Drive, Notifications},
    status::{ConnectionStatus, TrackedTask},
    stream::{Pipes, Socket, Stream},
    verdict::{self, DialFailure},
};
use crate::{
    limits::budget::{Budget, Owner, Permit, PermitId},
    model::{
        endpoint::{Encryption, Endpoint, Route},
        error::{Error, ErrorKind},
        resolve::AnyResolve,
    },
    sync::{clock::Clock, progress::Progress},
};

/// Approximate time after which a vanished peer is noticed.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

type TlsConnector = <MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect;

/// Opens connections within the budget. All tenants share one dialer.
pub(crate) struct Dialer {
    pub(crate) budget: Arc<Budget>,
    /// The clock of the router, by which its connections tell their times.
    pub(crate) clock: Clock,
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

/// The start of a dial.
pub(crate) enum Start {
    /// The permit to open a connection.
    Permit(Permit),
    /// A connection that was opened before, at the same endpoint and route.
    Opened(Opened),
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
            clock: Clock::start(),
            resolve,
            pipes,
            tls: MakeRustlsConnect::new(tls),
            hosts: Hosts::default(),
        }
    }

    /// Waits for the permit to open one more connection for `owner`. `None` is for a connection of no pool.
    ///
    /// # Errors
    /// The timeout of `progress` if its deadline passes first.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the turn.
    pub(crate) async fn permit(
        &self,
        owner: Option<&Weak<dyn Owner>>,
        progress: &Progress,
    ) -> Result<Permit, Error> {
        let mut permit = pin!(self.budget.take(owner));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return Ok(permit);
        }
        progress.note(&self.all_in_use_error());
        let permit = timeout_at(progress.deadline(), permit).await;
        permit.map_err(|_| progress.timed_out())
    }

    /// Returns the error for a caller that waits while all connections are in use.
    pub(crate) fn all_in_use_error(&self) -> Error {
        let limit = self.budget.limit();
        let message = format!(
            "all {limit} connections are in use; raise max_connections, or hold them for less time"
        );
        Error::new(ErrorKind::Overloaded, message).with_retry_after(self.budget.wait())
    }

    /// Logs in at `endpoint`, once, by `deadline`. The permit lasts until the other side has ended the connection.
    /// `on_opened` is called just before the login is sent, with the time that the opening took.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket. A wake that it has started at Neon goes on.
    pub(crate) async fn dial(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        deadline: Instant,
        start: Start,
        on_opened: impl FnOnce(Duration) + Send,
    ) -> Result<Dialed, Error> {
        let reached = OnceLock::new(); // keeps the address if the attempt is dropped at its deadline
        // Boxed, so that the futures of its callers stay small.
        let attempt = async {
            let opened = match start {
                Start::Permit(permit) => {
                    Box::pin(self.open(endpoint, route, permit, &reached)).await?
                }
                Start::Opened(opened) => {
                    let _ = opened.address.map(|address| reached.set(address));
                    opened
                }
            };
            on_opened(opened.age());
            Box::pin(self.log_in(route, opened)).await
        };
        let dialed = timeout_at(deadline, attempt).await;
        let dialed = dialed.unwrap_or(Err(DialFailure::Silent));
        if let Some(address) = reached.get() {
            let answered = match &dialed {
                Ok(dialed) => {
                    let _ = dialed.status.peer.set(*address);
                    true
                }
                Err(DialFailure::Login(err)) => err.as_db_error().is_some(),
                Err(DialFailure::Unreachable(_) | DialFailure::Silent) => false,
            };
            self.hosts.note(*address, answered);
        }
        self.judge(endpoint, route, dialed)
    }

    /// Turns a failed login into the error for its callers. While a password is being changed, the proxy may accept an
    /// outdated one that the database refuses, and may refuse the new one for a while. So an outdated password is
    /// remembered until a login succeeds.
    fn judge(
        &self,
        endpoint: &Endpoint,
        route: Route,
        dialed: Result<Dialed, DialFailure>,
    ) -> Result<Dialed, Error> {
        let (host, port) = (endpoint.host(route), endpoint.port);
        let (key, password) = (host_key(host, port), &endpoint.password);
        let failure = match dialed {
            Ok(dialed) => {
                self.hosts.note_login(&key);
                return Ok(dialed);
            }
            Err(failure) => failure,
        };
        let may_lag = self.hosts.may_lag_behind(&key, password);
        let err = verdict::on_connect(failure, host, port, may_lag);
        if err.kind() == ErrorKind::StaleCredential && !may_lag {
            self.hosts.note_outdated(&key, password);
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
        // The earlier addresses have failed, or were silent for longer than the race waits.
        for overtaken in &addresses[..number] {
            self.hosts.note(*overtaken, false);
        }
        Ok((tuned(stream).map(Socket::Tcp)?, Some(addresses[number])))
    }
}

/// Returns the key under which a host is remembered.
fn host_key(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// Returns the task that drives `connection`, and the receiver of its notifications, which a pooler does not send.
fn into_task<S, T>(
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
            let (drive, notifications) = Drive::with_notifications(connection);
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
