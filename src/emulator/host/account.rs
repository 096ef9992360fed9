//! The account that runs Postgres, which refuses to run as root.

use std::{
    env, fs, io,
    os::unix::{fs::chown, process::CommandExt},
    path::Path,
    process::Command,
};

use crate::emulator::EmulatorError;

/// The account that runs Postgres: the caller's, or an unprivileged one if the caller is root.
#[derive(Clone, Copy, Debug)]
pub(in crate::emulator) struct Account {
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// Returns the caller's own account, or `postgres` or `nobody` if the caller is root.
    pub(in crate::emulator) fn unprivileged() -> Result<Self, EmulatorError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { switch_to: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let ids = ["postgres", "nobody"]
            .iter()
            .find_map(|name| ids_of(&passwd, name));
        ids.map(|ids| Self { switch_to: Some(ids) }).ok_or_else(|| {
            EmulatorError::new("Postgres does not run as root, and this system has neither an account `postgres` nor \
                                an account `nobody`")
        })
    }

    /// Returns a command that runs under this account, out of reach of the terminal's signals.
    pub(in crate::emulator) fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .process_group(0)
            .current_dir("/")
            .env_clear() // PGPORT, PGOPTIONS and similar variables would change what is started
            .envs(env::var_os("PATH").map(|path| ("PATH", path)));
        if let Some((uid, gid)) = self.switch_to {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Returns whether `uid` is the caller's or this account's.
    pub(in crate::emulator) fn owns(self, uid: u32) -> bool {
        uid == rustix::process::geteuid().as_raw()
            || self.switch_to.is_some_and(|(own, _)| own == uid)
    }

    /// Makes this account the owner of `path`.
    pub(in crate::emulator) fn give(self, path: &Path) -> io::Result<()> {
        self.switch_to
            .map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    }
}

fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}
