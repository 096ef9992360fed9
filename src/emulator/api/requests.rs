//! Counts of API requests, which tests can check.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The number of API requests, by route.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Requests {
    // Held only for short reads and writes.
    by_route: Mutex<BTreeMap<String, u64>>,
}

impl Requests {
    pub(in crate::emulator) fn count(&self, route: &str) {
        let mut by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        *by_route.entry(route.to_owned()).or_default() += 1;
    }

    /// Returns the number of requests on routes that begin with `route`.
    pub(in crate::emulator) fn of(&self, route: &str) -> u64 {
        let by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        let those = by_route.iter().filter(|(it, _)| it.starts_with(route));
        those.map(|(_, count)| count).sum()
    }
}
