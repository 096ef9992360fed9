//! A ready-made data folder that every compute gets a copy of.
//!
//! `initdb` takes half a second. A copy takes a tenth of that, most of it for a thousand small files. All emulators of
//! a process share one template.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::emulator::{
    EmulatorError,
    host::{
        account::Account,
        binaries::Binaries,
        process::{copy, link, missing_is_fine, run},
        scratch::Scratch,
    },
};

/// Settings for a small, fast server. Nothing is forced to the disk, because the data need not outlive the machine.
/// Committed data still outlives a killed process, as at Neon.
const SETTINGS: &str = "
listen_addresses = ''
unix_socket_permissions = 0700
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 32MB
shared_buffers = 16MB
max_connections = 112
max_worker_processes = 0
max_parallel_workers = 0
autovacuum = off
huge_pages = off
dynamic_shared_memory_type = mmap
jit = off
logging_collector = off
log_timezone = UTC
timezone = UTC
";

/// Access rules without passwords: the proxy has checked the password, and only the emulator can enter the socket's
/// folder.
const HBA: &str = "local all all trust\n";

/// The database of every new project at Neon, and its owner with the owner's rights.
const SETUP: &str = "
CREATE ROLE neondb_owner LOGIN CREATEDB CREATEROLE BYPASSRLS;
CREATE DATABASE neondb OWNER neondb_owner;
";

/// Folder of `template0` from Postgres 15 on. Postgres never writes to its files, because no session can connect to
/// that database. All computes share them.
const TEMPLATE0: &str = "base/4";

/// The data folder to copy.
#[derive(Debug)]
pub(in crate::emulator) struct Template {
    scratch: Scratch,
    /// Copy of PgBouncer, because the original may be out of the account's reach.
    pgbouncer: PathBuf,
}

/// The template of this process, kept as long as an emulator uses it.
static SHARED: Mutex<Weak<Template>> = Mutex::new(Weak::new());

impl Template {
    /// Returns the process's template, and makes it if there is none. Blocks the thread.
    pub(in crate::emulator) fn shared(
        binaries: &Binaries,
        account: Account,
    ) -> Result<Arc<Self>, EmulatorError> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = shared.upgrade() {
            return Ok(template);
        }
        let template = Arc::new(Self::make(binaries, account)?);
        *shared = Arc::downgrade(&template);
        Ok(template)
    }

    fn make(binaries: &Binaries, account: Account) -> Result<Self, EmulatorError> {
        let scratch = Scratch::new(account)?;
        let data = scratch.path().join("data");
        let options = [
            "--no-sync",
            "--wal-segsize=1",
            "--no-locale",
            "--encoding=UTF8",
            "--username=cloud_admin",
        ];
        run(
            account
                .command(binaries.program("initdb"))
                .args(options)
                .arg("--auth=trust")
                .arg("-D")
                .arg(&data),
            None,
        )?;
        let failed = |err| EmulatorError::new("cannot write the template's settings").because(err);
        let mut settings = OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))
            .map_err(failed)?;
        settings.write_all(SETTINGS.as_bytes()).map_err(failed)?;
        fs::write(data.join("pg_hba.conf"), HBA).map_err(failed)?;
        let mut single = account.command(binaries.program("postgres"));
        run(
            single
                .args(["--single", "-j", "-D"])
                .arg(&data)
                .arg("postgres"),
            Some(&SETUP.replace(";\n", ";\n\n")),
        )?;
        let failed =
            |err| EmulatorError::new("cannot move template0 out of the template").because(err);
        fs::rename(data.join(TEMPLATE0), scratch.path().join("template0"))
            .or_else(missing_is_fine)
            .map_err(failed)?;
        let pgbouncer = scratch.path().join("pgbouncer");
        let failed = |err| EmulatorError::new("cannot copy PgBouncer").because(err);
        fs::copy(binaries.pgbouncer(), &pgbouncer).map_err(failed)?;
        Ok(Self { scratch, pgbouncer })
    }

    pub(in crate::emulator) fn pgbouncer(&self) -> &Path {
        &self.pgbouncer
    }

    /// Copies the data folder to `target`. Blocks the thread.
    pub(in crate::emulator) fn clone_to(
        &self,
        target: &Path,
        account: Account,
    ) -> Result<(), EmulatorError> {
        copy(account, &self.scratch.path().join("data"), target)?;
        let template0 = self.scratch.path().join("template0");
        if template0.exists() {
            link(account, &template0, &target.join(TEMPLATE0))?;
        }
        Ok(())
    }
}
