//! A folder that is removed when its owner ends, in whatever way.
//!
//! A watchdog process holds the other end of a pipe. Once the pipe closes (by drop, panic, Ctrl-C, even SIGKILL), it
//! ends every process that runs in the folder and removes the folder. If the watchdog was killed too, the next run
//! finds the folder unlocked and does the same.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{account::Account, process::wait_for};
use crate::emulator::EmulatorError;

const PREFIX: &str = "tenantry-emulator-";

/// The script of the watchdog. Once its input ends, it stops the processes that run in the folder, waits for their end,
/// and removes the folder.
///
/// A process runs in the folder if its working directory is there, as for every Postgres process, or is about to be. A
/// Postgres that gets SIGQUIT ends its own processes within 5 seconds. SIGKILL comes after that.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
running() {
  within=$(find /proc/[0-9]*/cwd -maxdepth 0 -lname "$TENANTRY_PATTERN/*" 2>/dev/null | tr -dc '0-9\n')
  if [ -n "$within" ]; then echo "$within"; return; fi
  grep -laF -e "$TENANTRY_SCRATCH/" /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do
    case $(tr '\0' ' ' <"$file" 2>/dev/null) in
      */postgres\ -*|*/initdb\ *|*/pgbouncer\ *|cp\ -a*) echo "$file" | tr -dc '0-9\n' ;;
    esac
  done
}
for signal in QUIT KILL; do
  turns=0
  while pids=$(running) && [ -n "$pids" ] && [ $turns -lt 700 ]; do
    [ $((turns % 100)) -eq 0 ] && { kill -$signal $pids; kill -CONT $pids; } 2>/dev/null # frozen ones hear it too
    turns=$((turns + 1)); sleep 0.01
  done
done
turns=0
until rm -rf "$TENANTRY_SCRATCH" 2>/dev/null || [ $turns -ge 100 ]; do
  turns=$((turns + 1)); sleep 0.01
done
"#;

/// Longest wait for the watchdog's work. It takes longest to remove the data of hundreds of computes.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(60);

/// A folder of the emulator, and its watchdog.
#[derive(Debug)]
pub(in crate::emulator) struct Scratch {
    path: PathBuf,
    watchdog: Child,
    // Held as long as the folder is in use.
    _lock: File,
}

impl Scratch {
    /// Creates a folder that `account` can write to. Before that, removes the folders of owners that were killed.
    pub(in crate::emulator) fn new(account: Account) -> Result<Self, EmulatorError> {
        let place = fs::canonicalize(env::temp_dir());
        let place = place.map_err(failed("use the folder for temporary files (TMPDIR)"))?;
        remove_abandoned(&place, account);
        // The folder has a name that no cleaner matches, until it is locked. It is kept, not dropped, because the
        // watchdog removes it.
        let made = tempfile::Builder::new()
            .prefix("tenantry-new-")
            .tempdir_in(&place);
        let made = made.map_err(failed("create a folder"))?;
        let lock = File::create(made.path().join("lock")).map_err(failed("create a lock file"))?;
        lock.try_lock()
            .map_err(|err| EmulatorError::new("cannot lock a new folder").because(err))?;
        fs::set_permissions(made.path(), Permissions::from_mode(0o755))
            .map_err(failed("make the folder readable"))?;
        account
            .give(made.path())
            .map_err(failed("change the owner of the folder"))?;
        let path = place.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        fs::rename(made.path(), &path).map_err(failed("rename the folder"))?;
        drop(made.keep());
        let watchdog = watchdog(&path, Stdio::piped()).map_err(failed("start the watchdog"))?;
        Ok(Self {
            path,
            watchdog,
            _lock: lock,
        })
    }

    pub(in crate::emulator) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends all processes that run in the folder, and removes it.
    fn remove(&mut self) {
        drop(self.watchdog.stdin.take());
        if !wait_for(&mut self.watchdog, WATCHDOG_TIMEOUT) {
            tracing::warn!(folder = %self.path.display(), "emulator: the folder could not be removed in time");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

fn watchdog(path: &Path, input: Stdio) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", WATCHDOG])
        .env("TENANTRY_PATTERN", pattern(path))
        .env("TENANTRY_SCRATCH", path) // not as an argument: the script looks for processes that have the path there
        .process_group(0) // out of reach of the terminal's Ctrl-C
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Returns the pattern with which `find` matches exactly that path: special characters have a backslash.
fn pattern(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    let escaped = bytes.flat_map(|byte| {
        let escape = b"*?[]\\".contains(byte).then_some(b'\\');
        escape.into_iter().chain([*byte])
    });
    OsString::from_vec(escaped.collect())
}

/// Removes folders that are not locked, because their owner and their watchdog were both killed.
fn remove_abandoned(place: &Path, account: Account) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let own = entry
            .metadata()
            .is_ok_and(|it| it.is_dir() && account.owns(it.uid()));
        if !own
            || !entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(PREFIX))
        {
            continue;
        }
        let lock = match File::open(entry.path().join("lock")) {
            Ok(lock) if lock.try_lock().is_ok() => Some(lock),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None, // half removed
            _ => continue,
        };
        if let Ok(mut cleaner) = watchdog(&entry.path(), Stdio::null()) {
            wait_for(&mut cleaner, WATCHDOG_TIMEOUT);
        }
        drop(lock); // held until here, so that only one process cleans up
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> EmulatorError {
    move |err| EmulatorError::new(format!("cannot {what}")).because(err)
}
