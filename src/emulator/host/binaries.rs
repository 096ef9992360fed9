//! Where the Postgres server's programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::emulator::EmulatorError;

/// The folder with `postgres` and `initdb`, and PgBouncer.
#[derive(Clone, Debug)]
pub(in crate::emulator) struct Binaries {
    server: PathBuf,
    pgbouncer: PathBuf,
}

impl Binaries {
    /// Looks on `PATH`, asks `pg_config`, then looks in the places of the usual distributions, newest version first.
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
        // The distributions' own start scripts on PATH are links to the folder with everything else.
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

/// On `PATH`, where the distributions put it, or where `tests/with-postgres` has built it. 1.21 is the first that takes
/// prepared statements in transaction mode.
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

/// Whether it says `PgBouncer 1.21` or more.
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

/// Whether a server is there that is new enough: the first to count the sessions of a database is 14.
fn is_server(place: &Path) -> bool {
    ["postgres", "initdb"]
        .iter()
        .all(|name| place.join(name).is_file())
        && major_version(place).is_some_and(|major| major >= 14)
}

/// `15` of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
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

/// `15/bin`, `pgsql-16/bin`, `postgresql@17/bin` and the like below `root`, newest first.
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
