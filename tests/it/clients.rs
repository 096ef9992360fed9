//! Programs that know nothing of this crate, at a running `neon_emulator`: each connects through both hosts, loses its
//! connection to a suspend between two commands, and goes on by its own means.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{self, ChildStdout, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::support::LONG;

/// The example `neon_emulator` in a process of its own, and what it printed.
struct EmulatorProcess {
    _process: InterruptOnDrop,
    // Held open: it may print more.
    _output: BufReader<ChildStdout>,
    /// The API's host and port.
    api: String,
    key: String,
    /// The password of the project's role, and how libpq reaches its pooled host.
    password: String,
    pooled: String,
}

impl EmulatorProcess {
    /// Starts it and reads what it prints.
    fn start() -> Self {
        let mut process = InterruptOnDrop::start(&example("neon_emulator"));
        let mut output = BufReader::new(process.0.stdout.take().unwrap());
        let lines = output.by_ref().lines().map_while(Result::ok);
        let lines: Vec<_> = lines.take(5).collect();
        let printed = |label| {
            let found = lines.iter().find_map(|line| line.strip_prefix(label));
            found
                .unwrap_or_else(|| panic!("no {label}: {lines:?}"))
                .trim()
        };
        let (password, pooled) = printed("psql ").split_once(" psql ").unwrap();
        let api = printed("API URL ").strip_prefix("http://").unwrap();
        Self {
            api: api.strip_suffix("/api/v2").unwrap().to_owned(),
            key: printed("API key ").to_owned(),
            password: password.strip_prefix("PGPASSWORD=").unwrap().to_owned(),
            pooled: pooled.trim_matches('\'').to_owned(),
            _process: process,
            _output: output,
        }
    }

    /// Returns the connection strings by which libpq reaches the project's two hosts.
    fn hosts(&self) -> [String; 2] {
        [
            self.pooled.replacen("-pooler.", ".", 1),
            self.pooled.clone(),
        ]
    }

    /// The value of `name` in what libpq is told.
    fn parameter(&self, name: &str) -> &str {
        let mut words = self.pooled.split(' ');
        words
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap()
    }

    fn endpoint(&self) -> &str {
        self.parameter("host").split_once("-pooler.").unwrap().0
    }

    /// Suspends the compute over HTTP, as a program in any language would.
    async fn suspend(&self) {
        self.http(&format!(
            "POST /_emulator/endpoints/{}/suspend",
            self.endpoint()
        ))
        .await;
    }

    /// Returns how often the compute was started.
    async fn wakes(&self) -> u64 {
        let answer = self.http("GET /_emulator/endpoints").await;
        let seen: Value = serde_json::from_str(&answer).expect(&answer);
        seen[0]["wakes"].as_u64().unwrap()
    }

    async fn http(&self, request: &str) -> String {
        let head = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.api, self.key
        );
        let mut stream = TcpStream::connect(&self.api).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(LONG, read).await.expect("too long").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        body.to_owned()
    }

    /// A program of the Postgres installation that knows the password and speaks English. It ends when it is dropped.
    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(find_program(name));
        command.env("PGPASSWORD", &self.password);
        command.env("LC_ALL", "C").kill_on_drop(true);
        command
    }
}

/// A process that gets Ctrl-C when this is dropped, or when the test ends in whatever way, so that it takes with it
/// what it has started.
struct InterruptOnDrop(process::Child);

impl InterruptOnDrop {
    fn start(program: &Path) -> Self {
        let process = process::Command::new("sh")
            .args(["-c", r#""$0" & cat; kill -INT $!; wait"#])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(process.unwrap())
    }
}

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The example as Cargo built it beside this test.
fn example(name: &str) -> PathBuf {
    let this = env::current_exe().unwrap();
    let profile = this.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: `cargo test` builds it, and so does `cargo build --example {name}`",
        path.display()
    );
    path
}

/// A program on `PATH` or, where the distributions keep those of the server off it, beside the newest server.
fn find_program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path);
    let reported = process::Command::new("pg_config").arg("--bindir").output();
    let reported = reported.map(|output| String::from_utf8_lossy(&output.stdout).trim().into());
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = versions.flatten().map(|entry| entry.path()).collect();
    versions.sort();
    let beside_server = versions.into_iter().rev().map(|it| it.join("bin"));
    on_path
        .chain(reported)
        .chain(beside_server)
        .map(|place| place.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is neither on PATH nor beside the Postgres server; install it (on Debian: apt-get install postgresql)"))
}

/// A program that is talked to: what is typed, and what it says on either of its outputs.
struct Dialogue {
    program: Child,
    input: File,
    output: File,
}

impl Dialogue {
    /// Through pipes, as in a script.
    fn piped(mut command: Command) -> Self {
        let (theirs, input) = std::io::pipe().unwrap();
        let (output, write_end) = std::io::pipe().unwrap();
        command.stdin(theirs).stderr(write_end.try_clone().unwrap());
        let program = command.stdout(write_end).spawn().unwrap();
        Self::from_ends(program, input.into(), output.into())
    }

    /// At a terminal, as before a person.
    fn at_terminal(mut command: Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        command.stdin(theirs.try_clone().unwrap());
        command.stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let program = command.spawn().unwrap();
        Self::from_ends(program, ours.try_clone().unwrap(), ours)
    }

    fn from_ends(program: Child, input: OwnedFd, output: OwnedFd) -> Self {
        let [input, output] = [input, output].map(|end| File::from_std(end.into()));
        Self {
            program,
            input,
            output,
        }
    }

