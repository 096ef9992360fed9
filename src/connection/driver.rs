//! The driver of a connection: it moves the bytes, and forwards the server's notifications.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{self, error::TrySendError},
};
use tokio_postgres::{AsyncMessage, Connection, Notification};

/// Most notifications that wait for their reader. Further ones are dropped, so that queries go on.
const WAITING: usize = 1024;

/// The receiver of a connection's notifications.
pub(crate) type Notifications = mpsc::Receiver<Notification>;

/// Drives a connection until it ends.
pub(super) struct Drive<S, T> {
    connection: Connection<S, T>,
    sender: Option<mpsc::Sender<Notification>>,
}

impl<S, T> Drive<S, T> {
    /// Creates a driver of `connection` that drops its notifications.
    pub(super) fn new(connection: Connection<S, T>) -> Self {
        let sender = None;
        Self { connection, sender }
    }

    /// Creates a driver of `connection` that forwards its notifications.
    pub(super) fn with_notifications(connection: Connection<S, T>) -> (Self, Notifications) {
        let (sender, notifications) = mpsc::channel(WAITING);
        let sender = Some(sender);
        (Self { connection, sender }, notifications)
    }
}

impl<S, T> Future for Drive<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), tokio_postgres::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match ready!(self.connection.poll_message(cx)) {
                Some(Ok(AsyncMessage::Notification(message))) => {
                    let sent = self.sender.as_ref().map(|sender| sender.try_send(message));
                    if let Some(Err(TrySendError::Full(lost))) = sent {
                        let channel = lost.channel();
                        tracing::warn!(
                            channel,
                            "a notification is lost, because the application does not read them fast enough"
                        );
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(err)) => return Poll::Ready(Err(err)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}
