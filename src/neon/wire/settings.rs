//! Parts of a plan in Neon's format.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::tolerant;
use crate::model::plan::{Quota, Suspend};

/// Returns the settings of a compute. A setting that is `None` is left out.
pub(super) fn compute(
    compute_units: Option<(f64, f64)>,
    suspend: Option<Suspend>,
) -> Map<String, Value> {
    let mut settings = Map::new();
    if let Some((min, max)) = compute_units {
        settings.insert("autoscaling_limit_min_cu".into(), json!(min));
        settings.insert("autoscaling_limit_max_cu".into(), json!(max));
    }
    if let Some(suspend) = suspend {
        settings.insert("suspend_timeout_seconds".into(), seconds(suspend));
    }
    settings
}

/// Returns the settings of a new compute. A default suspend is not sent, so that the account's own default applies.
pub(super) fn new_compute(
    compute_units: Option<(f64, f64)>,
    suspend: Suspend,
) -> Map<String, Value> {
    compute(
        compute_units,
        (suspend != Suspend::Default).then_some(suspend),
    )
}

fn seconds(suspend: Suspend) -> Value {
    match suspend {
        Suspend::Default => json!(0),
        Suspend::After(window) => json!(begun_seconds(window)),
        Suspend::Never => json!(-1),
    }
}

/// Returns the seconds, rounded up and at least one. To Neon, 0 means no limit in a quota and the default in a suspend
/// timeout.
fn begun_seconds(time: Duration) -> u64 {
    let begun = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(begun).max(1)
}

/// Returns the limits that a quota sets.
pub(super) fn quota(quota: &Quota) -> Map<String, Value> {
    limits(quota)
        .into_iter()
        .filter_map(|(field, limit)| Some((field.to_owned(), json!(limit?))))
        .collect()
}

/// Returns every limit, 0 for none. It is not documented whether Neon merges a part of a quota into the old one; for a
/// whole quota it makes no difference.
pub(super) fn whole_quota(quota: &Quota) -> Map<String, Value> {
    limits(quota)
        .into_iter()
        .map(|(field, limit)| (field.to_owned(), json!(limit.unwrap_or_default())))
        .collect()
}

fn limits(quota: &Quota) -> [(&'static str, Option<u64>); 5] {
    let seconds = |time: Option<Duration>| time.map(begun_seconds);
    let bytes = |limit: Option<u64>| limit.map(|limit| limit.max(1));
    [
        ("active_time_seconds", seconds(quota.active_time)),
        ("compute_time_seconds", seconds(quota.compute_time)),
        ("written_data_bytes", bytes(quota.written_bytes)),
        ("data_transfer_bytes", bytes(quota.transfer_bytes)),
        ("logical_size_bytes", bytes(quota.logical_size_bytes)),
    ]
}

pub(super) fn filled(map: Map<String, Value>) -> Option<Value> {
    (!map.is_empty()).then_some(Value::Object(map))
}

#[derive(Default, Deserialize)]
struct Settings {
    #[serde(default, deserialize_with = "tolerant::or_default")]
    quota: Limits,
}

#[derive(Default, Deserialize)]
struct Limits {
    #[serde(default, deserialize_with = "tolerant::count")]
    active_time_seconds: u64,
    #[serde(default, deserialize_with = "tolerant::count")]
    compute_time_seconds: u64,
    #[serde(default, deserialize_with = "tolerant::count")]
    written_data_bytes: u64,
    #[serde(default, deserialize_with = "tolerant::count")]
    data_transfer_bytes: u64,
    #[serde(default, deserialize_with = "tolerant::count")]
    logical_size_bytes: u64,
}

/// Reads the quota from a project's settings. A limit of 0 is none.
pub(super) fn quota_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quota, D::Error> {
    let Settings { quota } = tolerant::or_default(deserializer)?;
    let limit = |value: u64| (value > 0).then_some(value);
    let time = |seconds: u64| limit(seconds).map(Duration::from_secs);
    Ok(Quota {
        active_time: time(quota.active_time_seconds),
        compute_time: time(quota.compute_time_seconds),
        written_bytes: limit(quota.written_data_bytes),
        transfer_bytes: limit(quota.data_transfer_bytes),
        logical_size_bytes: limit(quota.logical_size_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_read_as_it_is_written_and_zero_is_no_limit() {
        let limited = Quota {
            active_time: Some(Duration::from_secs(3600)),
            written_bytes: Some(9),
            ..Quota::default()
        };
        for written in [quota(&limited), whole_quota(&limited)] {
            assert_eq!(quota_of(json!({ "quota": written })).unwrap(), limited);
        }
        assert_eq!(whole_quota(&limited)["data_transfer_bytes"], 0);
        for none in [
            json!(null),
            json!({}),
            json!({ "quota": null }),
            json!({ "quota": {} }),
        ] {
            assert_eq!(quota_of(&none).unwrap(), Quota::default(), "{none}");
        }
    }

    #[test]
    fn the_smallest_limits_stay_limits() {
        let (zero, part) = (Duration::ZERO, Duration::from_millis(1500));
        let least = Quota {
            active_time: Some(zero),
            compute_time: Some(part),
            written_bytes: Some(0),
            transfer_bytes: Some(0),
            logical_size_bytes: Some(0),
        };
        for written in [quota(&least), whole_quota(&least)] {
            let limits = json!({
                "active_time_seconds": 1, "compute_time_seconds": 2,
                "written_data_bytes": 1, "data_transfer_bytes": 1, "logical_size_bytes": 1,
            });
            assert_eq!(Value::Object(written), limits);
        }
        for (window, sent) in [(zero, 1), (part, 2), (Duration::MAX, u64::MAX)] {
            assert_eq!(seconds(Suspend::After(window)), sent, "{window:?}");
        }
    }

    #[test]
    fn a_default_is_sent_as_zero_only_where_it_replaces_something() {
        assert_eq!(new_compute(None, Suspend::Default), Map::new());
        let reset = compute(None, Some(Suspend::Default));
        assert_eq!(
            Value::Object(reset),
            json!({ "suspend_timeout_seconds": 0 })
        );
        let never = new_compute(Some((0.25, 2.0)), Suspend::Never);
        assert_eq!(
            Value::Object(never),
            json!({
                "autoscaling_limit_min_cu": 0.25,
                "autoscaling_limit_max_cu": 2.0,
                "suspend_timeout_seconds": -1,
            })
        );
    }
}
