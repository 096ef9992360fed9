//! A doorbell that rings when a record was written, so that the router asks for changes.
//!
//! A notification carries no data. It can get lost with the connection or at a pooler in between. The router's next
//! regular question for changes then returns the same answer.

use std::{
    future::poll_fn,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    pin,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Connection};
use tokio_util::task::AbortOnDropHandle;

use super::{connections::Connections, failure::Failure, schema::quoted};
use crate::sync::{lock, retry::backoff};

/// First wait between two attempts to listen.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Age of a connection above which the waits start again from the first.
const SETTLED: Duration = Duration::from_secs(60);

/// Listens on a connection of its own, from the first wait for a ring until it is dropped.
pub(super) struct Listener {
    channel: String,
    rung: watch::Sender<u64>,
    // Held to check the task or to start it.
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Listener {
    pub(super) fn new(channel: String) -> Self {
        Self {
            channel,
            rung: watch::Sender::new(0),
            task: Mutex::default(),
        }
    }

    /// Waits until the listener has rung more often than `heard` says, then raises `heard`.
    ///
    /// # Cancel safety
    /// A ring that is not returned wakes the next call.
    pub(super) async fn rings(&self, connections: &Connections, heard: &AtomicU64) {
        self.start(connections);
        let (mut rung, before) = (self.rung.subscribe(), heard.load(Relaxed));
        if let Ok(now) = rung.wait_for(|now| *now > before).await {
            heard.fetch_max(*now, Relaxed);
        }
    }

    /// Starts the task, unless it runs. The task ends with the runtime that it was started on.
    fn start(&self, connections: &Connections) {
        let mut task = lock(&self.task);
        if task.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let (connections, channel) = (connections.clone(), self.channel.clone());
            let listening = listen(connections, channel, self.rung.clone());
            *task = Some(AbortOnDropHandle::new(tokio::spawn(listening)));
        }
    }
}

/// Listens until it is aborted, and reconnects whenever the connection ends.
async fn listen(connections: Connections, channel: String, rung: watch::Sender<u64>) {
    let waits = || backoff(FIRST_WAIT, LONGEST_WAIT);
    let (mut next, mut began) = (waits(), Instant::now());
    loop {
        match listen_once(&connections, &channel, &rung).await {
            Ok(()) => tracing::debug!("the catalog's listener lost its connection"),
            Err(err) => tracing::debug!(
                error = &err as &dyn std::error::Error,
                "the catalog's listener failed"
            ),
        }
        if began.elapsed() > SETTLED {
            next = waits();
        }
        sleep(next.next().unwrap_or(LONGEST_WAIT)).await;
        began = Instant::now();
    }
}

/// Listens until the connection ends.
async fn listen_once(
    connections: &Connections,
    channel: &str,
    rung: &watch::Sender<u64>,
) -> Result<(), Failure> {
    let limit = connections.limit;
    let connected = timeout(limit, connections.config.connect(connections.tls.clone())).await;
    let (client, mut connection) = connected.map_err(|_| Failure::late(limit))??;
    let asked = timeout(limit, ask(&client, channel));
    pin!(asked);
    let mut listens = false;
    poll_fn(|cx| {
        if hears(&mut connection, cx, rung)? {
            return Poll::Ready(Ok(()));
        }
        if !listens && let Poll::Ready(answer) = asked.as_mut().poll(cx) {
            answer.map_err(|_| Failure::late(limit))??;
            listens = true;
            ring(rung); // for writes that were missed until now
        }
        Poll::Pending
    })
    .await
}

async fn ask(client: &Client, channel: &str) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(&format!("LISTEN {}", quoted(channel)))
        .await
}

/// Reads the messages that the server has sent. Returns whether the server has ended the connection.
fn hears<S, T>(
    connection: &mut Connection<S, T>,
    cx: &mut std::task::Context<'_>,
    rung: &watch::Sender<u64>,
) -> Result<bool, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match connection.poll_message(cx) {
            Poll::Ready(Some(Ok(AsyncMessage::Notification(_)))) => ring(rung),
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(err))) => return Err(err.into()),
            Poll::Ready(None) => return Ok(true),
            Poll::Pending => return Ok(false),
        }
    }
}

fn ring(rung: &watch::Sender<u64>) {
    rung.send_modify(|count| *count += 1);
}
