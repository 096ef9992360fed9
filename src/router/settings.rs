//! Settings as text: from a configuration file that serde reads, and from the environment.

mod variables;

use std::{collections::BTreeMap, ffi::OsString, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

use super::builder::RouterBuilder;
use crate::model::config::{Config, InvalidConfig};
use variables::{not_text, of_variable};

/// Prefix of the environment variables that hold [`Settings`].
const PREFIX: &str = "TENANTRY_";

/// The settings of a router as text, by the names of [`RouterBuilder`]'s methods: a part of the application's own
/// configuration file. Times are written as `"20s"`, `"4min"` or `"1h 30min"`. A setting that is left out keeps its
/// default. An unknown name, or a value that cannot be read, is an error.
///
/// ```toml
/// [tenantry]
/// max_connections = 500    # to all tenants together
/// wake_reserve = 50        # of these, for tenants that have none
/// max_pools = 1000
/// pool_size = 4            # connections per tenant
/// direct_connections = 2
/// concurrent_dials = 4
/// waiting_callers = 10000
/// waiting_per_tenant = 2000
/// get_timeout = "20s"
/// wake_timeout = "60s"
/// provision_timeout = "60s"
/// verify_after = "30s"
/// idle_after = "4min"
/// max_lifetime = "30min"
/// warn_held_after = "60s"
/// hints_per_minute = 30
/// known_tenants = 1000000
/// catalog_ttl = "5min"
/// catalog_timeout = "5s"
/// catalog_poll = "30s"     # or "never"
/// name = "tenantry"        # in metrics
/// tenants_in_metrics = 0
/// ```
///
/// ```
/// use tenantry::Settings;
///
/// let settings: Settings = serde_json::from_str(r#"{"pool_size": 8, "get_timeout": "10s"}"#)?;
/// assert!(serde_json::from_str::<Settings>(r#"{"pool_siez": 8}"#).is_err());
/// # let _ = settings;
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads the settings from variables like `TENANTRY_POOL_SIZE=8`.
    ///
    /// # Errors
    /// Returns an error if a variable of that kind names no setting, or if its value cannot be read. The text names the
    /// variable.
    pub fn from_env() -> Result<Self, InvalidConfig> {
        Self::from_variables(std::env::vars_os())
    }

    fn from_variables(
        all: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, InvalidConfig> {
        let mut settings = BTreeMap::new();
        for (variable, value) in all {
            let Some(variable) = variable.to_str() else {
                continue;
            };
            let Some(name) = variable.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else {
                continue;
            };
            if name == "namespace" {
                continue;
            }
            let value = value.into_string().map_err(|_| not_text(variable))?;
            let read = set(&mut Config::default(), &name, &value);
            read.map_err(|err| of_variable(variable, &err))?;
            settings.insert(name, value);
        }
        Ok(Self(settings))
    }

    fn checked(values: BTreeMap<String, String>) -> Result<Self, InvalidConfig> {
        let settings = Self(values);
        settings.write(&mut Config::default())?;
        Ok(settings)
    }

    fn write(&self, config: &mut Config) -> Result<(), InvalidConfig> {
        let mut all = self.0.iter();
        all.try_for_each(|(name, value)| set(config, name, value))
    }
}

/// Writes one setting.
fn set(config: &mut Config, name: &str, value: &str) -> Result<(), InvalidConfig> {
    match name {
        "catalog_poll" if value == "never" => config.catalog_poll = None,
        "catalog_poll" => config.catalog_poll = Some(time(name, value)?),
        "catalog_timeout" => config.catalog_timeout = time(name, value)?,
        "catalog_ttl" => config.catalog_ttl = time(name, value)?,
        "concurrent_dials" => config.concurrent_dials = count(name, value)?,
        "direct_connections" => config.direct_connections = count(name, value)?,
        "get_timeout" => config.get_timeout = time(name, value)?,
        "hints_per_minute" => config.hints_per_minute = count(name, value)?,
        "idle_after" => config.idle_after = time(name, value)?,
        "known_tenants" => config.known_tenants = count(name, value)?,
        "max_connections" => config.max_connections = count(name, value)?,
        "max_lifetime" => config.max_lifetime = time(name, value)?,
        "max_pools" => config.max_pools = count(name, value)?,
        "name" => config.name = value.into(),
        "pool_size" => config.pool_size = count(name, value)?,
        "provision_timeout" => config.provision_timeout = time(name, value)?,
        "tenants_in_metrics" => config.tenants_in_metrics = count(name, value)?,
        "verify_after" => config.verify_after = time(name, value)?,
        "waiting_callers" => config.waiting_callers = count(name, value)?,
        "waiting_per_tenant" => config.waiting_per_tenant = count(name, value)?,
        "wake_reserve" => config.wake_reserve = Some(count(name, value)?),
        "wake_timeout" => config.wake_timeout = time(name, value)?,
        "warn_held_after" => config.warn_held_after = time(name, value)?,
        _ => {
            return Err(InvalidConfig::new(format!(
                "there is no setting {name:?}; use the name of one of RouterBuilder's methods"
            )));
        }
    }
    Ok(())
}

fn count<T: FromStr>(name: &str, value: &str) -> Result<T, InvalidConfig> {
    value
        .trim()
        .parse()
        .map_err(|_| InvalidConfig::new(format!("{name} must be a number, not {value:?}")))
}

fn time(name: &str, value: &str) -> Result<Duration, InvalidConfig> {
    humantime::parse_duration(value.trim()).map_err(|_| {
        InvalidConfig::new(format!(
            "{name} must be a time like \"20s\" or \"4min\", not {value:?}"
        ))
    })
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let values = BTreeMap::<String, Value>::deserialize(from)?.into_iter();
        let values = values.map(|(name, value)| (name, value.to_string()));
        Self::checked(values.collect()).map_err(de::Error::custom)
    }
}

