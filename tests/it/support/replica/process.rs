//! The work of a replica: commands line by line, each in a task of its own, and a line for each answer.

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

use super::{MOMENT, OUTPUT_PREFIX, SETTINGS, Settings, catalog_at};
use crate::support::{LONG, relay::FixedResolver};

/// Long enough for a call of the emulator on a busy machine, and short enough to be waited for.
pub(crate) const LEASE: Duration = Duration::from_millis(2500);
pub(crate) const WINDOW: Duration = Duration::from_millis(1500);

/// The table that the prepare hook creates, for one row that tells whose database it is, and tells databases apart.
const CREATE_SEED: &str =
    "CREATE TABLE IF NOT EXISTS seed (tenant text PRIMARY KEY, id uuid DEFAULT gen_random_uuid())";
const READ_SEED: &str = "SELECT coalesce(string_agg(tenant || ' ' || id, ', '), '') FROM seed";

/// The process's own settings, if it is to be a replica.
fn settings() -> Option<Settings> {
    let settings = env::var(SETTINGS).ok()?;
    Some(serde_json::from_str(&settings).expect("settings"))
}

/// Is a replica until nobody gives commands any more, if the process is started as one. Says whether it was.
pub(crate) async fn run_as_replica() -> bool {
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
                Ok(text) => print_line(&format!("{number} ok {text}")),
                Err(err) => print_line(&format!("{number} failed {}", error_text(&err))),
            }
        });
    }
    true
}

struct Process {
    router: TenantRouter,
    breakpoints: Arc<Breakpoints>,
    hook: Arc<Mutex<Option<String>>>,
}

impl Process {
    fn new(settings: &Settings) -> Self {
        let neon = Neon::builder(settings.key.as_str())
            .base_url(&settings.api)
            .requests_per_minute(100_000);
        let breakpoints = Arc::<Breakpoints>::default();
        let hook = Arc::<Mutex<Option<String>>>::default();
        let (at_step, in_hook) = (Arc::clone(&breakpoints), Arc::clone(&hook));
        let mut provisioner =
            Provisioner::new(catalog_at(&settings.catalog), neon.build().unwrap(), "test")
                .on_first_access()
                .creations_per_minute(100_000)
                .lease_time(LEASE)
                .lost_answer_window(WINDOW)
                .at_each_step(move |step, tenant| {
                    let breakpoints = Arc::clone(&at_step);
                    async move { breakpoints.hit(step, tenant.as_str()).await }
                });
        if settings.seeds_databases {
            provisioner = provisioner
                .prepare(move |database| prepare(database, in_hook.lock().unwrap().clone()));
        }
        let root = CertificateDer::from_pem_file(&settings.root_certificate).expect("certificate");
        let router = TenantRouter::provisioning(provisioner)
            .resolve(FixedResolver(settings.proxy))
            .root_certificate(root)
            .get_timeout(LONG)
            .provision_timeout(4 * LONG)
            .build();
        Self {
            router: router.expect("router"),
            breakpoints,
            hook,
        }
    }

    async fn run(&self, command: &str) -> Result<String, Error> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "get" => return self.read_seed(rest).await,
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
            "stop" => self.breakpoints.set(rest),
            "go" => self.breakpoints.resumed.notify_waiters(),
            "hook" => *self.hook.lock().unwrap() = Some(rest.to_owned()),
            _ => panic!("no such command: {command}"),
        }
        Ok(String::new())
    }

    /// Returns what was seeded into the database that the tenant is served.
    async fn read_seed(&self, tenant: &str) -> Result<String, Error> {
        let read = self.router.read(tenant, |tx| async move {
            let row = tx.query_one(READ_SEED, &[]).await?;
            Ok::<_, Error>(row.get(0))
        });
        read.await
    }

    fn fleet(&self) -> Fleet {
        self.router.fleet().expect("a router that provisions")
    }
}

/// Seeds the database, or runs what was ordered in place of that and tells when that is under way.
async fn prepare(database: PrepareClient, statement: Option<String>) -> Result<(), BoxError> {
    if let Some(statement) = statement {
        let report = async {
            sleep(MOMENT).await;
            print_line(&format!("at Hook {}", database.tenant()));
        };
        tokio::join!(database.batch_execute(&statement), report).0?;
        return Ok(());
    }
    database.batch_execute(CREATE_SEED).await?;
    let insert = "INSERT INTO seed (tenant) VALUES ($1) ON CONFLICT DO NOTHING";
    database
        .execute(insert, &[&database.tenant().as_str()])
        .await?;
    Ok(())
}

/// The step at which tenants are to stay.
#[derive(Default)]
struct Breakpoints {
    // The step, and how many more; held for a look.
    armed: Mutex<Option<(Failpoint, usize)>>,
    resumed: Notify,
}

impl Breakpoints {
    /// `STEP TIMES`.
    fn set(&self, at: &str) {
        let (step, times) = at.split_once(' ').expect("a step, then a number");
        let step = Failpoint::ALL
            .into_iter()
            .find(|it| format!("{it:?}") == step);
        *self.armed.lock().unwrap() = Some((step.expect("a step"), times.parse().unwrap()));
    }

    async fn hit(&self, step: Failpoint, tenant: &str) {
        let resumed = self.resumed.notified();
        if self.should_stop(step) {
            print_line(&format!("at {step:?} {tenant}"));
            resumed.await;
        }
    }

    fn should_stop(&self, step: Failpoint) -> bool {
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
fn print_line(what: &str) {
    println!("{OUTPUT_PREFIX}{}", what.replace('\n', " "));
}

/// The kind of an error, and its text with what is behind it.
fn error_text(err: &Error) -> String {
    let mut text = format!("{:?}: {err}", err.kind());
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}
