//! Making room for requests that wait.
//!
//! A connection that comes back while something is missing is asked to leave before it lies idle, by
//! [`Budget::should_yield`](super::Budget::ask_to_leave). So idle connections are looked for when the first is missing, and
//! then by one task for all who wait.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Budget, State};

/// A connection that has been idle for so long goes to a tenant that wants one more.
pub(super) const IDLE: Duration = Duration::from_secs(1);
/// One that has been idle for so long is closed so that the reserve is free again, though nobody wants it yet.
pub(super) const LONG_IDLE: Duration = Duration::from_secs(5);
/// Time between two looks for idle connections while some are missing, and after how many looks holders are asked whether
/// they still need what they wait for.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u32 = 4;

/// The idle connections that are closed for others, or were.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Idle {
    /// None.
    None,
    /// Those that have been idle for [`IDLE`].
    Long,
    /// All of them.
    Any,
}

impl Idle {
    /// Returns how long they have been idle at least.
    fn time(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Long => Some(IDLE),
            Self::Any => Some(Duration::ZERO),
        }
    }
}

impl Budget {
    /// Looks after the requests that wait as long as there are any: closes what has been idle for long enough by now, and lets
    /// holders give up what they do not need any more.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
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
            let waiting = self.state().turns.waiting_holders();
            for holder in waiting {
                holder.reconsider();
            }
        }
    }

    /// Makes room for one who has just begun to wait, unless nothing idle is left that could be closed.
    pub(super) fn make_room_once_more(&self) {
        let state = self.state();
        let was_done = state.looked_for >= self.wanted(&state);
        drop(state);
        if !was_done {
            self.make_room();
        }
    }

    /// Closes idle connections as far as that helps requests that wait.
    fn make_room(&self) {
        let mut state = self.state();
        state.looked_for = self.wanted(&state);
        drop(state);
        self.close_idle(|| self.wanted(&self.state()).time());
    }

    /// Returns which idle connections should be closed for requests that wait.
    pub(super) fn wanted(&self, state: &State) -> Idle {
        if state.lacks_for_first(self.limit) {
            Idle::Any
        } else if self.is_contended() {
            Idle::Long
        } else {
            Idle::None
        }
    }

    /// Closes what has been idle for long, so that the next who has none need not wait.
    pub(crate) fn restore_reserve(&self) {
        self.close_idle(|| {
            let state = self.state();
            (state.used - state.leaving > self.usual_limit).then_some(LONG_IDLE)
        });
    }

    /// Closes connections that have been idle for the time that `idle` says, until it says none: first of those who have
    /// had one idle for longest.
    fn close_idle(&self, idle: impl Fn() -> Option<Duration>) {
        if idle().is_none() {
            return;
        }
        let (now, holders) = (Instant::now(), self.state().turns.holders());
        let unused = holders.iter().filter_map(|it| Some((it.idle_since()?, it)));
        let mut unused: Vec<_> = unused.collect();
        unused.sort_by_key(|(at, _)| *at);
        for (_, holder) in unused {
            loop {
                let Some(idle) = idle() else {
                    return;
                };
                let unused_since = now.checked_sub(idle);
                if !unused_since.is_some_and(|it| holder.close_idle(it)) {
                    break;
                }
            }
        }
    }
}
