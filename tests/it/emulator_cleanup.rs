//! The emulator leaves nothing behind, however it ends.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{TestEnv, eventually};

/// Processes that have `text` among their arguments or in their environment.
fn processes_with(text: &str) -> Vec<i32> {
    let holds = |path: PathBuf| {
        fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
    };
    let pids = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        holds(format!("/proc/{pid}/cmdline").into()) || holds(format!("/proc/{pid}/environ").into())
    })
    .collect()
}

fn send_signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn assert_gone(folder: &Path) {
    eventually("its folder is gone", || !folder.exists()).await;
    let name = folder.to_str().unwrap().to_owned();
    eventually("its processes are gone", || {
        processes_with(&name).is_empty()
    })
    .await;
}

/// The example `neon_emulator` in a process of its own, with a Postgres running.
struct EmulatorProcess {
    process: Child,
    // Open as long as it runs: it would fail to print otherwise.
    _output: BufReader<ChildStdout>,
    folder: PathBuf,
}

impl EmulatorProcess {
    fn start() -> Self {
        let tests = std::env::current_exe().unwrap();
        let example = tests
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("examples/neon_emulator");
        assert!(
            example.exists(),
            "build the examples first: cargo build --examples"
        );
        let mut command = Command::new(example);
        let mut process = command
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let lines = output.by_ref().lines().map(Result::unwrap);
        let ca = lines
            .into_iter()
            .find_map(|line| Some(line.split_once("CA file")?.1.trim().to_owned()));
        let folder = Path::new(&ca.expect("a line with the CA file"))
            .parent()
            .unwrap()
            .to_owned();
        let emulator = Self {
            process,
            _output: output,
            folder,
        };
        assert!(!emulator.postgres_pids().is_empty(), "a Postgres runs");
        emulator
    }

    fn postgres_pids(&self) -> Vec<i32> {
        processes_with(&format!("{}/br-", self.folder.display()))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    fn wait_for_end(mut self) -> PathBuf {
        self.process.wait().unwrap();
        self.folder.clone()
    }
}

impl Drop for EmulatorProcess {
    fn drop(&mut self) {
        // Nothing, if it has been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn nothing_is_left_after_a_drop() {
    let env = TestEnv::new().await;
    drop(env.router().get("acme").await.unwrap());
    let folder = env.emulator.folder();
    assert!(folder.exists() && !processes_with(folder.to_str().unwrap()).is_empty());
    drop(env);
    assert!(!folder.exists(), "gone when drop returns");
    assert_eq!(processes_with(folder.to_str().unwrap()), Vec::<i32>::new());
}

#[tokio::test]
async fn nothing_is_left_after_a_panic() {
    let env = TestEnv::new().await;
    drop(env.router().get("acme").await.unwrap());
    let folder = env.emulator.folder();
    let crash = tokio::spawn(async move {
        let _stage = env;
        panic!("on purpose");
    });
    assert!(crash.await.unwrap_err().is_panic());
    assert_gone(&folder).await;
}

#[tokio::test]
async fn nothing_is_left_after_ctrl_c_or_a_kill() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let emulator = EmulatorProcess::start();
        send_signal(emulator.pid(), signal);
        assert_gone(&emulator.wait_for_end()).await;
    }
}

#[tokio::test]
async fn the_next_run_removes_what_a_kill_of_everything_leaves() {
    let emulator = EmulatorProcess::start();
    let folder = emulator.folder.clone();
    let watchdogs = processes_with(&format!("TENANTRY_SCRATCH={}", folder.display()));
    assert!(!watchdogs.is_empty());
    // The template's watchdog belongs to another folder and does its own work.
    for pid in watchdogs {
        send_signal(pid, Signal::KILL);
    }
    send_signal(emulator.pid(), Signal::KILL);
    emulator.wait_for_end();
    assert!(
        folder.exists() && !processes_with(&format!("{}/br-", folder.display())).is_empty(),
        "left behind"
    );
    let _next = TestEnv::new().await;
    assert_gone(&folder).await;
}
