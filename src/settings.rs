//! Settings as text: from a configuration file that serde reads, and from the environment.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::{
    builder::RouterBuilder,
    config::{Config, InvalidConfig},
    neon::{Neon, NeonBuilder},
    plan::Plan,
    provision::Provisioner,
    records::{Memory, Postgres, PostgresBuilder},
    router::TenantRouter,
    seal::KeyRing,
    tenant::Namespace,
};

/// What the variables of the environment that hold [`Settings`] begin with.
const PREFIX: &str = "TENANTRY_";

/// Settings of a router as text, by the names of [`RouterBuilder`]'s methods: a part of the application's own configuration
/// file. Times are written as `"20s"`, `"4min"` or `"1h 30min"`; what is left out keeps its default. A name that there is
/// not, and a value that cannot be read, are errors.
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
    /// Those that variables like `TENANTRY_POOL_SIZE=8` hold.
    ///
    /// # Errors
    /// If a variable of that kind names no setting, or its value cannot be read. The text names the variable.
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
                "there is no setting {name:?}; settings have the names of RouterBuilder's methods"
            )));
        }
    }
    Ok(())
}

fn count<T: FromStr>(name: &str, value: &str) -> Result<T, InvalidConfig> {
    value
        .trim()
        .parse()
        .map_err(|_| InvalidConfig::new(format!("{name} must be a number, and not {value:?}")))
}

