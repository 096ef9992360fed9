//! The location of the programs of Postgres and PgBouncer.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::emulator::EmulatorError;

/// The folder of `postgres` and `initdb`, and the path of PgBouncer.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Binaries {
    server: PathBuf,
    pgbouncer: PathBuf,
}

impl Binaries {
    /// Finds the programs on `PATH`, through `pg_config`, or in the usual folders of distributions, newest version
    /// first.
    pub(in crate::emulator) fn find() -> Result<Self, EmulatorError> {
        let mut places: Vec<PathBuf> = env::var_os("PATH")
            .iter()
            .flat_map(env::split_paths)
            .collect();
        places.extend(told_by_pg_config());
        for pattern in [
            "/usr/lib/postgresql",
            "/usr",
            "/opt/homebrew/opt",
            "/usr/local/opt",
        ] {
            places.extend(versions_in(Path::new(pattern)));
        }
        let found = places.into_iter().find(|place| is_server(place));
        // A program on PATH may be a distribution's link to the folder that holds all of them.
        let found = found.map(|place| match fs::canonicalize(place.join("postgres")) {
            Ok(real) => real.parent().map_or(place, Path::to_path_buf),
            Err(_) => place,
        });
        let server = found.filter(|place| is_server(place)).ok_or_else(|| {
            EmulatorError::new("no Postgres server of version 14 or later found; install one (on Debian: apt-get install postgresql)")
        })?;
        let pgbouncer = find_pgbouncer().ok_or_else(|| {
            EmulatorError::new("no PgBouncer of version 1.21 or later found; install one, or run through tests/with-postgres")
        })?;
        Ok(Self { server, pgbouncer })
    }

    pub(in crate::emulator) fn pgbouncer(&self) -> &Path {
        &self.pgbouncer
    }

    pub(in crate::emulator) fn program(&self, name: &str) -> PathBuf {
        self.server.join(name)
    }
}

/// Finds PgBouncer on `PATH`, in the distributions' folders, or in the cache of `tests/with-postgres`. Version 1.21 is
/// the first that supports prepared statements in transaction mode.
fn find_pgbouncer() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .collect();
    places.extend(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let built = cache
        .into_iter()
        .flat_map(|cache| fs::read_dir(cache.join("tenantry")))
        .flatten()
        .flatten();
    places.extend(built.map(|entry| entry.path()));
    places
        .into_iter()
        .map(|place| place.join("pgbouncer"))
        .find(|program| is_new_pgbouncer(program))
}

/// Returns whether the program reports `PgBouncer 1.21` or later.
fn is_new_pgbouncer(program: &Path) -> bool {
    let said = Command::new(program).arg("--version").output().ok();
    let text = said
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    let mut numbers = text
        .trim_start_matches("PgBouncer ")
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = (
        numbers.next().and_then(Result::ok),
        numbers.next().and_then(Result::ok),
    );
    version >= (Some(1), Some(21))
}

/// Returns whether `place` has a server of version 14 or later. Version 14 is the first that counts the sessions of a
/// database.
fn is_server(place: &Path) -> bool {
    ["postgres", "initdb"]
        .iter()
        .all(|name| place.join(name).is_file())
        && major_version(place).is_some_and(|major| major >= 14)
}

/// Returns the major version of a server: `15` for `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(place: &Path) -> Option<u32> {
    let output = Command::new(place.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_once(") ")?.1;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn told_by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// Returns `15/bin`, `pgsql-16/bin`, `postgresql@17/bin` and similar folders below `root`, newest first.
fn versions_in(root: &Path) -> Vec<PathBuf> {
    let version = |name: &str| -> Option<u32> {
        let digits = name
            .trim_start_matches("pgsql-")
            .trim_start_matches("postgresql@");
        digits.parse().ok()
    };
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            Some((
                version(entry.file_name().to_str()?)?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, place)| place).collect()
}
