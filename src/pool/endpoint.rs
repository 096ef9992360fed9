//! The endpoint of a pool's tenant, and the effects of a change.

use std::sync::Arc;

use super::Pool;
use crate::{connection::Connection, model::endpoint::Endpoint, telemetry::stats::count};

impl Pool {
    /// Returns the last known endpoint of the tenant.
    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.state().endpoint)
    }

    /// Sets the tenant's endpoint and returns whether it is another one. Connections at the earlier endpoint are
    /// closed when no caller uses them any more. A new connection limit alone does not make it another endpoint.
    pub(crate) fn set_endpoint(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        is_authoritative: bool,
    ) -> bool {
        self.shared.refusals.end_outdated(&self.tenant, &endpoint);
        let is_moved = self.replace_endpoint(None, endpoint, is_authoritative);
        self.start_due_attempts(); // there may be room for more connections now
        is_moved
    }

    /// Sets the endpoint like [`set_endpoint`](Self::set_endpoint), unless the present one is no longer `known`. Then
    /// it changes nothing and returns `true`.
    pub(super) fn replace_endpoint(
        &self,
        known: Option<&Arc<Endpoint>>,
        endpoint: Arc<Endpoint>,
        is_authoritative: bool,
    ) -> bool {
        let mut state = self.state();
        if known.is_some_and(|known| !Arc::ptr_eq(known, &state.endpoint)) {
            return true;
        }
        let config = &self.shared.config;
        let surplus = state.set_max_connections(endpoint.max_connections, config);
        if state.endpoint.is_same_place(&endpoint) {
            state.is_authoritative |= is_authoritative;
            drop(state);
            surplus.into_iter().for_each(Connection::close);
            return false;
        }
        self.shared.pace.shorten_to(&endpoint, config);
        state.endpoint = endpoint;
        // A connection that comes back is then closed, also by code that does not compare its endpoint.
        state.open.iter().for_each(|status| status.expire());
        state.is_authoritative = is_authoritative;
        state.note_asleep();
        state.rare.reset(|rare| {
            rare.early_ends = 0;
            (rare.last_failure, rare.repeated_since) = (None, None);
        });
        let (outdated, spares) = (state.take_idle(|_| true), state.spares.take());
        drop(state);
        drop(spares);
        let closed = outdated.into_iter().chain(surplus);
        closed.for_each(Connection::close);
        count(&self.shared.stats.moved);
        self.notify_changed();
        tracing::info!(
            tenant = self.tenant.as_str(),
            "the tenant's endpoint or credential has changed"
        );
        true
    }

    /// Returns the number of changes so far that may have removed the cause of a failure.
    pub(super) fn change_count(&self) -> u64 {
        self.state().change_count
    }

    /// Records a change: logins that were refused before may work now.
    pub(super) fn notify_changed(&self) {
        self.state().change_count += 1;
        self.shared.refusals.clear(self.tenant.as_str());
        self.changed.notify_waiters();
    }
}
