//! Sockets that are ready for a login.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{io::AsyncReadExt, time::Instant};
use tokio_postgres::{NoTls, tls::TlsConnect};

use super::{Dialed, Dialer, TlsConnector, into_task, negotiated};
use crate::{
    connection::{status::ConnectionStatus, stream::Stream, tap::Tap, verdict::DialFailure},
    limits::budget::{Permit, PermitId},
    model::endpoint::{Encryption, Endpoint, Route},
};

/// Time for which a socket can wait for its login. Neon's proxy takes no startup packet that comes later than 15 s.
pub(crate) const LIFE: Duration = Duration::from_secs(10);

type Encrypted = <TlsConnector as TlsConnect<Stream>>::Stream;

/// A connection on which nothing of the login is sent: the socket is connected, and TLS is done if the endpoint has it.
///
/// A server counts neither a session nor an attempt to log in, and Neon's proxy does not wake the compute.
pub(crate) struct Opened {
    endpoint: Arc<Endpoint>,
    line: Line,
    permit_id: PermitId,
    pub(super) address: Option<SocketAddr>,
    /// The instant at which the opening began.
    since: Instant,
}

enum Line {
    Plain(Stream),
    Tls(Box<Encrypted>),
}

impl Opened {
    /// Returns the endpoint at which it was opened.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Returns the time since its opening began.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Returns whether a login can still be sent on it: it is young enough, and the other side has not ended it.
    pub(crate) fn is_usable(&mut self) -> bool {
        let mut unasked = [0];
        let read = match &mut self.line {
            Line::Plain(stream) => stream.read(&mut unasked).now_or_never(),
            Line::Tls(stream) => stream.read(&mut unasked).now_or_never(),
        };
        // A server says nothing before the login.
        read.is_none() && self.age() < LIFE
    }
}

impl Dialer {
    /// Opens a connection without logging in. Stores in `reached` the address that accepted the socket.
    pub(super) async fn open(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        permit: Permit,
        reached: &OnceLock<SocketAddr>,
    ) -> Result<Opened, DialFailure> {
        let (since, permit_id, host) = (Instant::now(), permit.id(), endpoint.host(route));
        let opened = self.open_socket(host, endpoint.port).await;
        let (socket, address) = opened.map_err(DialFailure::Unreachable)?;
        let _ = address.map(|address| reached.set(address));
        let stream = Stream::new(socket, Some(permit));
        let line = match endpoint.encryption {
            Encryption::None => Line::Plain(stream),
            Encryption::Tls => {
                let connector = self.tls_connector(host).map_err(DialFailure::Unreachable)?;
                let begun = negotiated::start_tls(&endpoint.pg_config(), stream, connector).await;
                Line::Tls(Box::new(begun.map_err(DialFailure::Login)?))
            }
        };
        Ok(Opened {
            endpoint: Arc::clone(endpoint),
            line,
            permit_id,
            address,
            since,
        })
    }

    /// Opens a connection for a later login; `None` if that fails.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub(crate) async fn open_spare(
        &self,
        endpoint: &Arc<Endpoint>,
        route: Route,
        permit: Permit,
    ) -> Option<Opened> {
        let reached = OnceLock::new();
        let opened = self.open(endpoint, route, permit, &reached).await;
        opened.ok() // a login will meet and report the cause
    }

    /// Logs in on an opened connection.
    pub(super) async fn log_in(&self, route: Route, opened: Opened) -> Result<Dialed, DialFailure> {
        let Opened {
            endpoint,
            line,
            permit_id,
            ..
        } = opened;
        let config = endpoint.pg_config();
        let status = ConnectionStatus::with_reset(endpoint.session_reset_at(route), self.clock);
        let (client, (task, notifications)) = match line {
            Line::Plain(stream) => {
                let tapped = Tap::new(stream, Arc::clone(&status));
                let connected = config.connect_raw(tapped, NoTls).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, into_task(connection, &status, route))
            }
            Line::Tls(stream) => {
                let tapped = Tap::new(*stream, Arc::clone(&status));
                let connected = negotiated::log_in(&config, tapped).await;
                let (client, connection) = connected.map_err(DialFailure::Login)?;
                (client, into_task(connection, &status, route))
            }
        };
        status.mark_logged_in();
        Ok(Dialed {
            client,
            status,
            permit_id,
            endpoint,
            task,
            notifications,
        })
    }
}
