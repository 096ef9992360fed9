//! A pool whose tenant must not be used: no caller gets a connection of it, also none that is being opened.

use tokio::time::Instant;

use super::{Pool, wake_waiters::fail_wake_waiters};
use crate::{
    connection::Connection,
    model::error::{Error, ErrorKind},
};

/// Why a pool gives a caller no connection.
#[derive(Clone, Debug)]
pub(crate) enum Unserved {
    /// It failed, or was refused.
    Failed(Error),
    /// The tenant has to be looked up again, and may be served by what that finds.
    Relocate(Error),
}

impl Unserved {
    /// The tenant has moved, or is made anew: where it lives has to be looked up.
    pub(crate) fn relocate() -> Self {
        let message = "the tenant's database has moved, or is being made anew; ask again";
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
    /// Takes the pool out of use until it is [allowed](Self::allow) again: answers all callers in the queue with `why`,
    /// closes what is idle now and what is in use when it comes back, and gives up what is being opened.
    pub(crate) fn forbid(&self, why: &Unserved) {
        let mut state = self.state();
        state.forbidden = Some(why.clone());
        state.condemn_all(Instant::now());
        let idle = state.take_idle(|_| true);
        let (waiters, wakers) = (
            state.take_waiters(|_| true),
            state.take_wake_waiters(|_| true),
        );
        drop(state);
        idle.into_iter().for_each(Connection::close);
        for waiter in waiters {
            drop(waiter.turn.send(Err(why.clone())));
        }
        fail_wake_waiters(wakers, why);
        self.changed.notify_waiters();
    }

    /// Puts the pool into use again. Connections of before stay out of use.
    pub(crate) fn allow(&self) {
        self.state().forbidden = None;
    }

    /// Returns an error while the pool is out of use.
    pub(crate) fn check_allowed(&self) -> Result<(), Unserved> {
        self.state().forbidden.clone().map_or(Ok(()), Err)
    }

    /// Waits until the pool is put out of use.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn until_forbidden(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().forbidden.is_some() {
                return;
            }
            changed.await;
        }
    }
}
