//! How much the API was asked, for those who count their calls.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Requests to the API, by route.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Requests {
    // Held for a look or a change.
    by_route: Mutex<BTreeMap<String, u64>>,
}

impl Requests {
    pub(in crate::emulator) fn count(&self, route: &str) {
        let mut by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        *by_route.entry(route.to_owned()).or_default() += 1;
    }

    /// How many there were whose route begins with `route`.
    pub(in crate::emulator) fn of(&self, route: &str) -> u64 {
        let by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        let those = by_route.iter().filter(|(it, _)| it.starts_with(route));
        those.map(|(_, count)| count).sum()
    }
}