fn time(name: &str, value: &str) -> Result<Duration, InvalidConfig> {
    humantime::parse_duration(value.trim()).map_err(|_| {
        InvalidConfig::new(format!(
            "{name} must be a time like \"20s\" or \"4min\", and not {value:?}"
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

/// A value as configuration files have it.
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
    /// Sets what `settings` hold, over what was set before.
    pub fn settings(mut self, settings: &Settings) -> Self {
        let written = settings.write(self.config_mut());
        debug_assert!(written.is_ok(), "they were checked when they were read");
        self
    }
}

impl TenantRouter {
    /// A router that provisions at Neon, set up by variables of the environment:
    ///
    /// | variable | what |
    /// |---|---|
    /// | `NEON_API_KEY` | key of Neon's API; required |
    /// | `TENANTRY_NAMESPACE` | what keeps environments apart, such as `production`; required |
    /// | `NEON_ORG_ID` | organization that the projects belong to, where the key is a person's |
    /// | `NEON_REGION` | region of new databases, such as `aws-us-east-2` |
    /// | `CATALOG_URL` | Postgres that holds the catalog; without it the catalog is in memory, for one process only |
    /// | `CATALOG_KEYS` | keys with which passwords in it are sealed ([`KeyRing::parse`]); required with `CATALOG_URL` |
    /// | `TENANTRY_…` | any of [`Settings`], such as `TENANTRY_MAX_CONNECTIONS` |
    ///
    /// What it returns can be set up further. No access creates a database, only
    /// [`Fleet::provision`](crate::Fleet::provision) does; for a policy, a prepare hook or plans build the [`Provisioner`] by
    /// hand.
    ///
    /// # Errors
    /// If one is missing or cannot be read; the text names it and holds no secret.
    pub fn from_env() -> Result<RouterBuilder, InvalidConfig> {
        let router = router_by(&Variables(of_process))?;
        Ok(router.settings(&Settings::from_env()?))
    }
}

impl Neon {
    /// A client that sends the key in the variable `NEON_API_KEY`, for the organization in `NEON_ORG_ID`, if there is one.
    ///
    /// # Errors
    /// If the key is missing or cannot be read; the text names the variable and holds no secret.
    pub fn from_env() -> Result<NeonBuilder, InvalidConfig> {
        neon_by(&Variables(of_process))
    }
}

impl Postgres {
    /// A catalog in the Postgres that the variable `CATALOG_URL` names, which seals passwords with the keys in
    /// `CATALOG_KEYS` ([`KeyRing::parse`]).
    ///
    /// # Errors
    /// If one of them is missing or cannot be read; the text names it and holds no secret.
    pub fn from_env() -> Result<PostgresBuilder, InvalidConfig> {
        catalog_by(&Variables(of_process))
    }
}

fn of_process(name: &OsStr) -> Option<OsString> {
    std::env::var_os(name)
}

/// What looks variables up.
struct Variables<F>(F);

impl<F: Fn(&OsStr) -> Option<OsString>> Variables<F> {
    /// The value of that variable; none if it is missing or empty.
    fn get(&self, name: &str) -> Result<Option<String>, InvalidConfig> {
        let value = self.0(name.as_ref()).filter(|value| !value.is_empty());
        let text = value.map(|value| value.into_string().map_err(|_| not_text(name)));
        text.transpose()
    }

    fn required(&self, name: &str) -> Result<String, InvalidConfig> {
        let missing = || InvalidConfig::new(format!("the variable {name} is missing"));
        self.get(name)?.ok_or_else(missing)
    }
}

fn not_text(variable: &str) -> InvalidConfig {
    InvalidConfig::new(format!("the variable {variable} is not UTF-8"))
}

fn of_variable(variable: &str, err: &dyn fmt::Display) -> InvalidConfig {
    InvalidConfig::new(format!("the variable {variable} cannot be used: {err}"))
}

fn neon_by<F: Fn(&OsStr) -> Option<OsString>>(
    variables: &Variables<F>,
) -> Result<NeonBuilder, InvalidConfig> {
    let neon = Neon::builder(variables.required("NEON_API_KEY")?);
    Ok(match variables.get("NEON_ORG_ID")? {
        Some(org_id) => neon.org_id(org_id),
        None => neon,
    })
}

fn router_by<F: Fn(&OsStr) -> Option<OsString>>(
    variables: &Variables<F>,
) -> Result<RouterBuilder, InvalidConfig> {
    let neon = neon_by(variables)?;
    let mut plan = Plan::new();
    if let Some(region) = variables.get("NEON_REGION")? {
        plan = plan.region(region);
    }
    let neon = neon.build();
    let neon = neon.map_err(|err| of_variable("NEON_API_KEY", &err))?;
    let namespace = variables.required("TENANTRY_NAMESPACE")?;
    let provisioner = if variables.get("CATALOG_URL")?.is_some() {
        let records = catalog_by(variables)?.build();
        let records = records.map_err(|err| of_variable("CATALOG_URL", &err))?;
        Provisioner::new(records, neon, &namespace)
    } else {
        Provisioner::new(Memory::new(), neon, &namespace)
    };
    Namespace::parse(&namespace).map_err(|err| of_variable("TENANTRY_NAMESPACE", &err))?;
    Ok(TenantRouter::provisioning(provisioner.plan(plan)))
}

fn catalog_by<F: Fn(&OsStr) -> Option<OsString>>(
    variables: &Variables<F>,
) -> Result<PostgresBuilder, InvalidConfig> {
    let url = variables.required("CATALOG_URL")?;
    let keys = KeyRing::parse(&variables.required("CATALOG_KEYS")?);
    let keys = keys.map_err(|err| of_variable("CATALOG_KEYS", &err))?;
    Ok(Postgres::builder(url).keys(keys))
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
        config.wake_reserve = None; // the default is a share
        assert_eq!(plain(&config), plain(&default));
    }

    #[test]
    fn the_manual_has_every_default_as_it_is() {
        let page = include_str!("manual/tuning.md");
        let rows = page.lines().filter_map(|line| {
            line.strip_prefix("| [`")?
                .split_once("`](crate::RouterBuilder::")
        });
        let pairs = rows.filter_map(|(name, rest)| Some((name, rest.split(" | ").nth(1)?)));
        let apart = ["wake_reserve", "resolve", "root_certificate", "settings"];
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

    /// Every number and time.
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

    #[test]
    fn the_environment_gives_settings_and_what_is_needed_to_begin() {
        let all = [
            ("TENANTRY_POOL_SIZE", "9"),
            ("TENANTRY_NAMESPACE", "x"),
            ("PATH", "/"),
        ];
        let all = all.map(|(name, value)| (name.into(), value.into()));
        let settings = Settings::from_variables(all).unwrap();
        assert_eq!(settings.0, [("pool_size".into(), "9".into())].into());
        let err = router_by(&Variables(|_: &OsStr| None)).unwrap_err();
        assert_eq!(err.to_string(), "the variable NEON_API_KEY is missing");
        let all_but_keys = |name: &OsStr| (name != "CATALOG_KEYS").then(|| "postgres://x".into());
        assert_eq!(
            router_by(&Variables(all_but_keys)).unwrap_err().to_string(),
            "the variable CATALOG_KEYS is missing"
        );
    }

    /// As `main` prints an error that it returns.
    fn printed<T>(result: Result<T, InvalidConfig>) -> String {
        format!("{:?}", result.err().unwrap())
    }

    #[cfg(unix)]
    #[test]
    fn whatever_is_wrong_with_a_variable_is_said_in_a_sentence_that_names_it() {
        use std::os::unix::ffi::OsStringExt;
        let set = |name: &'static str, value: &'static [u8]| {
            let usual = move |asked: &OsStr| match asked.to_str()? {
                it if it == name => Some(OsString::from_vec(value.to_vec())),
                "NEON_API_KEY" => Some("napi_key".into()),
                "TENANTRY_NAMESPACE" => Some("production".into()),
                "CATALOG_URL" => Some("postgres://me@localhost/catalog".into()),
                "CATALOG_KEYS" => Some(format!("a:{}", "5a".repeat(32)).into()),
                _ => None,
            };
            printed(router_by(&Variables(usual)))
        };
        let missing = printed(neon_by(&Variables(|_: &OsStr| None)));
        assert_eq!(missing, "the variable NEON_API_KEY is missing");
        assert_eq!(
            set("NEON_API_KEY", b"\xff"),
            "the variable NEON_API_KEY is not UTF-8"
        );
        for (name, value) in [
            ("NEON_API_KEY", &b""[..]),
            ("NEON_API_KEY", b"a b"),
            ("NEON_REGION", b"\xff"),
            ("TENANTRY_NAMESPACE", b""),
            ("TENANTRY_NAMESPACE", b"Production"),
            ("CATALOG_URL", b"no url"),
            ("CATALOG_KEYS", b"no keys"),
        ] {
            let told = set(name, value);
            assert!(told.starts_with(&format!("the variable {name} ")), "{told}");
        }
        for (name, value) in [
            ("TENANTRY_POOL_SIZE", &b"many"[..]),
            ("TENANTRY_POOL_SIEZ", b"4"),
            ("TENANTRY_GET_TIMEOUT", b"\xff"),
        ] {
            let all = [(name.into(), OsString::from_vec(value.to_vec()))];
            let told = printed(Settings::from_variables(all));
            assert!(told.starts_with(&format!("the variable {name} ")), "{told}");
        }
    }
}
