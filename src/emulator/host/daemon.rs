//! A server process of ours: started, looked after, stopped, reaped.

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

/// A process that may or may not run. Whoever is about to start or stop it, it can be found here and reaped.
#[derive(Clone, Debug, Default)]
pub(in crate::emulator) struct Daemon(Arc<Mutex<Option<Child>>>);

impl Daemon {
    /// Starts it; the result is its process id. One that is there still is killed first.
    pub(in crate::emulator) fn start(&self, command: &mut Command) -> io::Result<u32> {
        let mut slot = self.slot();
        if let Some(mut left) = slot.take() {
            let _ = left.kill();
            let _ = left.wait();
        }
        Ok(slot.insert(command.spawn()?).id())
    }

    /// Whether it is there and has that process id.
    pub(in crate::emulator) fn is(&self, pid: u32) -> bool {
        self.runs() && self.slot().as_ref().is_some_and(|it| it.id() == pid)
    }

    /// Whether it is there.
    pub(in crate::emulator) fn runs(&self) -> bool {
        self.slot()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Signals it and waits for its end, apart from the emulator's own tasks. If those are ending, the watchdog stops it.
    pub(in crate::emulator) async fn stop(&self, signal: Signal) {
        let daemon = self.clone();
        let _ = tokio::task::spawn_blocking(move || daemon.end(signal)).await;
    }

    /// Signals it, waits for its end, with force at last, and reaps it. Blocks the thread.
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
