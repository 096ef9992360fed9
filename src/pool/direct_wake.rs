//! Direct connections as wakes: a sleeping database gets one login, pooled or direct.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::{Pool, Unserved, connect::Connector, refusals::Refusal};
use crate::{
    connection::dial::Dialed,
    limits::budget::Permit,
    model::{
        endpoint::Route,
        error::{Error, ErrorKind, Stage},
    },
    sync::progress::Progress,
    telemetry::labels::Reason,
};

/// The role of a direct login for its tenant.
enum Role {
    /// One more connection to a database that is awake.
    Another,
    /// The login that wakes the database.
    Waking(DirectWake),
    /// A login that must wait for another one in progress.
    Waiting,
}

/// The slot of a direct login that wakes its tenant. Dropping it frees the slot.
struct DirectWake(Arc<Pool>);

impl Drop for DirectWake {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.dialing -= 1;
        state.logging_in -= 1;
        drop(state);
        self.0.start_due_attempts(); // callers may be waiting for a pooled connection
    }
}

/// Returns whether a direct connection that is opened for `reason` counts as the tenant's own. Callers may wait for a
/// migration, and a tenant that holds nothing must not wait behind all that do.
fn is_owned(reason: Reason) -> bool {
    reason == Reason::Migration
}

impl Pool {
    /// Opens a direct connection for a caller that waits until `until`. If the database is asleep, this login is the
    /// wake, unless another login is in progress. A wake counts with `reason`. Returns whether there was one.
    pub(crate) async fn open_direct(
        self: &Arc<Self>,
        until: Instant,
        reason: Reason,
    ) -> Result<(Dialed, bool), Unserved> {
        let left = until.saturating_duration_since(Instant::now());
        let progress = Progress::new(Stage::Checkout, left);
        let opening = Connector {
            pool: self,
            route: Route::Direct,
            is_owned: is_owned(reason),
            progress: &progress,
            silent_from: Mutex::default(),
        };
        let mut has_waited = false;
        let mut has_woken = false;
        loop {
            opening.wait_out_refusal().await?;
            let permit = opening.permit().await?;
            let permit = permit.ok_or_else(|| progress.timed_out())?;
            self.check_allowed()?;
            let dialed = match self.direct_role() {
                Role::Waking(wake) => {
                    let dialed = self.wake_directly(permit, reason).await;
                    has_woken = true;
                    self.note_direct(&dialed);
                    drop(wake);
                    dialed
                }
                Role::Waiting if !has_waited => {
                    drop(permit); // other logins need it more
                    has_waited = true;
                    has_woken |= self.wake(until, reason, None).await?;
                    continue;
                }
                // `Waiting` for the second time: an open connection answered the wake, which proves enough.
                Role::Another | Role::Waiting => {
                    let dialed = opening.try_until_up(permit).await;
                    self.note_direct(&dialed);
                    dialed
                }
            };
            return Ok((dialed?, has_woken));
        }
    }

    fn direct_role(self: &Arc<Self>) -> Role {
        let mut state = self.state();
        if !state.believes_asleep() {
            return Role::Another;
        }
        if state.dialing > 0 {
            return Role::Waiting;
        }
        state.dialing += 1;
        state.logging_in += 1;
        Role::Waking(DirectWake(Arc::clone(self)))
    }

    /// Runs the wake with its own deadline, whatever the caller's is: the wake belongs to the tenant.
    async fn wake_directly(
        self: &Arc<Self>,
        permit: Permit,
        reason: Reason,
    ) -> Result<Dialed, Error> {
        let progress = Progress::new(Stage::Wake, self.shared.config.wake_timeout);
        let opening = Connector {
            pool: self,
            route: Route::Direct,
            is_owned: is_owned(reason),
            progress: &progress,
            silent_from: Mutex::default(),
        };
        opening.wake(permit, reason).await
    }

    /// Records what a direct login proves about the database.
    fn note_direct(self: &Arc<Self>, dialed: &Result<Dialed, Error>) {
        let mut state = self.state();
        match dialed {
            Ok(dialed) => {
                let direct = &mut state.rare.make().direct;
                direct.push(Arc::clone(&dialed.status));
                if Arc::ptr_eq(&dialed.endpoint, &state.endpoint) {
                    state.lost = None;
                    self.tell_awake(&mut state, &dialed.status);
                }
                drop(state);
                self.shared.refusals.clear_at(&self.tenant, Route::Direct);
            }
            Err(err) if matches!(err.kind(), ErrorKind::Timeout(_)) => state.note_asleep(),
            Err(err) => {
                drop(state);
                self.refuse(Route::Direct, &Refusal::new(err.clone(), self.endpoint()));
            }
        }
    }
}
