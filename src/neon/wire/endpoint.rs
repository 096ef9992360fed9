//! Compute endpoints.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{settings, tolerant};
use crate::model::{endpoint::DEFAULT_SUSPEND_WINDOW, plan::Suspend};

/// The changes to a compute endpoint. A field that is `None` changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct UpdateEndpoint {
    /// Least and most compute units (1 unit is about 1 vCPU with 4 GB).
    pub compute_units: Option<(f64, f64)>,
    /// Time without activity until it sleeps; Neon's own default is 5 minutes.
    pub suspend: Option<Suspend>,
    /// `true` to disable it: neither a connection nor a call can wake it then.
    pub disabled: Option<bool>,
}

impl UpdateEndpoint {
    /// Creates an update that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the range of compute units.
    #[must_use]
    pub fn compute_units(mut self, min: f64, max: f64) -> Self {
        self.compute_units = Some((min, max));
        self
    }

    /// Changes the time without activity until it sleeps.
    #[must_use]
    pub fn suspend(mut self, suspend: Suspend) -> Self {
        self.suspend = Some(suspend);
        self
    }

    /// Disables it, so that nothing can wake it, or enables it again.
    #[must_use]
    pub fn disabled(mut self, disabled: bool) -> Self {
        self.disabled = Some(disabled);
        self
    }

    pub(in crate::neon) fn body(&self) -> Value {
        let mut endpoint = settings::compute(self.compute_units, self.suspend);
        endpoint.extend(
            self.disabled
                .map(|disabled| ("disabled".to_owned(), json!(disabled))),
        );
        json!({ "endpoint": endpoint })
    }
}

/// A compute endpoint of a branch.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[non_exhaustive]
pub struct Endpoint {
    /// Its id, `ep-…`.
    pub id: String,
    /// Its direct host.
    pub host: String,
    /// The branch it serves.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub branch_id: String,
    /// `read_write` or `read_only`.
    #[serde(default, rename = "type", deserialize_with = "tolerant::or_default")]
    pub kind: String,
    /// Its region, such as `aws-us-east-2`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub region_id: String,
    /// `init`, `active` or `idle`.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub current_state: String,
    /// The state that it is changing to.
    #[serde(default)]
    pub pending_state: Option<String>,
    /// `true` if nothing can wake it.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub disabled: bool,
    /// Least compute units; 0 if Neon does not say.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub autoscaling_limit_min_cu: f64,
    /// Most compute units; 0 if Neon does not say.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub autoscaling_limit_max_cu: f64,
    /// Seconds without activity until it sleeps; 0 for the default of 300, -1 for never.
    #[serde(default, deserialize_with = "tolerant::whole")]
    pub suspend_timeout_seconds: i64,
}

impl Endpoint {
    /// Returns the time without activity until it sleeps; `None` for never.
    pub fn suspend_window(&self) -> Option<Duration> {
        match self.suspend_timeout_seconds {
            0 => Some(DEFAULT_SUSPEND_WINDOW),
            seconds => u64::try_from(seconds).ok().map(Duration::from_secs),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct EndpointsAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    pub(in crate::neon) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct EndpointAnswer {
    pub(in crate::neon) endpoint: Endpoint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_default_window_and_minus_one_is_never() {
        let endpoint = |seconds: i64| -> Endpoint {
            serde_json::from_value(
                json!({ "id": "ep-a", "host": "h", "suspend_timeout_seconds": seconds }),
            )
            .unwrap()
        };
        assert_eq!(endpoint(0).suspend_window(), Some(Duration::from_secs(300)));
        assert_eq!(endpoint(60).suspend_window(), Some(Duration::from_secs(60)));
        assert_eq!(endpoint(-1).suspend_window(), None);
    }
}
