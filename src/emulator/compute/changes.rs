//! What is done to a compute besides starting and stopping it: copied, given another password, deleted, recovered.

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

/// A compute that nobody can wake before it has its data.
#[derive(Debug)]
pub(in crate::emulator) struct Unborn {
    compute: Arc<Compute>,
    state: OwnedMutexGuard<State>,
}

impl Unborn {
    /// Makes its data a copy of `parent`'s as it is now. The parent may run on. If that fails, nobody can wake it.
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
    /// Keeps everybody from waking a compute that is new.
    pub(in crate::emulator) fn unborn(self: &Arc<Self>) -> Option<Unborn> {
        let state = Arc::clone(&self.state).try_lock_owned().ok()?;
        let compute = Arc::clone(self);
        Some(Unborn { compute, state })
    }

    /// Copies the data of `parent`; says whether that had its role and its database by then.
    async fn copy_data(self: &Arc<Self>, parent: &Arc<Self>) -> Result<bool, EmulatorError> {
        let from = parent.state.lock().await;
        if !parent.postgres.has_data() {
            return Ok(false); // nobody has written anything yet
        }
        if parent.postgres.runs() {
            let checkpoint = ["CHECKPOINT".to_owned()];
            parent.postgres.execute("postgres", &checkpoint).await?;
        }
        let (child, source) = (Arc::clone(self), Arc::clone(parent));
        // Stopped in its tracks: what is in its files then is what a crash would leave, and Postgres recovers from that.
        parent.freeze();
        let copied = blocking(move || child.postgres.make_data(Some(&source.postgres))).await;
        parent.thaw();
        copied.map(|()| from.filled)
    }

    /// Gives the owner another password and ends all sessions, as Neon does; wakes it for that. Goes on if the caller
    /// leaves.
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

    /// Lets nobody wake it from now on. What runs is stopped by [`retire`](Self::retire).
    pub(in crate::emulator) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Release);
    }

    /// Stops it, if it is still gone by then.
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
            tracing::warn!(%err, "emulator: a deleted compute's data is still there");
        }
    }
}
