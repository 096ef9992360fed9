//! A folder that is gone when its owner is, however its owner ends.
//!
//! A watchdog process holds the other end of a pipe. When the pipe closes (by drop, panic, Ctrl-C, even SIGKILL) it
//! ends every process that runs in the folder and removes the folder. If the watchdog itself was killed too, the next
//! run finds the folder unlocked and does its work.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{EmulatorError, account::Account, process::wait_for};

const PREFIX: &str = "tenantry-emulator-";
/// Age from which a folder without a lock is nobody's.
const STALE: Duration = Duration::from_secs(60);

/// What the watchdog does once its input ends: stop what runs in the folder, wait for the end of it, remove it.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
running() {
  grep -laF -e "$TENANTRY_SCRATCH/" /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do
    case $(tr '\0' ' ' <"$file" 2>/dev/null) in
      */postgres\ -D*|*/initdb\ *|cp\ -a*) echo "$file" | tr -dc '0-9\n' ;;
    esac
  done
}
for signal in QUIT KILL; do
  turns=0
  while pids=$(running) && [ -n "$pids" ] && [ $turns -lt 300 ]; do
    [ $turns -eq 0 ] && kill -$signal $pids 2>/dev/null
    turns=$((turns + 1)); sleep 0.01
  done
done
rm -rf "$TENANTRY_SCRATCH"
"#;

/// A folder of our own, and its watchdog.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    watchdog: Child,
    // Held as long as the folder is in use.
    _lock: File,
}

impl Scratch {
    /// Makes a folder that `account` can write to, after removing those of owners that were killed.
    pub(super) fn new(account: Account) -> Result<Self, EmulatorError> {
        let place = env::temp_dir();
        remove_abandoned(&place);
        // Kept, not dropped: the watchdog removes it.
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&place)
            .map_err(failed("create a folder"))?
            .keep();
        let lock = File::create(path.join("lock")).map_err(failed("create a lock file"))?;
        lock.try_lock()
            .map_err(|err| EmulatorError::new("cannot lock a new folder").because(err))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .map_err(failed("open up the folder"))?;
        account
            .give(&path)
            .map_err(failed("give the folder away"))?;
        let watchdog = watchdog(&path, Stdio::piped()).map_err(failed("start the watchdog"))?;
        Ok(Self {
            path,
            watchdog,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends all that runs in the folder and removes it.
    fn remove(&mut self) {
        drop(self.watchdog.stdin.take());
        if !wait_for(&mut self.watchdog, Duration::from_secs(10)) {
            tracing::warn!(folder = %self.path.display(), "emulator: the folder could not be removed in time");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

fn watchdog(path: &Path, input: Stdio) -> std::io::Result<Child> {
    Command::new("sh")
        .args(["-c", WATCHDOG])
        .env("TENANTRY_SCRATCH", path) // not as an argument: it looks for processes that have the path there
        .process_group(0) // out of reach of the terminal's Ctrl-C
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Removes folders whose owner and watchdog were both killed: nobody holds their lock.
fn remove_abandoned(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let abandoned = match File::open(entry.path().join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            // Half removed; or just made, and its owner has not come to the lock yet.
            Err(_) => entry
                .metadata()
                .and_then(|it| it.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE)),
        };
        if abandoned {
            if let Ok(mut cleaner) = watchdog(&entry.path(), Stdio::null()) {
                wait_for(&mut cleaner, Duration::from_secs(10));
            }
        }
    }
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> EmulatorError {
    move |err| EmulatorError::new(format!("cannot {what}")).because(err)
}
