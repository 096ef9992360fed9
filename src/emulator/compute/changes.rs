//! Changes to a compute besides its starts and stops: copy, password reset, deletion and recovery.

use std::{
    fs,
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Release},
    },
};

use tokio::sync::OwnedMutexGuard;

use super::stop::Stop;
use super::{Compute, State, lock};
use crate::{
    emulator::{
        EmulatorError,
        host::process::{blocking, detached, missing_is_fine},
    },
    model::secret::Secret,
};

const END_SESSIONS: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> 'cloud_admin'";

/// A new compute that cannot be woken before it has its data.
#[derive(Debug)]
pub(in crate::emulator) struct Unborn {
    compute: Arc<Compute>,
    state: OwnedMutexGuard<State>,
}

impl Unborn {
    /// Copies the present data of `parent`, which may keep running. If that fails, the compute can never be woken.
    pub(in crate::emulator) async fn copy_from(
        self,
        parent: &Arc<Compute>,
    ) -> Result<(), EmulatorError> {
        let Self { compute, mut state } = self;
        let parent = Arc::clone(parent);
        detached(async move {
            let copied = compute.copy_data(&parent).await;
            match &copied {
                Ok(filled) => state.filled = *filled,
                Err(_) => compute.gone.store(true, Release),
            }
            copied.map(drop)
        })
        .await?
    }
}

impl Compute {
    /// Locks a new compute, so that it cannot be woken. Returns `None` if it is already locked.
    pub(in crate::emulator) fn unborn(self: &Arc<Self>) -> Option<Unborn> {
        let state = Arc::clone(&self.state).try_lock_owned().ok()?;
        let compute = Arc::clone(self);
        Some(Unborn { compute, state })
    }

    /// Copies the data of `parent`. Returns whether the parent had its role and its database by then.
    async fn copy_data(self: &Arc<Self>, parent: &Arc<Self>) -> Result<bool, EmulatorError> {
        let from = parent.state.lock().await;
        if !parent.postgres.has_data() {
            return Ok(false); // nothing has been written yet
        }
        if parent.postgres.runs() {
            let checkpoint = ["CHECKPOINT".to_owned()];
            parent.postgres.execute("postgres", &checkpoint).await?;
        }
        let (child, source) = (Arc::clone(self), Arc::clone(parent));
        // The files of a frozen Postgres are in the state that a crash would leave, and Postgres recovers from that.
        parent.freeze();
        let copied = blocking(move || child.postgres.make_data(Some(&source.postgres))).await;
        parent.thaw();
        copied.map(|()| from.filled)
    }

    /// Changes the owner's password and ends all sessions, as Neon does. Wakes the compute for that. The change
    /// continues if the caller is dropped.
    pub(in crate::emulator) async fn reset_password(
        self: &Arc<Self>,
        password: Secret,
    ) -> Result<(), EmulatorError> {
        let compute = Arc::clone(self);
        detached(async move {
            let mut state = compute.state.lock().await;
            compute.ensure_awake(&mut state).await?;
            let contents = compute.contents().with_password(password);
            let statements = [contents.password_statement(), END_SESSIONS.to_owned()];
            compute.postgres.execute("postgres", &statements).await?;
            compute.pooler.kill().await;
            *lock(&compute.contents) = contents;
            Ok(())
        })
        .await?
    }

    /// Sets whether the compute is gone. A gone compute cannot be woken; [`retire`](Self::retire) stops it if it runs.
    pub(in crate::emulator) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Release);
    }

    /// Stops it, unless it was recovered in between.
    pub(in crate::emulator) async fn retire(&self) {
        let mut state = self.state.lock().await;
        if self.gone.load(Acquire) {
            self.end_run(&mut state, Stop::Neon).await;
        }
    }

    /// Stops it for good and removes its data.
    pub(in crate::emulator) async fn delete(&self) {
        self.set_gone(true);
        self.retire().await;
        let folder = self.folder.clone();
        let removed = blocking(move || {
            let removed = fs::remove_dir_all(&folder).or_else(missing_is_fine);
            removed.map_err(|err| EmulatorError::new("cannot remove a folder").because(err))
        });
        if let Err(err) = removed.await {
            tracing::warn!(%err, "emulator: cannot remove a deleted compute's data");
        }
    }
}
