//! The router's settings, and the one place that checks them.

use std::{fmt, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;

use crate::resolve::{AnyResolve, SystemResolver};

/// Every setting of a router. The builder writes it, [`Config::check`] judges it, nothing changes it later.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) max_pools: u64,
    pub(crate) pool_size: usize,
    pub(crate) concurrent_dials: usize,
    pub(crate) get_timeout: Duration,
    pub(crate) wake_timeout: Duration,
    pub(crate) provision_timeout: Duration,
    pub(crate) verify_after: Duration,
    pub(crate) resolve: Arc<dyn AnyResolve>,
    pub(crate) root_certificates: Vec<CertificateDer<'static>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_pools: 1000,
            pool_size: 4,
            concurrent_dials: 4,
            get_timeout: Duration::from_secs(20),
            wake_timeout: Duration::from_secs(60),
            provision_timeout: Duration::from_secs(60),
            verify_after: Duration::from_secs(30),
            resolve: Arc::new(SystemResolver),
            root_certificates: Vec::new(),
        }
    }
}

impl Config {
    /// Checks every setting; no setter panics.
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let positive = [
            ("max_pools", self.max_pools > 0),
            ("pool_size", self.pool_size > 0),
            ("concurrent_dials", self.concurrent_dials > 0),
            ("get_timeout", !self.get_timeout.is_zero()),
            ("wake_timeout", !self.wake_timeout.is_zero()),
            ("provision_timeout", !self.provision_timeout.is_zero()),
        ];
        match positive.iter().find(|(_, ok)| !ok) {
            Some((name, _)) => Err(InvalidConfig::new(format!("{name} must be more than zero"))),
            None => Ok(()),
        }
    }
}

/// A setting cannot work. The text names it and says what would.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidConfig(String);

impl InvalidConfig {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidConfig {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_zero_is_not() {
        assert_eq!(Config::default().check(), Ok(()));
        let err = Config {
            pool_size: 0,
            ..Config::default()
        }
        .check()
        .unwrap_err();
        assert_eq!(err.to_string(), "pool_size must be more than zero");
    }
}
