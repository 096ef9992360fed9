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
    told: Option<mpsc::Sender<Notification>>,
}

impl<S, T> Drive<S, T> {
    /// Creates a driver of `connection` that drops its notifications.
    pub(crate) fn new(connection: Connection<S, T>) -> Self {
        let told = None;
        Self { connection, told }
    }

    /// Creates a driver of `connection` that forwards its notifications.
    pub(super) fn telling(connection: Connection<S, T>) -> (Self, Notifications) {
        let (told, notifications) = mpsc::channel(WAITING);
        let told = Some(told);
        (Self { connection, told }, notifications)
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
                    let told = self.told.as_ref().map(|told| told.try_send(message));
                    if let Some(Err(TrySendError::Full(lost))) = told {
                        let channel = lost.channel();
                        tracing::warn!(channel, "nobody reads the notifications; one is lost");
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(err)) => return Poll::Ready(Err(err)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}
