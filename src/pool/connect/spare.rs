//! Spares: connections that are opened while the wake's login waits for the compute, and log in when it is up.
//!
//! After a wake, each caller in the queue wants a connection at once. Its socket and TLS need no compute. Nothing of
//! the login is sent before the wake is over, so the proxy counts neither an attempt nor a session. A spare holds a
//! permit of the budget, and is closed as soon as another tenant needs that.

use std::{convert::Infallible, future::pending, iter, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::Connector;
use crate::{
    connection::dial::opened::{LIFE, Opened},
    limits::budget::Permit,
    model::endpoint::Endpoint,
    pool::{Pool, state::spares::Spare},
    sync::lock,
};

/// Shortest silence of a login that shows that the compute is starting.
const SOONEST: Duration = Duration::from_millis(5);
/// The silence that shows it in any case.
const LATEST: Duration = Duration::from_millis(250);

/// A spare to be opened.
struct NewSpare {
    endpoint: Arc<Endpoint>,
    permit: Permit,
    opened: oneshot::Sender<Opened>,
}

impl Connector<'_> {
    /// Notes that a login is sent, on a connection whose opening took `took`.
    pub(super) fn note_login_sent(&self, took: Duration) {
        // Without a wake, a login takes one and a half times as long as the socket and TLS before it.
        let patience = (2 * took).clamp(SOONEST, LATEST);
        *lock(&self.silent_from) = Some(Instant::now() + patience);
    }

    /// Opens a wake's spares, as long as its login is silent. Never returns.
    ///
    /// # Cancel safety
    /// Dropping the future ends the openings in progress. Spares that are open stay in the pool's state.
    pub(super) async fn keep_spares(&self) -> Infallible {
        let keeping = async {
            let mut wait = SOONEST;
            loop {
                sleep(wait).await;
                wait *= 2; // callers may come late
                if lock(&self.silent_from).is_some_and(|from| from <= Instant::now()) {
                    self.open_spares().await;
                }
            }
        };
        let _: Result<Infallible, _> = timeout(LIFE, keeping).await;
        let too_old = self.pool.state().spares.take();
        drop(too_old);
        pending().await
    }

    /// Opens the spares that are due, as many at once as there may be dials.
    async fn open_spares(&self) {
        let at_once = self.pool.shared.config.concurrent_dials;
        stream::iter(iter::from_fn(|| self.pool.new_spare()))
            .for_each_concurrent(at_once, |spare| self.open_spare(spare))
            .await;
    }

    async fn open_spare(&self, spare: NewSpare) {
        let NewSpare {
            endpoint,
            permit,
            mut opened,
        } = spare;
        let done = tokio::select! {
            biased;
            () = opened.closed() => None, // it is not needed any more
            done = self.pool.shared.dialer.open_spare(&endpoint, self.route, permit) => done,
        };
        if let Some(done) = done {
            drop(opened.send(done));
        }
    }
}

impl Pool {
    /// Adds a spare, if one is due and no other tenant waits for its permit.
    fn new_spare(self: &Arc<Self>) -> Option<NewSpare> {
        let owner = self.as_owner();
        let mut state = self.state();
        if !state.is_spare_due(&self.shared.config) {
            return None;
        }
        let permit = self.shared.dialer.budget.take_spare(&owner)?;
        let (sender, opened) = oneshot::channel();
        let permit_id = permit.id();
        state.add_spare(Spare { permit_id, opened });
        Some(NewSpare {
            endpoint: Arc::clone(&state.endpoint),
            permit,
            opened: sender,
        })
    }
}
