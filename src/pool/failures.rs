//! Failures and refusals, and their delivery to a pool's callers.

use std::error::Error as _;

use tokio::time::Instant;

use super::{Pool, Unserved, refusals::Refusal, wake_waiters::fail_wake_waiters};
use crate::{
    connection::verdict::{self, RetryDecision},
    model::{
        endpoint::Route,
        error::{Error, Stage},
    },
    sync::progress::{Noted, timed_out},
    telemetry::stats::count,
};

impl Pool {
    /// Fails the longest waiter and all wake waiters with `err`.
    pub(super) fn fail_one(&self, err: &Error) {
        let mut state = self.state();
        let (waiter, wake_waiters) = (state.next_waiter(), state.take_wake_waiters(|_| true));
        drop(state);
        if let Some(waiter) = waiter {
            drop(waiter.sender.send(Err(err.clone().into())));
        }
        fail_wake_waiters(wake_waiters, &err.clone().into());
    }

    /// Fails every waiter and every wake waiter with `err`.
    pub(super) fn fail_all(&self, err: &Error) {
        let mut state = self.state();
        let (failed, wake_waiters) = (
            state.take_waiters(|_| true),
            state.take_wake_waiters(|_| true),
        );
        drop(state);
        for waiter in failed {
            drop(waiter.sender.send(Err(err.clone().into())));
        }
        fail_wake_waiters(wake_waiters, &err.clone().into());
    }

    /// Stores `refusal` unless one is active, and answers with it the waiters that gain nothing by waiting. Returns the
    /// stored one.
    pub(super) fn refuse(&self, route: Route, refusal: &Refusal) -> Refusal {
        let refusals = &self.shared.refusals;
        let refusal = if let Some(known) = refusals.get(&self.tenant, route) {
            known
        } else {
            count(&self.shared.stats.refused);
            self.shared.stats.meters.refused(refusal.kind());
            refusals.keep(&self.tenant, route, refusal.clone())
        };
        if route == Route::Pooled {
            self.reject_waiters(&refusal);
        }
        refusal
    }

    /// Answers with `refusal` the waiters that gain nothing by waiting, unless an open connection may still serve them.
    /// Returns whether any caller still waits.
    pub(super) fn reject_waiters(&self, refusal: &Refusal) -> bool {
        let mut state = self.state();
        if !state.open.is_empty() {
            return state.is_wanted();
        }
        let failed = state.take_waiters(|waiter| refusal.answers(waiter.until));
        let wake_waiters = state.take_wake_waiters(|waiter| refusal.answers(waiter.until));
        let wanted = state.is_wanted();
        drop(state);
        let why = refusal.error().into();
        for waiter in failed {
            drop(waiter.sender.send(Err(Unserved::clone(&why))));
        }
        fail_wake_waiters(wake_waiters, &why);
        wanted
    }

    /// Records why the last attempt failed, for callers that run out of time. Returns the failure with the
    /// `retry_after` that the pool knows for it.
    pub(super) fn record_failure(&self, route: Route, failure: Error) -> Error {
        let mut state = self.state();
        if route == Route::Direct && !state.believes_asleep() {
            return failure; // not a wake, so no other caller waits for it
        }
        let failure = match verdict::next(failure.kind()) {
            RetryDecision::RetrySlowly => failure.with_retry_after(state.rest_of_repetition()),
            _ => failure,
        };
        state.rare.make().last_failure = Some(Noted::new(failure.clone()));
        failure
    }

    /// Returns the error for a caller that has waited in the pool since `started` and runs out of time.
    pub(crate) fn out_of_time(&self, started: Instant) -> Error {
        let state = self.state();
        let waited_for = if state.believes_asleep() {
            Stage::Wake
        } else {
            Stage::Checkout
        };
        let failure = state.rare.last_failure.as_ref().map(Noted::error);
        let err = timed_out(waited_for, started.elapsed(), failure);
        let full = state.full_message(&self.shared.config);
        drop(state);
        match full.filter(|_| waited_for == Stage::Checkout && err.source().is_none()) {
            Some(full) => err.with_more(&full),
            None => err,
        }
    }
}
