//! Connections that may have died silently, because another one was silent or the machine was suspended.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Pool, loan::Loan};
use crate::connection::Connection;

/// Longest wait for the answer to a ping on an idle connection.
pub(crate) const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);

impl Pool {
    /// Returns the loan if the server answers on its connection.
    ///
    /// The ping runs in its own task: a caller that leaves must not return a silent connection to the pool.
    pub(super) async fn ping(self: &Arc<Self>, loan: Loan) -> Option<Loan> {
        let pool = Arc::clone(self);
        let verified = self.shared.runtime.spawn(async move {
            let pinged_at = Instant::now();
            let answer = timeout(VERIFY_TIMEOUT, loan.connection().client.check_connection());
            if matches!(answer.await, Ok(Ok(()))) {
                return Some(loan);
            }
            let suspected = loan.connection().status.is_suspect();
            loan.close();
            if suspected {
                pool.close_suspects(pinged_at);
            } else {
                pool.condemn(pinged_at);
            }
            None
        });
        verified.await.ok().flatten()
    }

    /// Marks every connection that has been silent for `time` as suspect: it is pinged before it is used again.
    pub(crate) fn suspect_silent_for(&self, time: Duration) {
        let now = Instant::now();
        for status in &self.state().open {
            if status.silent_at(now) >= time {
                status.suspect();
            }
        }
    }

    /// Closes the idle suspects after one of them did not answer the ping of `pinged_at`. Suspects in use go on: their
    /// next answer clears them.
    fn close_suspects(&self, pinged_at: Instant) {
        let mut state = self.state();
        state.note_loss(pinged_at);
        let suspects = state.take_idle(|it| it.status.is_suspect());
        drop(state);
        suspects.into_iter().for_each(Connection::close);
    }
}
