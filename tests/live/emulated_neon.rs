//! An emulator in Neon's place, and the check or the benchmark in a process of its own.

use std::{
    env, fs,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tenantry::emulator::{Emulator, EmulatorBuilder};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{
    BENCHMARK,
    relay::{Alter, Relay},
};

/// More than anything takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(180);
/// The time of each operation: long enough for the questions that want one to find it.
const OPERATION: Duration = Duration::from_millis(150);

/// An emulator behind a gateway.
pub(crate) struct EmulatedNeon {
    pub(crate) emulator: Emulator,
    relay: Relay,
    roots: PathBuf,
}

impl EmulatedNeon {
    pub(crate) async fn new() -> Self {
        Self::with(|emulator| emulator, |_, _| {}).await
    }

    pub(crate) async fn with(
        set_up: impl FnOnce(EmulatorBuilder) -> EmulatorBuilder,
        alter: Alter,
    ) -> Self {
        let emulator = Emulator::builder().operation_time(OPERATION);
        let emulator = set_up(emulator).start().await.expect("emulator");
        let relay = Relay::before(&emulator, alter).await.expect("relay");
        let roots = emulator.folder().join("roots.pem");
        let proxys = fs::read_to_string(emulator.root_certificate_file()).unwrap();
        fs::write(&roots, format!("{proxys}\n{}", relay.pem)).unwrap();
        Self {
            emulator,
            relay,
            roots,
        }
    }

    /// The folder that the benchmark writes to.
    pub(crate) fn figures(&self) -> PathBuf {
        self.emulator.folder().join("figures")
    }

    /// This program, pointed at the emulator.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        let ours = |name: &str| name.starts_with("NEON_") || name.starts_with("TENANTRY_");
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(ours) {
                command.env_remove(name);
            }
        }
        command
            .args(words)
            .env("NEON_API_KEY", self.emulator.api_key().expose())
            .env("NEON_API_URL", &self.relay.url)
            .env("NEON_PROXY", self.emulator.proxy_address().to_string())
            .env("NEON_ROOT_CERTIFICATES", &self.roots)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The live check, with variables besides.
    pub(crate) fn check(&self, variables: &[(&str, &str)]) -> Running {
        let mut command = self.command(&[]);
        command.env("TENANTRY_LIVE", "1");
        Running::spawn(command.envs(variables.iter().copied()))
    }

    /// The benchmark, with few samples.
    pub(crate) fn benchmark(&self) -> Running {
        fs::create_dir_all(self.figures()).unwrap();
        let figures = self.figures();
        let words = [
            BENCHMARK,
            "--neon",
            "1",
            "--figures",
            figures.to_str().unwrap(),
        ];
        Running::spawn(&mut self.command(&words))
    }

    /// The same without a key.
    pub(crate) fn benchmark_without_key(&self) -> Running {
        let mut command = self.command(&[BENCHMARK, "--neon", "1"]);
        Running::spawn(command.env_remove("NEON_API_KEY"))
    }

    /// No project is left.
    pub(crate) fn assert_clean(&self) {
        let left = self.emulator.witnesses();
        assert!(left.is_empty(), "left: {left:?}");
    }
}

/// A process that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    lines: Vec<String>,
}

/// A process's status and output.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<String>,
}

impl Running {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            stdout,
            lines: Vec::new(),
        }
    }

    /// Reads until a line that begins with `start`.
    pub(crate) async fn until(&mut self, start: &str) {
        let reading = async {
            while !self
                .lines
                .last()
                .is_some_and(|line| line.starts_with(start))
            {
                let line = self.stdout.next_line().await.unwrap();
                self.lines
                    .push(line.unwrap_or_else(|| panic!("ended before {start:?}")));
            }
        };
        timeout(LONG, reading).await.expect("too long");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Reads no more: what it prints from now on meets a closed pipe.
    pub(crate) async fn close_output(mut self) -> ExitStatus {
        drop(self.stdout);
        let ended = timeout(LONG, self.child.wait()).await;
        ended.expect("too long").unwrap()
    }

    pub(crate) async fn end(mut self) -> Ended {
        let reading = async {
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                self.lines.push(line);
            }
            self.child.wait().await.unwrap()
        };
        let status = timeout(LONG, reading).await.expect("too long");
        Ended {
            status,
            lines: self.lines,
        }
    }
}

impl Ended {
    /// The lines that begin with `start`.
    pub(crate) fn lines(&self, start: &str) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        lines.filter(|line| line.starts_with(start)).collect()
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, waiting).await.expect("never");
}
