//! Forbidding a pool to serve: no caller gets a connection, not even one that is being opened.

use tokio::time::Instant;

use super::{Pool, wake_waiters::fail_wake_waiters};
use crate::{
    connection::Connection,
    model::error::{Error, ErrorKind},
};

/// The reason for which a pool gives a caller no connection.
#[derive(Clone, Debug)]
pub(crate) enum Unserved {
    /// A failure or a refusal.
    Failed(Error),
    /// A tenant that must be looked up again; the result may serve the caller.
    Relocate(Error),
}

impl Unserved {
    /// Returns the reason for a tenant that has moved or is being recreated: it must be looked up again.
    pub(crate) fn relocate() -> Self {
        let message = "the tenant's database has moved, or is being created again; call again";
        Self::Relocate(Error::new(ErrorKind::Connect, message))
    }

    pub(crate) fn error(&self) -> &Error {
        match self {
            Self::Failed(err) | Self::Relocate(err) => err,
        }
    }

    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(err) | Self::Relocate(err) => err,
        }
    }
}

impl From<Error> for Unserved {
    fn from(err: Error) -> Self {
        Self::Failed(err)
    }
}

impl Pool {
    /// Forbids the pool to serve until it is [allowed](Self::allow) again. Answers all callers in the queue with `why`,
    /// closes idle connections now and those on loan when they come back, and gives up attempts in progress.
    pub(super) fn forbid(&self, why: &Unserved) {
        let mut state = self.state();
        state.rare.make().forbidden = Some(why.clone());
        state.condemn_all(Instant::now());
        let (idle, spares) = (state.take_idle(|_| true), state.spares.take());
        let (waiters, wake_waiters) = (
            state.take_waiters(|_| true),
            state.take_wake_waiters(|_| true),
        );
        drop(state);
        drop(spares);
        idle.into_iter().for_each(Connection::close);
        for waiter in waiters {
            drop(waiter.sender.send(Err(why.clone())));
        }
        fail_wake_waiters(wake_waiters, why);
        self.changed.notify_waiters();
    }

    /// Allows the pool to serve again. Earlier connections are still not handed out.
    pub(super) fn allow(&self) {
        self.state().rare.reset(|rare| rare.forbidden = None);
    }

    /// Returns an error unless the pool is allowed to serve.
    pub(crate) fn check_allowed(&self) -> Result<(), Unserved> {
        self.state().rare.forbidden.clone().map_or(Ok(()), Err)
    }

    /// Waits until the pool is not allowed to serve any more.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn until_forbidden(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().rare.forbidden.is_some() {
                return;
            }
            changed.await;
        }
    }
}
