//! Functions that run, await and signal processes, and work that continues when its caller is dropped.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;

use super::account::Account;
use crate::emulator::EmulatorError;

/// Interval between checks that a process has ended.
const LOOK: Duration = Duration::from_millis(1);
/// Longest path of a socket, in bytes.
const LONGEST_SOCKET_PATH: usize = 107;
/// Longest run of a program that prepares something.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `child` has ended, for `patience` or somewhat longer. Returns whether it has ended. Blocks the thread.
///
/// Counts its checks and does not read a clock, because the caller's clock may be paused.
pub(in crate::emulator) fn wait_for(child: &mut Child, patience: Duration) -> bool {
    for _ in 0..patience.as_millis() {
        match child.try_wait() {
            Ok(None) => thread::sleep(LOOK),
            Ok(Some(_)) => return true,
            Err(_) => return false,
        }
    }
    false
}

/// Sends `signal` to every process that has its working directory in `folder`, as every Postgres process has.
pub(in crate::emulator) fn signal_all(folder: &Path, signal: Signal) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let within =
            || fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && within()
        {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Runs `command` to its end. An error holds what the program wrote to stderr. Blocks the thread.
pub(in crate::emulator) fn run(
    command: &mut Command,
    input: Option<&str>,
) -> Result<(), EmulatorError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |err| EmulatorError::new(format!("cannot run {name}")).because(err);
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    command
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    if !wait_for(&mut child, RUN_TIMEOUT) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(EmulatorError::new(format!(
            "{name} took longer than {RUN_TIMEOUT:?}"
        )));
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(10_000).read_to_string(&mut said);
    }
    Err(EmulatorError::new(format!(
        "{name} failed ({status}): {}",
        said.trim()
    )))
}

/// Connects to a socket with a path of any length. The system accepts only 107 bytes.
pub(in crate::emulator) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if socket.as_os_str().len() <= LONGEST_SOCKET_PATH {
        return UnixStream::connect(socket).await;
    }
    let folder = fs::File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    UnixStream::connect(short.join(name)).await
}

/// Copies a folder. Does not copy the data if the file system can share it (reflink). Blocks the thread.
pub(in crate::emulator) fn copy(
    account: Account,
    from: &Path,
    to: &Path,
) -> Result<(), EmulatorError> {
    let mut copy = account.command("cp");
    run(copy.args(["-a", "--reflink=auto"]).arg(from).arg(to), None)
}

/// Makes `to` a folder of hard links to the files of `from`. Blocks the thread.
pub(in crate::emulator) fn link(
    account: Account,
    from: &Path,
    to: &Path,
) -> Result<(), EmulatorError> {
    let mut link = account.command("cp");
    run(link.args(["-a", "--link"]).arg(from).arg(to), None)
}

/// Runs blocking work on a thread that the emulator's own tasks do not use.
pub(in crate::emulator) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EmulatorError> + Send + 'static,
) -> Result<T, EmulatorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) => Err(EmulatorError::new("the emulator is shutting down").because(err)),
    }
}

/// Turns the error of removing a missing file into success.
pub(in crate::emulator) fn missing_is_fine(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(err)
    }
}

/// Runs work to its end, even if its caller is dropped. Half a start or half a stop would leave processes that the
/// emulator does not know.
pub(in crate::emulator) async fn detached<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, EmulatorError> {
    let done = tokio::spawn(work).await;
    done.map_err(|err| EmulatorError::new("the emulator is shutting down").because(err))
}
