//! Replicas of an application: processes of their own on one catalog and one emulator, each of which can be stopped at
//! any step of its work, killed, and made to stand still.

mod process;

use std::{
    collections::HashMap,
    env,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tenantry::{
    Catalog, Failpoint, KeyRing, Provisioner, TenantRouter,
    catalog::{Postgres, Record},
    emulator::{CatalogServer, EmulatorBuilder},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{LONG, TestEnv};

pub(crate) use process::{LEASE, WINDOW, run_as_replica};

/// Holds what a process needs to be a replica.
pub(crate) const SETTINGS: &str = "TENANTRY_TEST_REPLICA";
/// Begins each line that a replica says. The rest of what it prints is the test harness's.
const OUTPUT_PREFIX: &str = "replica: ";
/// The test that is a replica where [`SETTINGS`] are given.
const REPLICA_TEST: &str = "crashes::a_replica_process_answers";

/// The settings that a replica gets when it is started.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Settings {
    catalog: String,
    api: String,
    key: String,
    root_certificate: PathBuf,
    proxy: SocketAddr,
    /// `true` if each new database gets its row, which takes a start of its Postgres.
    seeds_databases: bool,
}

/// The answer of a replica: what was asked for, or the kind of the error with its text.
pub(crate) type Answer = Result<String, String>;

/// An emulator and a catalog that replicas share.
pub(crate) struct Deployment {
    pub(crate) env: TestEnv,
    pub(crate) catalog: CatalogServer,
}

impl Deployment {
    pub(crate) async fn new() -> Self {
        Self::with(|emulator| emulator).await
    }

    pub(crate) async fn with(set_up: impl FnOnce(EmulatorBuilder) -> EmulatorBuilder) -> Self {
        let (env, catalog) = tokio::join!(
            TestEnv::with(|emulator| set_up(emulator.start_on_create(false))),
            CatalogServer::start()
        );
        let catalog = catalog.expect("catalog");
        Self { env, catalog }
    }

    /// The catalog, as any process of the application opens it.
    pub(crate) fn open_catalog(&self) -> Postgres {
        catalog_at(&self.catalog.url())
    }

    /// Returns every record of the catalog.
    pub(crate) async fn all_records(&self) -> Vec<Record> {
        self.open_catalog().list(None, 10_000).await.expect("list")
    }

    /// A router in this process.
    pub(crate) fn router(&self, set_up: impl FnOnce(Provisioner) -> Provisioner) -> TenantRouter {
        let provisioner = Provisioner::new(self.open_catalog(), self.env.neon(), "test")
            .on_first_access()
            .creations_per_minute(100_000)
            .lease_time(LEASE)
            .lost_answer_window(WINDOW);
        let builder = TenantRouter::provisioning(set_up(provisioner));
        self.env.configure(builder).build().expect("router")
    }

    /// Starts a replica that seeds new databases.
    pub(crate) async fn replica(&self) -> Replica {
        Replica::start(&self.settings()).await
    }

    /// Starts a replica that has nothing to do on new databases.
    pub(crate) async fn plain_replica(&self) -> Replica {
        let mut settings = self.settings();
        settings.seeds_databases = false;
        Replica::start(&settings).await
    }

    /// Starts a replica that sends its calls of the API to `api`.
    pub(crate) async fn replica_at(&self, api: String) -> Replica {
        let mut settings = self.settings();
        settings.api = api;
        Replica::start(&settings).await
    }

    fn settings(&self) -> Settings {
        let emulator = &self.env.emulator;
        Settings {
            catalog: self.catalog.url(),
            api: emulator.api_url(),
            key: emulator.api_key().expose().to_owned(),
            root_certificate: emulator.root_certificate_file(),
            proxy: emulator.proxy_address(),
            seeds_databases: true,
        }
    }
}

fn catalog_at(url: &str) -> Postgres {
    let catalog = Postgres::builder(url).namespace("test");
    let catalog = catalog.keys(KeyRing::new("k1", [7; 32]));
    catalog.build().expect("catalog")
}

/// A replica that runs. Dropping it kills it.
pub(crate) struct Replica {
    child: Child,
    commands: CommandSender,
    stops: mpsc::UnboundedReceiver<(String, String)>,
}

/// Sends commands to a replica, also while another task waits for its steps.
#[derive(Clone)]
pub(crate) struct CommandSender {
    commands: mpsc::UnboundedSender<String>,
    pending: Arc<Mutex<PendingCommands>>,
}

/// The commands that are not answered yet.
#[derive(Default)]
struct PendingCommands {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// `true` once the replica has ended, and answers nothing any more.
    ended: bool,
}

impl CommandSender {
    /// Sends a command now. Its answer comes when it is done; it may be waited for apart from the replica.
    pub(crate) fn ask(&self, command: &str) -> impl Future<Output = Answer> + Send + use<> {
        let (answer_sender, answer_receiver) = oneshot::channel();
        let mut pending = self.pending.lock().unwrap();
        pending.last += 1;
        let line = format!("{} {command}\n", pending.last);
        let number = pending.last;
        if !pending.ended {
            pending.waiting.insert(number, answer_sender);
        }
        let _ = self.commands.send(line); // a process that has ended answers nothing
        async move {
            let answer = timeout(8 * LONG, answer_receiver)
                .await
                .expect("a replica is silent");
            answer.unwrap_or_else(|_| Err("killed".to_owned()))
        }
    }

    /// Has something done to `tenant`, and asks again as long as the time of the caller or of the work is over.
    pub(crate) async fn ask_until_done(self, verb: &str, tenant: &str) -> Answer {
        let began = Instant::now();
        loop {
            let answer = self.ask(&format!("{verb} {tenant}")).await;
            let is_over =
                |err: &String| err.starts_with("Provisioning: ") || err.starts_with("Timeout(");
            if !answer.as_ref().is_err_and(is_over) || began.elapsed() > 8 * LONG {
                return answer;
            }
        }
    }
}

impl Replica {
    async fn start(settings: &Settings) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", REPLICA_TEST, "--nocapture"])
            .env(SETTINGS, serde_json::to_string(settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let (commands, to_write) = mpsc::unbounded_channel();
        tokio::spawn(write(child.stdin.take().unwrap(), to_write));
        let (stopped, stops) = mpsc::unbounded_channel();
        let pending = Arc::<Mutex<PendingCommands>>::default();
        let output = child.stdout.take().unwrap();
        tokio::spawn(read(output, Arc::clone(&pending), stopped));
        let replica = Self {
            child,
            commands: CommandSender { commands, pending },
            stops,
        };
        replica.ask("status").await.expect("a replica");
        replica
    }

    /// Sends a command now, as [`CommandSender::ask`] does.
    pub(crate) fn ask(&self, command: &str) -> impl Future<Output = Answer> + Send + use<> {
        self.commands.ask(command)
    }

    /// Returns a sender of commands to it.
    pub(crate) fn commands(&self) -> CommandSender {
        self.commands.clone()
    }

    /// The next `times` tenants that come to `step` stay there.
    pub(crate) async fn stop_at(&self, step: Failpoint, times: usize) {
        self.ask(&format!("stop {step:?} {times}"))
            .await
            .expect("stop");
    }

    /// Waits until a tenant stays at `step`, and says which.
    pub(crate) async fn stopped_at(&mut self, step: Failpoint) -> String {
        self.stopped_in(&format!("{step:?}")).await
    }

    /// Waits until a tenant is at the place of that name, and says which.
    pub(crate) async fn stopped_in(&mut self, place: &str) -> String {
        let stopped = timeout(8 * LONG, self.stops.recv()).await;
        let stopped = stopped.unwrap_or_else(|_| panic!("nobody ever came to {place}"));
        let (at, tenant) = stopped.expect("the replica lives");
        assert_eq!(at, place);
        tenant
    }

    /// Resumes every tenant that is stopped at a step. A command without an answer, which a frozen process reads when
    /// it goes on.
    pub(crate) fn resume(&self) {
        drop(self.ask("go"));
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("kill");
    }

    /// Makes the process stand still.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets the process go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        kill_process(pid.and_then(Pid::from_raw).expect("it runs"), signal).expect("signal");
    }
}

async fn write(mut input: ChildStdin, mut lines: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = lines.recv().await {
        if input.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Passes on what a replica says, until it has ended.
async fn read(
    output: ChildStdout,
    pending: Arc<Mutex<PendingCommands>>,
    stopped: mpsc::UnboundedSender<(String, String)>,
) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((_, said)) = line.split_once(OUTPUT_PREFIX) else {
            continue;
        };
        let (first, rest) = said.split_once(' ').unwrap();
        let (second, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if first == "at" {
            let _ = stopped.send((second.to_owned(), rest.to_owned()));
            continue;
        }
        let rest = rest.to_owned();
        let answer = if second == "ok" { Ok(rest) } else { Err(rest) };
        let number = first.parse().unwrap();
        if let Some(answer_sender) = pending.lock().unwrap().waiting.remove(&number) {
            let _ = answer_sender.send(answer);
        }
    }
    let mut pending = pending.lock().unwrap();
    pending.ended = true;
    pending.waiting.clear();
}

/// A moment in which a process gets to do what it is about to do.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);
