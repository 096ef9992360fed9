//! Waiting for processes, with a deadline.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::EmulatorError;

/// How often to look whether a process has ended.
const LOOK: Duration = Duration::from_millis(1);

/// Waits until `child` has ended, for `patience` at most; says whether it has. Blocks the thread.
pub(super) fn wait_for(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            Ok(ended) => return ended.is_some(),
            Err(_) => return false,
        }
    }
}

/// Runs `command` to its end; an error holds what it said. Blocks the thread.
pub(super) fn run(command: &mut Command, input: Option<&str>) -> Result<(), EmulatorError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |err| EmulatorError::new(format!("cannot run {name}")).because(err);
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        std::io::Write::write_all(&mut stdin, input.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(EmulatorError::new(format!(
        "{name} failed ({}): {}",
        output.status,
        said.trim()
    )))
}
