//! A server process that the emulator starts, stops and reaps.

use std::{
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::process::wait_for;

/// Longest wait for a process to stop before it is forced to.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server process that may or may not run. All clones share it, so any of them can stop and reap it.
#[derive(Clone, Debug, Default)]
pub(in crate::emulator) struct Daemon(Arc<Mutex<Option<Child>>>);

impl Daemon {
    /// Starts it and returns its process id. A process that still exists is killed first.
    pub(in crate::emulator) fn start(&self, command: &mut Command) -> io::Result<u32> {
        let mut slot = self.slot();
        if let Some(mut left) = slot.take() {
            let _ = left.kill();
            let _ = left.wait();
        }
        Ok(slot.insert(command.spawn()?).id())
    }

    /// Returns whether the process runs and has that process id.
    pub(in crate::emulator) fn is(&self, pid: u32) -> bool {
        self.runs() && self.slot().as_ref().is_some_and(|it| it.id() == pid)
    }

    /// Returns whether the process runs.
    pub(in crate::emulator) fn runs(&self) -> bool {
        self.slot()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Signals it and waits for its end, on a blocking thread. If the emulator's runtime is ending, the watchdog stops
    /// the process.
    pub(in crate::emulator) async fn stop(&self, signal: Signal) {
        let daemon = self.clone();
        let _ = tokio::task::spawn_blocking(move || daemon.end(signal)).await;
    }

    /// Signals it, waits for its end, kills it if that takes too long, and reaps it. Blocks the thread.
    pub(in crate::emulator) fn end(&self, signal: Signal) {
        let mut slot = self.slot();
        let Some(child) = slot.as_mut() else { return };
        send(child, signal);
        if !wait_for(child, PATIENCE) {
            let _ = child.kill();
            let _ = child.wait();
        }
        *slot = None;
    }

    fn slot(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(child: &mut Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Ok(None)) = (pid, child.try_wait()) {
        let _ = kill_process(pid, signal);
    }
}
