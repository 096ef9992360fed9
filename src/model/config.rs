//! The router's settings, and the one place that checks them.

use std::{fmt, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;

use super::{
    chain,
    resolve::{AnyResolve, SystemResolver},
};

/// Divisor of the default reserve: one in this many connections is kept for tenants that have none.
const USUAL_RESERVE: usize = 10;

/// Most tenants that metrics may show by name.
const MOST_NAMED: usize = 100;

/// All settings of a router. The builder writes them, [`Config::check`] checks them, and nothing changes them later.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) name: Arc<str>,
    pub(crate) tenants_in_metrics: usize,
    pub(crate) max_pools: u64,
    pub(crate) pool_size: usize,
    pub(crate) concurrent_dials: usize,
    pub(crate) get_timeout: Duration,
    pub(crate) wake_timeout: Duration,
    pub(crate) provision_timeout: Duration,
    pub(crate) verify_after: Duration,
    pub(crate) idle_after: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) warn_held_after: Duration,
    pub(crate) hints_per_minute: usize,
    pub(crate) direct_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) wake_reserve: Option<usize>,
    pub(crate) waiting_per_tenant: usize,
    pub(crate) waiting_callers: usize,
    pub(crate) known_tenants: u64,
    pub(crate) catalog_ttl: Duration,
    pub(crate) catalog_timeout: Duration,
    pub(crate) catalog_poll: Option<Duration>,
    pub(crate) resolve: Arc<dyn AnyResolve>,
    pub(crate) root_certificates: Vec<CertificateDer<'static>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: Arc::from("tenantry"),
            tenants_in_metrics: 0,
            max_pools: 1000,
            pool_size: 4,
            concurrent_dials: 4,
            get_timeout: Duration::from_secs(20),
            wake_timeout: Duration::from_secs(60),
            provision_timeout: Duration::from_secs(60),
            verify_after: Duration::from_secs(30),
            idle_after: Duration::from_secs(240),
            max_lifetime: Duration::from_secs(1800),
            warn_held_after: Duration::from_secs(60),
            hints_per_minute: 30,
            direct_connections: 2,
            max_connections: 500,
            wake_reserve: None,
            waiting_per_tenant: 2000,
            waiting_callers: 10_000,
            known_tenants: 1_000_000,
            catalog_ttl: Duration::from_secs(300),
            catalog_timeout: Duration::from_secs(5),
            catalog_poll: Some(Duration::from_secs(30)),
            resolve: Arc::new(SystemResolver),
            root_certificates: Vec::new(),
        }
    }
}

impl Config {
    /// Returns the number of connections that are kept for tenants that have none.
    pub(crate) fn wake_reserve(&self) -> usize {
        let usual = self.max_connections / USUAL_RESERVE;
        self.wake_reserve.unwrap_or(usual)
    }

    /// Checks every setting. The setters accept any value and never panic.
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let counts = [
            ("max_pools", self.max_pools),
            ("pool_size", self.pool_size as u64),
            ("concurrent_dials", self.concurrent_dials as u64),
            ("direct_connections", self.direct_connections as u64),
            ("max_connections", self.max_connections as u64),
            ("waiting_per_tenant", self.waiting_per_tenant as u64),
            ("waiting_callers", self.waiting_callers as u64),
            ("known_tenants", self.known_tenants),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(InvalidConfig::new(format!("{name} must be more than zero")));
        }
        if self.tenants_in_metrics > MOST_NAMED {
            return Err(InvalidConfig::new(format!(
                "tenants_in_metrics must be at most {MOST_NAMED}"
            )));
        }
        if self.wake_reserve() >= self.max_connections {
            return Err(InvalidConfig::new(
                "wake_reserve must be less than max_connections",
            ));
        }
        check_limit("get_timeout", self.get_timeout)?;
        check_limit("wake_timeout", self.wake_timeout)?;
        check_limit("provision_timeout", self.provision_timeout)?;
        check_limit("idle_after", self.idle_after)?;
        check_limit("max_lifetime", self.max_lifetime)?;
        check_limit("warn_held_after", self.warn_held_after)?;
        check_limit("catalog_ttl", self.catalog_ttl)?;
        check_limit("catalog_timeout", self.catalog_timeout)?;
        self.catalog_poll
            .map_or(Ok(()), |interval| check_limit("catalog_poll", interval))
    }
}

/// Refuses a time limit that makes no sense: zero, or more than a day.
pub(crate) fn check_limit(name: &str, limit: Duration) -> Result<(), InvalidConfig> {
    if limit.is_zero() || limit > Duration::from_secs(24 * 3600) {
        return Err(InvalidConfig::new(format!(
            "{name} must be more than zero and at most a day"
        )));
    }
    Ok(())
}

/// The error for a setting that cannot work. The text names the setting, and says what would work.
#[derive(Clone, Eq, PartialEq)]
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

/// Writes the text of `Display`, because `main` prints a returned error through `Debug`.
impl fmt::Debug for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return chain::write(f, self);
        }
        f.debug_tuple("InvalidConfig").field(&self.0).finish()
    }
}

impl std::error::Error for InvalidConfig {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_zero_is_not() {
        assert_eq!(Config::default().check(), Ok(()));
        let none = Config {
            pool_size: 0,
            ..Config::default()
        };
        let err = none.check().unwrap_err();
        assert_eq!(err.to_string(), "pool_size must be more than zero");
        let many = Config {
            tenants_in_metrics: MOST_NAMED + 1,
            ..Config::default()
        };
        let err = many.check().unwrap_err().to_string();
        assert_eq!(err, "tenants_in_metrics must be at most 100");
        for limit in [Duration::ZERO, Duration::MAX] {
            let absurd = Config {
                get_timeout: limit,
                ..Config::default()
            };
            assert!(
                absurd
                    .check()
                    .unwrap_err()
                    .to_string()
                    .starts_with("get_timeout")
            );
        }
    }
}
