//! The task that drives an open connection, and tells the pool when it ends.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio_postgres::Client;

use super::deadpool::into_pooled_client;
use crate::{
    connection::{
        Connection,
        dial::{ConnectionTask, Dialed},
        status::ConnectionStatus,
    },
    pool::Pool,
    telemetry::stats::count,
};

/// Longest wait for the server to end a connection that the pool closes.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the task of a new connection, and hands the connection to a waiter.
pub(super) fn start_and_hand_out(pool: &Arc<Pool>, dialed: Dialed) {
    let Dialed {
        client,
        status,
        permit_id,
        endpoint,
        task,
        ..
    } = dialed;
    match start(pool, client, task, &status, ()) {
        Some(client) => pool.hand_out(Connection::new(client, status, permit_id, endpoint)),
        None => status.mark_closing(),
    }
}

/// Starts the task of a new connection, and returns deadpool-postgres's client for it. `held` is dropped when the
/// connection has ended.
pub(crate) fn start(
    pool: &Arc<Pool>,
    client: Client,
    task: ConnectionTask,
    status: &Arc<ConnectionStatus>,
    held: impl Send + 'static,
) -> Option<deadpool_postgres::Client> {
    let shared = &pool.shared;
    count(&shared.stats.opened);
    let on_close = OnClose::new(pool, status);
    let driven = async move {
        drive_connection(task, on_close).await;
        drop(held);
    };
    shared.connections.spawn_on(driven, &shared.runtime);
    // deadpool's client aborts this handle on drop. The real task must go on, to close the session properly.
    let stand_in = shared.runtime.spawn(std::future::ready(()));
    into_pooled_client(client, stand_in)
}

/// Drives a connection until it ends. After each poll, checks whether a request runs on it although it is idle.
async fn drive_connection(mut task: ConnectionTask, on_close: OnClose) {
    let driven = poll_fn(|cx| {
        let polled = task.as_mut().poll(cx);
        if polled.is_pending() && on_close.status.is_stray() {
            on_close.pool.remove_stray(&on_close.status);
        }
        polled
    });
    tokio::select! {
        biased;
        result = driven => if let Err(err) = result {
            tracing::debug!(%err, "connection ended");
        },
        () = on_close.status.close_timed_out(FAREWELL_TIMEOUT) => {}
    }
    drop(task); // closes the socket before the pool counts the connection as ended
    drop(on_close);
}

/// Guard that tells the pool, on drop, that a connection's task has ended.
struct OnClose {
    // A reference cycle, which ends when the connection does: a pool that has left the cache closes its connections. As
    // long as one of them is open, a tenant that comes back finds this pool, which counts it.
    pool: Arc<Pool>,
    status: Arc<ConnectionStatus>,
}

impl OnClose {
    fn new(pool: &Arc<Pool>, status: &Arc<ConnectionStatus>) -> Self {
        Self {
            pool: Arc::clone(pool),
            status: Arc::clone(status),
        }
    }
}

impl Drop for OnClose {
    fn drop(&mut self) {
        self.status.mark_ended(); // also if the task was dropped before its end
        self.pool.on_closed(&self.status);
    }
}
