//! A doorbell: somebody has written, so it may be worth asking for changes.
//!
//! What was written is never read from a notification. One can get lost, with the connection or with a pooler in between,
//! and then the next question for changes answers just the same.

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

/// Waits between two attempts to listen.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Whoever listened so long had a good connection.
const SETTLED: Duration = Duration::from_secs(60);

/// Listens on a connection of its own, from the first time that somebody waits until it is dropped.
pub(super) struct Listener {
    channel: String,
    rung: watch::Sender<u64>,
    // Held for a look or a start.
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

    /// Waits until it has rung more often than `heard` says, which is then raised.
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

    /// Starts to listen, also again if the runtime of the last task has ended.
    fn start(&self, connections: &Connections) {
        let mut task = lock(&self.task);
        if task.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let (connections, channel) = (connections.clone(), self.channel.clone());
            let listening = listen(connections, channel, self.rung.clone());
            *task = Some(AbortOnDropHandle::new(tokio::spawn(listening)));
        }
    }
}

/// Listens until it is aborted, and connects again whenever the connection ends.
async fn listen(connections: Connections, channel: String, rung: watch::Sender<u64>) {
    let waits = || backoff(FIRST_WAIT, LONGEST_WAIT);
    let (mut next, mut began) = (waits(), Instant::now());
    loop {
        match listen_once(&connections, &channel, &rung).await {
            Ok(()) => tracing::debug!("the catalog's listener was cut off"),
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
            ring(rung); // for what was missed until now
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

/// Reads whatever the server has sent; says whether it has ended the connection.
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
