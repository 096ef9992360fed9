//! Request bodies, checked as Neon checks them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Refused;
use crate::emulator::{
    compute::contents::Contents,
    names::{DEFAULT_REGION, REGIONS, new_password},
    proxy::scram::Verifier,
    world::{project::Size, usage::Quota},
};

/// Names that no role may have.
const RESERVED_ROLES: &[&str] = &[
    "neon_superuser",
    "cloud_admin",
    "zenith_admin",
    "public",
    "none",
];

/// A project to be created.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct NewProject {
    pub(in crate::emulator) name: Option<String>,
    pub(in crate::emulator) region: String,
    pub(in crate::emulator) pg_version: u64,
    pub(in crate::emulator) org_id: Option<String>,
    pub(in crate::emulator) branch: NewBranch,
    pub(in crate::emulator) contents: Contents,
    pub(in crate::emulator) size: Size,
    pub(in crate::emulator) quota: Quota,
}

/// A branch to be created.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct NewBranch {
    pub(in crate::emulator) name: Option<String>,
    pub(in crate::emulator) annotations: BTreeMap<String, String>,
    /// The size of its endpoint, if it gets one.
    pub(in crate::emulator) endpoint: Option<Size>,
}

#[derive(Deserialize)]
pub(in crate::emulator) struct CreateBody {
    pub(in crate::emulator) project: CreateProject,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::emulator) struct CreateProject {
    name: Option<String>,
    region_id: Option<String>,
    pg_version: Option<u64>,
    org_id: Option<String>,
    branch: CreateBranch,
    default_endpoint_settings: SizeBody,
    settings: Settings,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CreateBranch {
    name: Option<String>,
    role_name: Option<String>,
    database_name: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// The settings of a project besides its size.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::emulator) struct Settings {
    pub(in crate::emulator) quota: Option<Quota>,
}

/// The size of an endpoint, as far as the request gives it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(in crate::emulator) struct SizeBody {
    autoscaling_limit_min_cu: Option<f64>,
    autoscaling_limit_max_cu: Option<f64>,
    suspend_timeout_seconds: Option<i64>,
}

impl CreateProject {
    /// Returns the requested project with Neon's defaults. Refuses what Neon refuses.
    pub(in crate::emulator) fn checked(self) -> Result<NewProject, Refused> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let region = self.region_id.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        check(REGIONS.contains(&region.as_str()), "unknown region")?;
        let pg_version = self.pg_version.unwrap_or(17);
        check((14..=18).contains(&pg_version), "pg_version is 14 to 18")?;
        let branch = self.branch;
        check_annotations(&branch.annotations)?;
        let size = self.default_endpoint_settings.checked(SizeBody::NEONS)?;
        let name = branch.name.clone().unwrap_or_else(|| "main".to_owned());
        Ok(NewProject {
            name: self.name,
            region,
            pg_version,
            org_id: self.org_id,
            branch: NewBranch {
                name: Some(name),
                annotations: branch.annotations.clone(),
                endpoint: Some(size),
            },
            contents: branch.checked()?,
            size,
            quota: self.settings.quota.unwrap_or_default(),
        })
    }
}

impl CreateBranch {
    /// Returns the database and the role, with a new password.
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

impl SizeBody {
    /// Neon's default size.
    const NEONS: Size = Size {
        units: (0.25, 0.25),
        suspend_timeout_seconds: 0,
    };

    /// Returns the requested size. Values that the request does not give come from `otherwise`.
    pub(in crate::emulator) fn checked(self, otherwise: Size) -> Result<Size, Refused> {
        let suspend = self.suspend_timeout_seconds;
        let suspend = suspend.unwrap_or(otherwise.suspend_timeout_seconds);
        let window = matches!(suspend, -1 | 0 | 60..=604_800);
        check(window, "suspend_timeout_seconds is -1, 0, or 60 to 604800")?;
        let min = self.autoscaling_limit_min_cu.unwrap_or(otherwise.units.0);
        let max = self.autoscaling_limit_max_cu;
        let max = max.unwrap_or_else(|| otherwise.units.1.max(min));
        check(
            min >= 0.25 && max >= min,
            "compute units are 0.25 or more, and the maximum not below the minimum",
        )?;
        Ok(Size {
            units: (min, max),
            suspend_timeout_seconds: suspend,
        })
    }
}

/// Checks that the name of a project or branch has 1 to 256 characters.
pub(in crate::emulator) fn check_name(name: &str) -> Result<(), Refused> {
    let fits = (1..=256).contains(&name.chars().count());
    check(fits, "a name has 1 to 256 characters")
}

pub(in crate::emulator) fn check_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<(), Refused> {
    check(
        annotations.len() <= 50,
        "a branch has 50 annotations at most",
    )
}

pub(in crate::emulator) fn check(holds: bool, otherwise: &str) -> Result<(), Refused> {
    if holds {
        Ok(())
    } else {
        Err(Refused::invalid(otherwise))
    }
}
