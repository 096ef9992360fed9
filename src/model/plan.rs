//! The settings that a tenant's database gets when it is created.

use std::time::Duration;

use super::config::InvalidConfig;

/// The size, sleep and limits of a tenant's database, applied when it is created.
///
/// A setting that is left out keeps Neon's own default for the account.
///
/// ```
/// use std::time::Duration;
/// use tenantry::Plan;
///
/// let free = Plan::new()
///     .compute_units(0.25, 0.25)
///     .suspend_after(Duration::from_secs(60))
///     .active_time_quota(Duration::from_secs(20 * 3600));
/// # let _ = free;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The application's name for the plan. Kept in the catalog, and not sent anywhere.
    pub name: Option<String>,
    /// Region of the database, such as `aws-us-east-2`. It cannot be changed later.
    pub region: Option<String>,
    /// Major version of Postgres, 14 to 18.
    pub pg_version: Option<u8>,
    /// Least and most compute units (1 unit is about 1 vCPU with 4 GB).
    pub compute_units: Option<(f64, f64)>,
    /// Time without activity after which the compute sleeps.
    pub suspend: Suspend,
    /// The most of each resource in one billing period.
    pub quota: Quota,
    /// The most pooled connections to the tenant that one router has; `None` for the router's own
    /// [`pool_size`](crate::RouterBuilder::pool_size). Kept in the catalog, and not sent anywhere.
    pub max_connections: Option<usize>,
}

/// The time after which an idle compute goes to sleep.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Suspend {
    /// The account's setting (Neon's own default is 5 minutes).
    #[default]
    Default,
    /// Sleep after this time; Neon accepts 60 seconds to 7 days.
    After(Duration),
    /// No sleep: the compute is billed around the clock.
    Never,
}

/// Limits for one billing period. At a limit Neon suspends the database until the period ends or the limit is raised.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Quota {
    /// Wall-clock time during which the compute may be awake.
    pub active_time: Option<Duration>,
    /// CPU time the compute may use.
    pub compute_time: Option<Duration>,
    /// Bytes that may be written.
    pub written_bytes: Option<u64>,
    /// Bytes that may be sent out over the network.
    pub transfer_bytes: Option<u64>,
    /// Logical size of the database in bytes; beyond it writes fail.
    pub logical_size_bytes: Option<u64>,
}

impl Plan {
    /// Creates a plan with Neon's own defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the plan, for the catalog. Defaults to no name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the region. Defaults to the one Neon picks for the account; choose one near the app server.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Sets the major version of Postgres. Defaults to Neon's (17 in 2026).
    #[must_use]
    pub fn pg_version(mut self, version: u8) -> Self {
        self.pg_version = Some(version);
        self
    }

    /// Sets the least and the most compute units. Defaults to the account's; raise the maximum for heavy tenants. A
    /// minimum above the maximum is refused when the router is built, or when a tenant is to be created with the plan.
    #[must_use]
    pub fn compute_units(mut self, min: f64, max: f64) -> Self {
        self.compute_units = Some((min, max));
        self
    }

    /// Sets the time without activity after which the compute sleeps (Neon accepts 60 seconds to 7 days). Defaults to
    /// the account's, normally 5 minutes; a shorter time costs less and causes more wakes.
    #[must_use]
    pub fn suspend_after(mut self, window: Duration) -> Self {
        self.suspend = Suspend::After(window);
        self
    }

    /// Keeps the compute awake for ever. It is then billed around the clock.
    #[must_use]
    pub fn never_suspend(mut self) -> Self {
        self.suspend = Suspend::Never;
        self
    }

    /// Limits the wall-clock time awake in one billing period. Defaults to no limit.
    #[must_use]
    pub fn active_time_quota(mut self, limit: Duration) -> Self {
        self.quota.active_time = Some(limit);
        self
    }

    /// Sets all limits at once. Defaults to none.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Sets the most pooled connections to the tenant that each router has at a time: its
    /// [`Endpoint::max_connections`](crate::Endpoint::max_connections). Defaults to the router's
    /// [`pool_size`](crate::RouterBuilder::pool_size); lower it for a small plan that must not take what others pay
    /// for, raise it for a plan with many parallel queries. Zero is refused when a tenant is to be created with the
    /// plan.
    #[must_use]
    pub fn max_connections(mut self, count: usize) -> Self {
        self.max_connections = Some(count);
        self
    }

    /// Checks that a tenant created with the plan could ever be served. Neon itself judges the other values.
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let wrong = |message: String| Err(InvalidConfig::new(message));
        if self.max_connections == Some(0) {
            return wrong("max_connections of a plan must be more than zero".into());
        }
        if let Some((min, max)) = self.compute_units {
            let is_size = |units: f64| units.is_finite() && units > 0.0;
            if !is_size(min) || !is_size(max) {
                return wrong(format!(
                    "compute_units of a plan must be more than zero, but are {min} to {max}"
                ));
            }
            if min > max {
                return wrong(format!(
                    "compute_units of a plan must be the minimum and then the maximum, but are {min} to {max}"
                ));
            }
        }
        if self
            .region
            .as_deref()
            .is_some_and(|it| it.trim().is_empty())
        {
            return wrong(
                "region of a plan must not be empty; if you set none, Neon picks one".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_contradicts_itself_is_refused_by_name() {
        let plan = Plan::new;
        for (wrong, names) in [
            (plan().compute_units(4.0, 1.0), "compute_units"),
            (plan().compute_units(0.0, 1.0), "compute_units"),
            (plan().compute_units(-1.0, 1.0), "compute_units"),
            (plan().compute_units(f64::NAN, 1.0), "compute_units"),
            (plan().compute_units(0.25, f64::INFINITY), "compute_units"),
            (plan().max_connections(0), "max_connections"),
            (plan().region(" "), "region"),
        ] {
            let err = wrong.check().unwrap_err().to_string();
            assert!(err.starts_with(names), "{err}");
        }
        let right = plan().compute_units(0.25, 0.25).region("aws-us-east-2");
        assert_eq!(right.check(), Ok(()));
    }
}
