//! Closing idle connections for requests that wait.
//!
//! A connection that comes back while connections are missing is closed before it becomes idle, by
//! [`Budget::should_yield`]. So idle connections are searched when the first one is missing, and after that by one task
//! for all requests that wait.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Budget, State};

/// Idle time after which a connection is closed for a tenant that wants one more.
pub(super) const IDLE: Duration = Duration::from_secs(1);
/// Idle time after which a connection is closed to refill the reserve, although no request waits yet.
pub(super) const LONG_IDLE: Duration = Duration::from_secs(5);
/// Interval between two searches for idle connections while some are missing. After every `LOOKS` searches, waiting
/// owners check whether they still need what they wait for.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u32 = 4;

/// The idle connections that are closed for other owners, or were.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Idle {
    /// None.
    None,
    /// The connections that have been idle for [`IDLE`].
    Long,
    /// All of them.
    Any,
}

impl Idle {
    /// Returns their shortest idle time.
    fn time(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Long => Some(IDLE),
            Self::Any => Some(Duration::ZERO),
        }
    }
}

impl Budget {
    /// Closes connections that have been idle for long enough while requests wait, and lets owners withdraw requests
    /// that they do not need any more. Never returns.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn keep_room(&self) -> Infallible {
        loop {
            let short = self.short.notified();
            if !self.is_contended() {
                short.await;
                continue;
            }
            for _ in 0..LOOKS {
                sleep(LOOK).await;
                self.make_room();
            }
            let waiting = self.state().turns.waiting_owners();
            for owner in waiting {
                owner.reconsider();
            }
        }
    }

    /// Makes room for a request that has just begun to wait, unless no idle connection is left that could be closed.
    pub(super) fn make_room_once_more(&self) {
        let state = self.state();
        let was_done = state.searched_idle >= self.wanted(&state);
        drop(state);
        if !was_done {
            self.make_room();
        }
    }

    /// Closes idle connections as far as that helps waiting requests.
    fn make_room(&self) {
        let mut state = self.state();
        state.searched_idle = self.wanted(&state);
        drop(state);
        self.close_idle(|| self.wanted(&self.state()).time());
    }

    /// Returns the idle connections that should be closed for waiting requests.
    pub(super) fn wanted(&self, state: &State) -> Idle {
        if state.lacks_for_first(self.limit) {
            Idle::Any
        } else if self.is_contended() {
            Idle::Long
        } else {
            Idle::None
        }
    }

    /// Closes connections that have been idle for long, so that the next owner without one need not wait.
    pub(crate) fn restore_reserve(&self) {
        self.close_idle(|| {
            let state = self.state();
            (state.used - state.leaving > self.usual_limit).then_some(LONG_IDLE)
        });
    }

    /// Closes spares, and then connections that have been idle for the time that `idle` returns, until it returns
    /// `None`. Begins with the owner of the connection that has been idle for longest.
    fn close_idle(&self, idle: impl Fn() -> Option<Duration>) {
        if idle().is_none() {
            return;
        }
        let (now, owners) = (Instant::now(), self.state().turns.owners());
        for owner in &owners {
            while idle().is_some() && owner.close_spare() {}
        }
        let unused = owners.iter().filter_map(|it| Some((it.idle_since()?, it)));
        let mut unused: Vec<_> = unused.collect();
        unused.sort_by_key(|(at, _)| *at);
        for (_, owner) in unused {
            loop {
                let Some(idle) = idle() else {
                    return;
                };
                let unused_since = now.checked_sub(idle);
                if !unused_since.is_some_and(|it| owner.close_idle(it)) {
                    break;
                }
            }
        }
    }
}