/// A value in a configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl RouterBuilder {
    /// Applies `settings` over the values that were set before.
    pub fn settings(mut self, settings: &Settings) -> Self {
        let written = settings.write(self.config_mut());
        debug_assert!(written.is_ok(), "they were checked when they were read");
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<Settings, String> {
        serde_json::from_value(value).map_err(|err| err.to_string())
    }

    #[test]
    fn what_is_written_is_set_and_the_rest_stays() {
        let settings = read(json!({
            "max_connections": 50, "get_timeout": "1min 30s", "catalog_poll": "never", "wake_reserve": "7",
        }));
        let mut config = Config::default();
        settings.unwrap().write(&mut config).unwrap();
        assert_eq!(config.max_connections, 50);
        assert_eq!(config.get_timeout, Duration::from_secs(90));
        assert_eq!((config.catalog_poll, config.wake_reserve), (None, Some(7)));
        assert_eq!(config.pool_size, Config::default().pool_size);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (wrong, says) in [
            (json!({"pool_siez": 8}), "pool_siez"),
            (json!({"pool_size": "many"}), "pool_size must be a number"),
            (
                json!({"get_timeout": 20}),
                "get_timeout must be a time like",
            ),
        ] {
            let err = read(wrong).unwrap_err();
            assert!(err.contains(says), "{err}");
        }
    }

    #[test]
    fn the_documentation_names_every_setting_with_its_default() {
        let source = include_str!("settings.rs");
        let example = source.lines().skip_while(|line| !line.contains("```toml"));
        let example = example.skip(1).take_while(|line| !line.contains("```"));
        let lines = example.filter_map(|line| line.strip_prefix("/// "));
        let pairs = lines.filter_map(|line| line.split('#').next()?.split_once(" = "));
        let pairs = pairs.map(|(name, value)| (name.into(), value.trim().replace('"', "")));
        let documented = Settings(pairs.collect());
        assert_eq!(documented.0.len(), 22, "as many as there are");
        let (mut config, default) = (Config::default(), Config::default());
        documented.write(&mut config).unwrap();
        config.wake_reserve = None; // the default is a share of max_connections
        assert_eq!(plain(&config), plain(&default));
    }

    #[test]
    fn the_manual_has_every_default_as_it_is() {
        let page = include_str!("../manual/tuning.md");
        let rows = page.lines().filter_map(|line| {
            line.strip_prefix("| [`")?
                .split_once("`](crate::RouterBuilder::")
        });
        let pairs = rows.filter_map(|(name, rest)| Some((name, rest.split(" | ").nth(1)?)));
        let apart = [
            "wake_reserve",
            "resolve",
            "root_certificate",
            "schema",
            "settings",
        ];
        let pairs = pairs.filter(|(name, _)| !apart.contains(name));
        let pairs = pairs.map(|(name, default)| (name.to_owned(), default.replace(',', "")));
        let documented = Settings(pairs.collect());
        assert_eq!(
            documented.0.len(),
            21,
            "as many as there are, but for the reserve"
        );
        let (mut config, default) = (Config::default(), Config::default());
        documented.write(&mut config).unwrap();
        assert_eq!(plain(&config), plain(&default));
        assert!(
            page.contains("| a tenth |") && default.wake_reserve() * 10 == default.max_connections
        );
    }

    /// Returns every number and time as text.
    fn plain(config: &Config) -> String {
        let Config {
            name,
            tenants_in_metrics,
            max_pools,
            pool_size,
            concurrent_dials,
            get_timeout,
            wake_timeout,
            provision_timeout,
            verify_after,
            idle_after,
            max_lifetime,
            warn_held_after,
            hints_per_minute,
            direct_connections,
            max_connections,
            wake_reserve,
            waiting_per_tenant,
            waiting_callers,
            known_tenants,
            catalog_ttl,
            catalog_timeout,
            catalog_poll,
            resolve: _,
            root_certificates: _,
        } = config;
        let counts = (
            name,
            tenants_in_metrics,
            max_pools,
            pool_size,
            concurrent_dials,
            hints_per_minute,
            direct_connections,
            max_connections,
            wake_reserve,
            waiting_per_tenant,
            waiting_callers,
            known_tenants,
        );
        let times = (
            get_timeout,
            wake_timeout,
            provision_timeout,
            verify_after,
            idle_after,
            max_lifetime,
            warn_held_after,
            catalog_ttl,
            catalog_timeout,
            catalog_poll,
        );
        format!("{counts:?} {times:?}")
    }
}
