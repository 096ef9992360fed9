//! The part of a pool's state that most pools never have.

use std::{ops::Deref, sync::Arc};

use tokio::time::Instant;

use super::WakeWaiter;
use crate::{connection::status::ConnectionStatus, pool::Unserved, sync::progress::Noted};

/// State that most pools never have. It is allocated when it is first changed, and reads as empty until then.
#[derive(Default)]
pub(crate) struct Rare(Option<Box<RareState>>);

#[derive(Default)]
pub(crate) struct RareState {
    /// Callers that only want the database awake, and no connection.
    pub(super) wake_waiters: Vec<WakeWaiter>,
    /// Direct connections whose tasks have not ended. They prove that the compute is awake, and count for nothing else.
    pub(crate) direct: Vec<Arc<ConnectionStatus>>,
    /// Reason for which no caller gets a connection; `None` while the pool is allowed to serve.
    pub(in crate::pool) forbidden: Option<Unserved>,
    /// Connections opened before this instant are not trusted.
    pub(super) condemned: Option<Instant>,
    /// Number of connections in a row that ended as soon as they were open.
    pub(in crate::pool) early_ends: u32,
    pub(crate) last_failure: Option<Noted>,
    /// Time since which Neon's proxy may only be repeating that the control plane failed.
    pub(in crate::pool) repeated_since: Option<Instant>,
}

impl RareState {
    const EMPTY: Self = Self {
        wake_waiters: Vec::new(),
        direct: Vec::new(),
        forbidden: None,
        condemned: None,
        early_ends: 0,
        last_failure: None,
        repeated_since: None,
    };

    fn is_empty(&self) -> bool {
        // Destructured, so that a new field does not compile before this function handles it.
        let Self {
            wake_waiters,
            direct,
            forbidden,
            condemned,
            early_ends,
            last_failure,
            repeated_since,
        } = self;
        let is_quiet = wake_waiters.is_empty() && direct.is_empty() && forbidden.is_none();
        let has_failed = *early_ends > 0 || last_failure.is_some() || repeated_since.is_some();
        is_quiet && condemned.is_none() && !has_failed
    }
}

impl Rare {
    /// Returns the state to be changed, and allocates it if need be.
    pub(in crate::pool) fn make(&mut self) -> &mut RareState {
        self.0.get_or_insert_default()
    }

    /// Resets what `reset` resets, if there is anything. Frees the state that is empty then.
    pub(in crate::pool) fn reset(&mut self, reset: impl FnOnce(&mut RareState)) {
        if let Some(state) = &mut self.0 {
            reset(state);
        }
        if self.0.as_ref().is_some_and(|it| it.is_empty()) {
            self.0 = None;
        }
    }

    /// Returns whether nothing is allocated: all of it is empty.
    #[inline]
    pub(super) fn is_absent(&self) -> bool {
        self.0.is_none()
    }
}

impl Deref for Rare {
    type Target = RareState;

    fn deref(&self) -> &RareState {
        static EMPTY: RareState = RareState::EMPTY;
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{endpoint::Endpoint, error::Error};
    use crate::pool::State;

    #[tokio::test]
    async fn what_is_over_costs_nothing() {
        let mut state = State::new(Arc::new(Endpoint::postgres("h", "d", "r", "p")));
        assert!(state.rare.is_absent() && state.rare.forbidden.is_none());
        state.rare.make().forbidden = Some(Unserved::relocate());
        state.rare.make().early_ends = 2;
        state.rare.make().last_failure = Some(Noted::new(Error::closed()));
        state.rare.reset(|rare| rare.forbidden = None);
        state.rare.reset(|rare| rare.early_ends = 0);
        assert!(!state.rare.is_absent() && state.rare.last_failure.is_some());
        state.rare.reset(|rare| rare.last_failure = None);
        assert!(state.rare.is_absent());
        state.rest_of_repetition();
        state.rare.reset(|rare| rare.repeated_since = None);
        assert!(state.rare.is_absent());
        state.condemn(Instant::now());
        state.rare.reset(|_| {});
        assert!(
            !state.rare.is_absent(),
            "it holds for connections that are on loan, too"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_pool_has_no_room_for_what_is_rare() {
        assert_eq!(size_of::<Rare>(), 8);
        assert_eq!(size_of::<State>(), 256);
    }
}
