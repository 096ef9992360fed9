//! What the creation of a project asks for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    api::Refused,
    contents::Contents,
    names::{DEFAULT_REGION, REGIONS, new_password},
    scram::Verifier,
    world::Wanted,
};

/// Names that no role may have.
const RESERVED_ROLES: &[&str] = &[
    "neon_superuser",
    "cloud_admin",
    "zenith_admin",
    "public",
    "none",
];

#[derive(Deserialize)]
pub(super) struct CreateBody {
    pub(super) project: CreateProject,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct CreateProject {
    name: Option<String>,
    region_id: Option<String>,
    pg_version: Option<u64>,
    org_id: Option<String>,
    branch: CreateBranch,
    default_endpoint_settings: EndpointSettings,
    settings: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CreateBranch {
    name: Option<String>,
    role_name: Option<String>,
    database_name: Option<String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EndpointSettings {
    autoscaling_limit_min_cu: Option<f64>,
    autoscaling_limit_max_cu: Option<f64>,
    suspend_timeout_seconds: i64,
}

impl CreateProject {
    /// What it asks for, with Neon's defaults; refused where Neon refuses.
    pub(super) fn checked(self) -> Result<Wanted, Refused> {
        let Self {
            name,
            region_id,
            pg_version,
            org_id,
            branch,
            default_endpoint_settings,
            settings,
        } = self;
        let named = name
            .as_ref()
            .is_none_or(|name| (1..=256).contains(&name.chars().count()));
        check(named, "project name has 1 to 256 characters")?;
        let region = region_id.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        check(REGIONS.contains(&region.as_str()), "unknown region")?;
        let pg_version = pg_version.unwrap_or(17);
        check((14..=18).contains(&pg_version), "pg_version is 14 to 18")?;
        check(
            branch.annotations.len() <= 50,
            "a branch has 50 annotations at most",
        )?;
        let suspend_timeout_seconds = default_endpoint_settings.suspend_timeout_seconds;
        Ok(Wanted {
            name,
            region,
            pg_version,
            org_id,
            compute_units: default_endpoint_settings.checked()?,
            branch_name: branch.name.clone().unwrap_or_else(|| "main".to_owned()),
            annotations: branch.annotations.clone(),
            contents: branch.checked()?,
            suspend_timeout_seconds,
            quota: settings.and_then(|settings| settings.get("quota").cloned()),
        })
    }
}

impl CreateBranch {
    /// Database and role, with a new password.
    fn checked(self) -> Result<Contents, Refused> {
        let database = self.database_name.unwrap_or_else(|| "neondb".to_owned());
        let role = self
            .role_name
            .unwrap_or_else(|| format!("{database}_owner"));
        let reserved = database == "postgres" || database.starts_with("template");
        check(
            !database.is_empty() && !reserved,
            "the database's name is empty or reserved",
        )?;
        let reserved = role.starts_with("pg") || RESERVED_ROLES.contains(&role.as_str());
        check(
            !role.is_empty() && !reserved,
            "the role's name is empty or reserved",
        )?;
        let password = new_password();
        let verifier = Verifier::of(&password);
        Ok(Contents {
            database,
            role,
            password,
            verifier,
        })
    }
}

impl EndpointSettings {
    /// Least and most compute units.
    fn checked(&self) -> Result<(f64, f64), Refused> {
        let window = matches!(self.suspend_timeout_seconds, -1 | 0 | 60..=604_800);
        check(window, "suspend_timeout_seconds is -1, 0, or 60 to 604800")?;
        let min = self.autoscaling_limit_min_cu.unwrap_or(0.25);
        let max = self.autoscaling_limit_max_cu.unwrap_or(min);
        check(
            min >= 0.25 && max >= min,
            "compute units are 0.25 or more, and the maximum not below the minimum",
        )?;
        Ok((min, max))
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), Refused> {
    if holds {
        Ok(())
    } else {
        Err(Refused::invalid(otherwise))
    }
}
