//! The memory of hosts, which lasts from one connection to the next.

use std::{hash::Hash, net::SocketAddr, time::Duration};

use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use crate::model::secret::Secret;

/// Most addresses, and most hosts, that are remembered. The least recently used is dropped first.
const MOST: u64 = 10_000;
/// Time for which an address that did not answer is tried after the others of its host. Then it may be up again.
const AVOIDANCE: Duration = Duration::from_secs(300);
/// Longest time for which a host's proxy and its database disagree about a password that is being changed.
const ROTATION: Duration = Duration::from_secs(60);

/// A bounded memory of hosts and their addresses.
#[derive(Debug)]
pub(super) struct Hosts {
    /// The addresses that did not answer in time. Hosts share them: at Neon each tenant has its own host, and all these
    /// hosts lead to the same few proxies.
    useless: Cache<SocketAddr, Instant>,
    /// The passwords that a host's proxy accepted and its database refused, by host and port.
    outdated: Cache<String, (Secret, Instant)>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            useless: remembering(AVOIDANCE),
            outdated: remembering(ROTATION),
        }
    }
}

impl Hosts {
    /// Returns whether the other addresses of a host are tried before `address`.
    pub(super) fn is_useless(&self, address: &SocketAddr) -> bool {
        let since = self.useless.get(address);
        since.is_some_and(|since| since.elapsed() < AVOIDANCE)
    }

    /// Remembers whether a server answered at `address`: it accepted the socket in time, and replied to the login.
    pub(super) fn note(&self, address: SocketAddr, answered: bool) {
        if answered {
            self.useless.invalidate(&address);
        } else {
            self.useless.insert(address, Instant::now());
        }
    }

    /// Remembers that the proxy at `host` still accepts `password`, which the database behind it refuses.
    pub(super) fn note_outdated(&self, host: &str, password: &Secret) {
        let outdated = (password.clone(), Instant::now());
        self.outdated.insert(host.to_owned(), outdated);
    }

    /// Returns whether the proxy at `host` may refuse `password` only because it still holds an older one.
    pub(super) fn may_lag_behind(&self, host: &str, password: &Secret) -> bool {
        let Some((outdated, since)) = self.outdated.get(host) else {
            return false;
        };
        since.elapsed() < ROTATION && outdated != *password
    }

    /// Forgets the outdated password of `host`, which has accepted a login.
    pub(super) fn note_login(&self, host: &str) {
        self.outdated.invalidate(host);
    }
}

fn remembering<K, T>(time: Duration) -> Cache<K, T>
where
    K: Eq + Hash + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    // The cache uses the system's clock, which is never paused, so its time limit only frees memory.
    Cache::builder()
        .max_capacity(MOST)
        .eviction_policy(EvictionPolicy::lru())
        .time_to_live(time)
        .build()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_of_no_use_is_known_for_a_while_or_until_it_answers() {
        let hosts = Hosts::default();
        let [one, other] = ["10.0.0.1:5432", "10.0.0.2:5432"].map(|it| it.parse().unwrap());
        hosts.note(one, false);
        assert!(hosts.is_useless(&one) && !hosts.is_useless(&other));
        hosts.note(one, true);
        assert!(!hosts.is_useless(&one));
        hosts.note(one, false);
        advance(AVOIDANCE).await;
        assert!(!hosts.is_useless(&one), "it may be up again");
    }

    #[tokio::test(start_paused = true)]
    async fn only_another_password_than_the_outdated_one_may_be_too_new_and_not_for_long() {
        let (hosts, old, new) = (Hosts::default(), Secret::new("old"), Secret::new("new"));
        assert!(!hosts.may_lag_behind("a:5432", &new));
        hosts.note_outdated("a:5432", &old);
        assert!(hosts.may_lag_behind("a:5432", &new));
        assert!(!hosts.may_lag_behind("a:5432", &old));
        assert!(!hosts.may_lag_behind("b:5432", &new));
        advance(ROTATION).await;
        assert!(!hosts.may_lag_behind("a:5432", &new));
        hosts.note_outdated("a:5432", &old);
        hosts.note_login("a:5432");
        assert!(!hosts.may_lag_behind("a:5432", &new));
    }

    #[test]
    fn debug_hides_the_password() {
        let hosts = Hosts::default();
        hosts.note_outdated("a:5432", &Secret::new("hunter2"));
        assert!(!format!("{hosts:?}").contains("hunter2"));
    }
}