    async fn send_line(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
    }

    /// Reads the output up to `mark`, which must come.
    async fn read_until(&mut self, mark: &str) -> String {
        let mut output = String::new();
        while !output.ends_with(mark) {
            match timeout(LONG, self.output.read_u8()).await {
                Ok(Ok(byte)) => output.push(char::from(byte)),
                silent => panic!("no {mark:?} after {output:?}: {silent:?}"),
            }
        }
        output
    }

    /// The rest of what it says. It must end well.
    async fn finish(mut self) -> String {
        drop(self.input);
        let mut rest = Vec::new();
        // A terminal whose program has ended gives an error, not an end.
        let read = self.output.read_to_end(&mut rest);
        let _ = timeout(LONG, read).await.expect("too long");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        let status = self.program.wait().await.unwrap();
        assert!(status.success(), "{status}: {rest}");
        rest
    }
}

#[tokio::test]
async fn psql_at_its_prompt_connects_again_by_itself() {
    let emulator = EmulatorProcess::start();
    for (suspends, host) in (1..).zip(emulator.hosts()) {
        let mut psql = emulator.client("psql");
        psql.args(["-XnAt", "-P", "pager=off", &host]);
        let mut psql = Dialogue::at_terminal(psql);
        psql.read_until("=> ").await;
        psql.send_line("SELECT 40 + 1;").await;
        psql.read_until("41\r\n").await;
        psql.read_until("=> ").await;
        emulator.suspend().await;
        psql.send_line("SELECT 40 + 2;").await;
        psql.read_until("The connection to the server was lost. Attempting reset: Succeeded.")
            .await;
        psql.read_until("=> ").await;
        psql.send_line("SELECT 40 + 3;").await;
        psql.read_until("43\r\n").await;
        psql.send_line("\\q").await;
        psql.finish().await;
        assert_eq!(emulator.wakes().await, 1 + suspends, "{host}");
    }
}

/// Away from a terminal psql ends with code 2 at a lost connection, so its script connects again before it goes on.
#[tokio::test]
async fn a_script_of_psql_goes_on_once_it_connects_again() {
    let emulator = EmulatorProcess::start();
    for host in emulator.hosts() {
        let mut psql = emulator.client("psql");
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", &host]);
        let mut psql = Dialogue::piped(psql);
        psql.send_line("SELECT 40 + 1;").await;
        psql.read_until("41\n").await;
        emulator.suspend().await;
        psql.send_line("\\connect\nSELECT 40 + 2;").await;
        let output = psql.finish().await;
        // Before that, what the server said last, if psql has read it by then.
        let connected = "You are now connected to database \"neondb\" as user \"neondb_owner\".";
        assert!(output.ends_with(&format!("{connected}\n42\n")), "{output}");
    }
    assert_eq!(emulator.wakes().await, 3);
}

/// A suspend at the end of every transaction, each of which has a connection of its own (`-C`). Without that, pgbench
/// gives up a client whose connection is lost, whatever its `--max-tries`.
#[tokio::test]
async fn pgbench_with_a_connection_for_each_transaction_loses_none() {
    let emulator = EmulatorProcess::start();
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("suspended_after_each.sql");
    let text = "SELECT count(*) FROM pgbench_accounts;\n\\shell echo done; read suspended\n";
    fs::write(&script, text).unwrap();
    for host in emulator.hosts() {
        let mut fill = emulator.client("pgbench");
        let filled = fill.args(["-i", "-q", &host]).output().await.unwrap();
        assert!(filled.status.success(), "{filled:?}");
        let mut pgbench = emulator.client("pgbench");
        pgbench.args(["-n", "-C", "-t", "3", "-f"]).arg(&script);
        pgbench.arg(&host);
        let mut pgbench = Dialogue::piped(pgbench);
        for _ in 0..3 {
            pgbench.read_until("done\n").await;
            emulator.suspend().await;
            pgbench.send_line("").await;
        }
        let output = pgbench.finish().await;
        assert!(output.contains("actually processed: 3/3"), "{output}");
    }
    // The first fill found it awake; the second and every transaction but each first had to wake it.
    assert_eq!(emulator.wakes().await, 1 + 2 + 1 + 2);
}

/// sqlx cannot be told an address for a name, so the endpoint is named by option. Its pool tests a connection before it
/// gives it out (`test_before_acquire`, which is on by default), and dials another.
#[tokio::test]
async fn a_pool_of_sqlx_answers_the_next_query() {
    let emulator = EmulatorProcess::start();
    for (name, address) in [
        (emulator.endpoint().to_owned(), "127.0.0.1"),
        (format!("{}-pooler", emulator.endpoint()), "localhost"),
    ] {
        let url = format!(
            "postgres://{}:{}@{address}:{}/{}?sslmode=verify-full&sslrootcert={}&options=endpoint%3D{name}",
            emulator.parameter("user"),
            emulator.password,
            emulator.parameter("port"),
            emulator.parameter("dbname"),
            emulator.parameter("sslrootcert"),
        );
        let pool = PgPoolOptions::new().max_connections(1).connect(&url);
        let pool = pool.await.unwrap();
        let sum = || sqlx::query_scalar::<_, i32>("SELECT 40 + $1").bind(2);
        assert_eq!(sum().fetch_one(&pool).await.unwrap(), 42);
        emulator.suspend().await;
        assert_eq!(sum().fetch_one(&pool).await.unwrap(), 42);
        pool.close().await;
    }
    assert_eq!(emulator.wakes().await, 3);
}
