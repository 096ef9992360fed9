//! Replicas of an application: processes of their own on one catalog and one emulator, each of which can be stopped at any
//! step of its work, killed, and made to stand still.

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

use super::{LONG, Stage};

pub(crate) use process::{LEASE, WINDOW, serve};

/// Holds what a process needs to be a replica.
pub(crate) const SETTINGS: &str = "TENANTRY_TEST_REPLICA";
/// Begins each line that a replica says. The rest of what it prints is the test harness's.
const SAYS: &str = "replica: ";
/// The test that is a replica where [`SETTINGS`] are given.
const TEST: &str = "crashes::a_replica_process_answers";

/// What a replica is told when it is started.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Settings {
    catalog: String,
    api: String,
    key: String,
    root_certificate: PathBuf,
    proxy: SocketAddr,
    /// Whether each new database gets its row, which takes a start of its Postgres.
    seeds: bool,
}

/// What a replica answers: what was asked for, or the kind of the error with its text.
pub(crate) type Answer = Result<String, String>;

/// An emulator and a catalog that replicas share.
pub(crate) struct Site {
    pub(crate) stage: Stage,
    pub(crate) catalog: CatalogServer,
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(|emulator| emulator).await
    }

    pub(crate) async fn with(set_up: impl FnOnce(EmulatorBuilder) -> EmulatorBuilder) -> Self {
        let (stage, catalog) = tokio::join!(
            Stage::with(|emulator| set_up(emulator.start_on_create(false))),
            CatalogServer::start()
        );
        let catalog = catalog.expect("catalog");
        Self { stage, catalog }
    }

    /// The catalog, as any process of the application opens it.
    pub(crate) fn records(&self) -> Postgres {
        open(&self.catalog.url())
    }

    /// What the catalog knows.
    pub(crate) async fn all_records(&self) -> Vec<Record> {
        self.records().list(None, 10_000).await.expect("list")
    }

    /// A router in this process.
    pub(crate) fn router(&self, set_up: impl FnOnce(Provisioner) -> Provisioner) -> TenantRouter {
        let provisioner = Provisioner::new(self.records(), self.stage.neon(), "test")
            .on_first_access()
            .creations_per_minute(100_000)
            .lease_time(LEASE)
            .lost_answer_window(WINDOW);
        let builder = TenantRouter::provisioning(set_up(provisioner));
        self.stage.at(builder).build().expect("router")
    }

    /// Starts a replica that seeds new databases.
    pub(crate) async fn replica(&self) -> Replica {
        Replica::start(&self.settings()).await
    }

    /// Starts a replica that has nothing to do on new databases.
    pub(crate) async fn plain_replica(&self) -> Replica {
        let mut settings = self.settings();
        settings.seeds = false;
        Replica::start(&settings).await
    }

    /// Starts a replica that sends its calls of the API to `api`.
    pub(crate) async fn replica_at(&self, api: String) -> Replica {
        let mut settings = self.settings();
        settings.api = api;
        Replica::start(&settings).await
    }

    fn settings(&self) -> Settings {
        let emulator = &self.stage.emulator;
        Settings {
            catalog: self.catalog.url(),
            api: emulator.api_url(),
            key: emulator.api_key().expose().to_owned(),
            root_certificate: emulator.root_certificate_file(),
            proxy: emulator.proxy_address(),
            seeds: true,
        }
    }
}

fn open(url: &str) -> Postgres {
    let catalog = Postgres::builder(url).namespace("test");
    let catalog = catalog.keys(KeyRing::new("k1", [7; 32]));
    catalog.build().expect("catalog")
}

/// A replica that runs. Dropping it kills it.
pub(crate) struct Replica {
    child: Child,
    line: Line,
    stops: mpsc::UnboundedReceiver<(String, String)>,
}

/// Sends commands to a replica, also while another task waits for its steps.
#[derive(Clone)]
pub(crate) struct Line {
    commands: mpsc::UnboundedSender<String>,
    asked: Arc<Mutex<Asked>>,
}

/// What was asked and is not answered.
#[derive(Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Whether the replica has ended, and answers nothing any more.
    ended: bool,
}

impl Line {
    /// Sends a command now. Its answer comes when it is done; it may be waited for apart from the replica.
    pub(crate) fn ask(&self, command: &str) -> impl Future<Output = Answer> + Send + use<> {
        let (tell, told) = oneshot::channel();
        let mut asked = self.asked.lock().unwrap();
        asked.last += 1;
        let line = format!("{} {command}\n", asked.last);
        let number = asked.last;
        if !asked.ended {
            asked.waiting.insert(number, tell);
        }
        let _ = self.commands.send(line); // a process that has ended answers nothing
        async move {
            let answer = timeout(8 * LONG, told).await.expect("a replica is silent");
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
            .args(["--exact", TEST, "--nocapture"])
            .env(SETTINGS, serde_json::to_string(settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let (commands, to_write) = mpsc::unbounded_channel();
        tokio::spawn(write(child.stdin.take().unwrap(), to_write));
        let (stopped, stops) = mpsc::unbounded_channel();
        let asked = Arc::<Mutex<Asked>>::default();
        let output = child.stdout.take().unwrap();
        tokio::spawn(read(output, Arc::clone(&asked), stopped));
        let replica = Self {
            child,
            line: Line { commands, asked },
            stops,
        };
        replica.ask("status").await.expect("a replica");
        replica
    }

    /// Sends a command now, as [`Line::ask`] does.
    pub(crate) fn ask(&self, command: &str) -> impl Future<Output = Answer> + Send + use<> {
        self.line.ask(command)
    }

    /// Returns a line to it.
    pub(crate) fn line(&self) -> Line {
        self.line.clone()
    }

    /// The next `times` tenants that come to `step` stay there.
    pub(crate) async fn stop_at(&self, step: Failpoint, times: usize) {
        self.ask(&format!("stop {step:?} {times}"))
            .await
            .expect("stop");
    }

    /// Waits until a tenant stays at `step`, and says which.
    pub(crate) async fn stopped_at(&mut self, step: Failpoint) -> String {
        self.stopped(&format!("{step:?}")).await
    }

    /// Waits until a tenant is at the place of that name, and says which.
    pub(crate) async fn stopped(&mut self, place: &str) -> String {
        let stopped = timeout(8 * LONG, self.stops.recv()).await;
        let stopped = stopped.unwrap_or_else(|_| panic!("nobody ever came to {place}"));
        let (at, tenant) = stopped.expect("the replica lives");
        assert_eq!(at, place);
        tenant
    }

    /// Lets everybody go on who stays at a step. A command without an answer, which a process that stands still hears when
    /// it goes on.
    pub(crate) fn go_on(&self) {
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
    asked: Arc<Mutex<Asked>>,
    stopped: mpsc::UnboundedSender<(String, String)>,
) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((_, said)) = line.split_once(SAYS) else {
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
        if let Some(tell) = asked.lock().unwrap().waiting.remove(&number) {
            let _ = tell.send(answer);
        }
    }
    let mut asked = asked.lock().unwrap();
    asked.ended = true;
    asked.waiting.clear();
}

/// A moment in which a process gets to do what it is about to do.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);
