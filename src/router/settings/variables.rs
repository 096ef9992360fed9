//! Builds a router, a client of Neon and a catalog from environment variables.

use std::{
    ffi::{OsStr, OsString},
    fmt,
};

use super::Settings;
use crate::{
    catalog::{Memory, Postgres, PostgresBuilder, key_ring::KeyRing},
    model::{config::InvalidConfig, plan::Plan, tenant::Namespace},
    neon::{Neon, NeonBuilder},
    provision::Provisioner,
    router::{TenantRouter, builder::RouterBuilder},
};

impl TenantRouter {
    /// Returns the builder of a router that provisions at Neon, set up by environment variables:
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `NEON_API_KEY` | key of Neon's API; required |
    /// | `TENANTRY_NAMESPACE` | name that keeps environments apart, such as `production`; required |
    /// | `NEON_ORG_ID` | organization of the projects, if the key belongs to a person |
    /// | `NEON_REGION` | region of new databases, such as `aws-us-east-2` |
    /// | `CATALOG_URL` | Postgres that holds the catalog; without it the catalog is in memory, for one process only |
    /// | `CATALOG_KEYS` | keys that seal passwords in the catalog ([`KeyRing::parse`]); required with `CATALOG_URL` |
    /// | `TENANTRY_…` | any of [`Settings`], such as `TENANTRY_MAX_CONNECTIONS` |
    ///
    /// The builder can be set up further. No access creates a database, only
    /// [`Fleet::provision`](crate::Fleet::provision) does. For a policy, a prepare hook or plans, build the
    /// [`Provisioner`] by hand.
    ///
    /// # Errors
    /// Returns an error if a variable is missing or cannot be read. The text names it and holds no secret.
    pub fn from_env() -> Result<RouterBuilder, InvalidConfig> {
        let router = router_by(&Variables(of_process))?;
        Ok(router.settings(&Settings::from_env()?))
    }
}

impl Neon {
    /// Returns the builder of a client that sends the key in the variable `NEON_API_KEY`, for the organization in
    /// `NEON_ORG_ID`, if that is set.
    ///
    /// # Errors
    /// Returns an error if the key is missing or cannot be read. The text names the variable and holds no secret.
    pub fn from_env() -> Result<NeonBuilder, InvalidConfig> {
        neon_by(&Variables(of_process))
    }
}

impl Postgres {
    /// Returns the builder of a catalog in the Postgres that the variable `CATALOG_URL` names. It seals passwords with
    /// the keys in `CATALOG_KEYS` ([`KeyRing::parse`]).
    ///
    /// # Errors
    /// Returns an error if one of them is missing or cannot be read. The text names it and holds no secret.
    pub fn from_env() -> Result<PostgresBuilder, InvalidConfig> {
        catalog_by(&Variables(of_process))
    }
}

fn of_process(name: &OsStr) -> Option<OsString> {
    std::env::var_os(name)
}

/// A source of variables.
struct Variables<F>(F);

impl<F: Fn(&OsStr) -> Option<OsString>> Variables<F> {
    /// Returns the value of that variable; `None` if it is missing or empty.
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

pub(super) fn not_text(variable: &str) -> InvalidConfig {
    InvalidConfig::new(format!("the variable {variable} is not UTF-8"))
}

pub(super) fn of_variable(variable: &str, err: &dyn fmt::Display) -> InvalidConfig {
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
    use super::*;

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

    /// Returns an error's text as `main` prints it.
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
