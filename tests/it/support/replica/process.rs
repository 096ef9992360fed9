//! What a replica does: commands line by line, each in a task of its own, and a line for each answer.

use std::{
    env,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use tenantry::{
    BoxError, Error, Failpoint, Fleet, Neon, PrepareClient, Provisioner, Reconcile, TenantRouter,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::Notify,
    time::sleep,
};

use super::{MOMENT, SAYS, SETTINGS, Settings, open};
use crate::support::{LONG, relay::ThroughRelay};

/// Long enough for a call of the emulator on a busy machine, and short enough to be waited for.
pub(crate) const LEASE: Duration = Duration::from_millis(2500);
pub(crate) const WINDOW: Duration = Duration::from_millis(1500);

/// What the prepare hook runs: a table with one row that tells whose database it is, and tells databases apart.
const SEED: &str =
    "CREATE TABLE IF NOT EXISTS seed (tenant text PRIMARY KEY, id uuid DEFAULT gen_random_uuid())";
const SEEDED: &str = "SELECT coalesce(string_agg(tenant || ' ' || id, ', '), '') FROM seed";

/// The process's own settings, if it is to be a replica.
fn settings() -> Option<Settings> {
    let settings = env::var(SETTINGS).ok()?;
    Some(serde_json::from_str(&settings).expect("settings"))
}

/// Is a replica until nobody gives commands any more, if the process is started as one. Says whether it was.
pub(crate) async fn serve() -> bool {
    let Some(settings) = settings() else {
        return false;
    };
    let replica = Arc::new(Process::new(&settings));
    let mut lines = BufReader::new(stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let replica = Arc::clone(&replica);
        tokio::spawn(async move {
            let (number, command) = line.split_once(' ').expect("a number, then a command");
            match replica.run(command).await {
                Ok(text) => say(&format!("{number} ok {text}")),
                Err(err) => say(&format!("{number} failed {}", told(&err))),
            }
        });
    }
    true
}

struct Process {
    router: TenantRouter,
    stops: Arc<Stops>,
    hook: Arc<Mutex<Option<String>>>,
}

impl Process {
    fn new(settings: &Settings) -> Self {
        let neon = Neon::builder(settings.key.as_str())
            .base_url(&settings.api)
            .requests_per_minute(100_000);
        let stops = Arc::<Stops>::default();
        let hook = Arc::<Mutex<Option<String>>>::default();
        let (at_step, in_hook) = (Arc::clone(&stops), Arc::clone(&hook));
        let mut provisioner =
            Provisioner::new(open(&settings.catalog), neon.build().unwrap(), "test")
                .on_first_access()
                .creations_per_minute(100_000)
                .lease_time(LEASE)
                .lost_answer_window(WINDOW)
                .at_each_step(move |step, tenant| {
                    let stops = Arc::clone(&at_step);
                    async move { stops.reach(step, tenant.as_str()).await }
                });
        if settings.seeds {
            provisioner = provisioner
                .prepare(move |database| prepare(database, in_hook.lock().unwrap().clone()));
        }
        let root = CertificateDer::from_pem_file(&settings.root_certificate).expect("certificate");
        let router = TenantRouter::provisioning(provisioner)
            .resolve(ThroughRelay(settings.proxy))
            .root_certificate(root)
            .get_timeout(LONG)
            .build();
        Self {
            router: router.expect("router"),
            stops,
            hook,
        }
    }

    async fn run(&self, command: &str) -> Result<String, Error> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "get" => return self.seeded(rest).await,
            "provision" => self.fleet().provision(rest).await?,
            "delete" => self.fleet().delete_after(rest, Duration::ZERO).await?,
            "undelete" => self.fleet().undelete(rest).await?,
            "reconcile" => {
                let how = Reconcile::repair().grace(Duration::ZERO).remove_deleted();
                let report = self.fleet().reconcile(&how).await?;
                return Ok(format!("{:?}", report.findings));
            }
            "status" => {
                let status = self.router.status();
                return Ok(format!("{} {}", status.provisioned, status.adopted));
            }
            "stop" => self.stops.arm(rest),
            "go" => self.stops.go.notify_waiters(),
            "hook" => *self.hook.lock().unwrap() = Some(rest.to_owned()),
            _ => panic!("no such command: {command}"),
        }
        Ok(String::new())
    }

    /// What was seeded into the database that the tenant is served.
    async fn seeded(&self, tenant: &str) -> Result<String, Error> {
        let read = self.router.read(tenant, |tx| async move {
            let row = tx.query_one(SEEDED, &[]).await?;
            Ok::<_, Error>(row.get(0))
        });
        read.await
    }

    fn fleet(&self) -> Fleet {
        self.router.fleet().expect("a router that provisions")
    }
}

/// Seeds the database, or runs what was ordered in place of that and tells when that is under way.
async fn prepare(database: PrepareClient, ordered: Option<String>) -> Result<(), BoxError> {
    if let Some(ordered) = ordered {
        let told = async {
            sleep(MOMENT).await;
            say(&format!("at Hook {}", database.tenant()));
        };
        tokio::join!(database.batch_execute(&ordered), told).0?;
        return Ok(());
    }
    database.batch_execute(SEED).await?;
    let insert = "INSERT INTO seed (tenant) VALUES ($1) ON CONFLICT DO NOTHING";
    database
        .execute(insert, &[&database.tenant().as_str()])
        .await?;
    Ok(())
}

/// Where tenants are to stay.
#[derive(Default)]
struct Stops {
    // The step, and how many more; held for a look.
    armed: Mutex<Option<(Failpoint, usize)>>,
    go: Notify,
}

impl Stops {
    /// `STEP TIMES`.
    fn arm(&self, at: &str) {
        let (step, times) = at.split_once(' ').expect("a step, then a number");
        let step = Failpoint::ALL
            .into_iter()
            .find(|it| format!("{it:?}") == step);
        *self.armed.lock().unwrap() = Some((step.expect("a step"), times.parse().unwrap()));
    }

    async fn reach(&self, step: Failpoint, tenant: &str) {
        let go = self.go.notified();
        if self.takes(step) {
            say(&format!("at {step:?} {tenant}"));
            go.await;
        }
    }

    fn takes(&self, step: Failpoint) -> bool {
        match &mut *self.armed.lock().unwrap() {
            Some((armed, left)) if *armed == step && *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

/// One line, whole.
fn say(what: &str) {
    println!("{SAYS}{}", what.replace('\n', " "));
}

/// The kind of an error, and its text with what is behind it.
fn told(err: &Error) -> String {
    let mut text = format!("{:?}: {err}", err.kind());
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}
