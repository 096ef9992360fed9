//! A schema change for a fleet that sleeps: a campaign with a budget of wakes, one tenant that fails, a pause, and
//! another process that goes on after the first is killed.
//!
//! Run it with `tests/with-postgres cargo run --example rollout`. It starts an emulator of Neon, a Postgres for the
//! catalog, and two copies of itself. All of them end after about 15 seconds.

use std::{env, io, net::SocketAddr, process::Stdio, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tenantry::{
    BoxError, Fleet, KeyRing, Neon, Provisioner, Resolve, Schema, TenantRouter,
    catalog::Postgres,
    emulator::{CatalogServer, Emulator},
    fleet::{Campaign, CampaignState, CampaignStatus},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin},
    process::{Child, ChildStdout, Command},
    time::sleep,
};

const TENANTS: u64 = 10;
/// The tenant whose data does not fit step 2.
const UNFIT: &str = "t07";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match env::args().nth(1) {
        Some(_) => replica().await,
        None => run_demo().await,
    }
}

/// The schema of the release before this one.
fn old_schema() -> Schema {
    Schema::new().step(1, "users", "CREATE TABLE users (email text NOT NULL)")
}

/// The schema of this release, which also works without its last step.
fn schema() -> Schema {
    let unique = "ALTER TABLE users ADD CONSTRAINT one_user UNIQUE (email)";
    old_schema()
        .step(2, "one user per address", unique)
        .requires(1)
}

/// Two wakes a second, for an example; 600 an hour by default.
fn campaign() -> Campaign {
    Campaign::new()
        .canaries(["t00"])
        .waves([50, 100])
        .soak(Duration::from_millis(500))
        .wakes_per_hour(2 * 3600)
        .dormant(true)
        .sleep_again(true)
}

/// Builds the router of each process. A real app needs the last five settings neither here nor for the provisioner.
fn router(schema: Schema) -> Result<TenantRouter, BoxError> {
    let catalog = Postgres::builder(env::var("CATALOG_URL")?)
        .keys(KeyRing::parse(&env::var("CATALOG_KEYS")?)?)
        .build()?;
    let neon = Neon::builder(env::var("NEON_API_KEY")?)
        .base_url(env::var("NEON_API_URL")?)
        .build()?;
    let provisioner = Provisioner::new(catalog, neon, "example")
        .on_first_access()
        .lease_time(Duration::from_secs(2));
    let root = CertificateDer::from_pem_file(env::var("NEON_ROOT")?)?;
    let router = TenantRouter::provisioning(provisioner)
        .schema(schema)
        .catalog_poll(Duration::from_millis(500))
        .resolve(Proxy(env::var("NEON_PROXY")?.parse()?))
        .root_certificate(root);
    Ok(router.build()?)
}

/// Resolves all hosts of the emulator to its one address.
struct Proxy(SocketAddr);

impl Resolve for Proxy {
    async fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }
}

/// Runs one process of the app, which carries out orders from stdin, line by line.
async fn replica() -> Result<(), BoxError> {
    let mut orders = BufReader::new(stdin()).lines();
    let mut router = router(old_schema())?;
    while let Some(order) = orders.next_line().await? {
        if order == "upgrade" {
            router.close().await;
            router = self::router(schema())?;
            println!("upgraded");
            continue;
        }
        match execute(&router, &order).await {
            Ok(answer) => println!("{answer}"),
            Err(err) => println!("failed: {err}"),
        }
    }
    router.close().await;
    Ok(())
}

async fn execute(router: &TenantRouter, order: &str) -> Result<String, BoxError> {
    let fleet = router.fleet().ok_or("this router creates nothing")?;
    let (verb, tenant) = order.split_once(' ').unwrap_or((order, ""));
    Ok(match verb {
        "create" => {
            let client = router.get(tenant).await?;
            let addresses = if tenant == UNFIT {
                "('a'), ('a')"
            } else {
                "('a'), ('b')"
            };
            let insert = format!("INSERT INTO users VALUES {addresses}");
            client.batch_execute(&insert).await?;
            "created".to_owned()
        }
        "estimate" => {
            let it = fleet.estimate(&campaign()).await?;
            let (wakes, price, takes) = (it.wakes, it.cost(0.106), it.takes);
            format!(
                "{} tenants, {wakes} wakes, ${price:.4}, at least {takes:?}",
                it.due
            )
        }
        "begin" => text(&fleet.migrate(campaign()).await?),
        "pause" => text(&fleet.pause_campaign().await?),
        "resume" => text(&fleet.resume_campaign().await?),
        "status" => text(&progress(&fleet).await?),
        "failure" => {
            let failed = progress(&fleet).await?.failures;
            let failed = failed.first().ok_or("no tenant has failed")?;
            failed.error.clone()
        }
        // Removes the second of two equal rows, and tries the tenant again.
        "mend" => {
            let client = router.direct(tenant).await?;
            let delete =
                "DELETE FROM users a USING users b WHERE a.email = b.email AND a.ctid > b.ctid";
            client.batch_execute(delete).await?;
            fleet.retry_schema(tenant).await?;
            let migrated = router.migrate(tenant).await?;
            format!("from version {} to {}", migrated.from, migrated.to)
        }
        "versions" => {
            let counts = fleet.schema_versions().await?;
            let counts = counts
                .iter()
                .map(|it| format!("{} at version {}", it.tenants, it.version));
            counts.collect::<Vec<_>>().join(", ")
        }
        _ => return Err("there is no such order".into()),
    })
}

async fn progress(fleet: &Fleet) -> Result<CampaignStatus, BoxError> {
    Ok(fleet.campaign().await?.ok_or("no campaign was begun")?)
}

/// Writes a campaign's progress, which [`Progress::parse`] reads.
fn text(status: &CampaignStatus) -> String {
    let state = match status.state {
        CampaignState::Running => "running",
        CampaignState::Paused => "paused",
        CampaignState::Done => "done",
        _ => "stopped",
    };
    let CampaignStatus {
        migrated,
        failed,
        wave,
        waves,
        ..
    } = status;
    format!("{state} {migrated} {failed} {wave} {waves}")
}

/// The progress of a campaign, as a process reports it.
struct Progress {
    state: String,
    migrated: u64,
    failed: u64,
    wave: String,
}

impl Progress {
    fn parse(line: &str) -> Result<Self, BoxError> {
        let words: Vec<_> = line.split(' ').collect();
        let [state, migrated, failed, wave, waves] = words[..] else {
            return Err(line.to_owned().into());
        };
        let (migrated, failed) = (migrated.parse()?, failed.parse()?);
        let (state, wave) = (state.to_owned(), format!("{wave} of {waves}"));
        Ok(Self {
            state,
            migrated,
            failed,
            wave,
        })
    }
}

/// Runs the demonstration in the first process.
async fn run_demo() -> Result<(), BoxError> {
    let (emulator, catalog) = (Emulator::start().await?, CatalogServer::start().await?);
    let start = || Replica::start(&emulator, &catalog);
    let (mut a, mut b) = (start()?, start()?);
    println!("{TENANTS} tenants at version 1, which all fall asleep; one has a user twice");
    for n in 0..TENANTS {
        a.order(&format!("create t{n:02}")).await?;
    }
    for witness in emulator.witnesses() {
        emulator.suspend(&witness.endpoint_id).await;
    }

    println!(
        "\nthe next release allows no user twice; its processes a and b ask what a campaign would cost"
    );
    a.order("upgrade").await?;
    b.order("upgrade").await?;
    println!("   {}", a.order("estimate").await?);

    println!("\na begins, and an operator pauses it through b after a few tenants");
    a.order("begin").await?;
    let bar = Bar::new();
    bar.follow(&mut b, |now| now.migrated >= 3).await?;
    b.order("pause").await?;
    bar.follow(&mut b, |now| now.state == "paused").await?;

    println!("\na is killed; b resumes the campaign, and goes on where a stood");
    a.process.kill().await?;
    b.order("resume").await?;
    let ended = bar.follow(&mut b, |now| now.state != "running").await?;
    bar.end();
    if (ended.migrated, ended.failed) != (TENANTS - 1, 1) {
        return Err(format!("{} migrated, {} failed", ended.migrated, ended.failed).into());
    }

    println!("\none tenant has failed, and the others did not wait for it");
    println!("   {UNFIT}: {}", b.order("failure").await?);
    println!(
        "   its rows are mended, and it is tried again: {}",
        b.order(&format!("mend {UNFIT}")).await?
    );
    println!("   {}", b.order("versions").await?);
    let asleep = emulator
        .witnesses()
        .iter()
        .filter(|it| !it.is_awake)
        .count();
    println!("   databases asleep: {asleep} of {TENANTS}");
    b.end().await
}

/// A progress bar on a terminal, or lines elsewhere.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("   wave {msg} [{bar:30}] {pos}/{len}");
        let bar = ProgressBar::new(TENANTS);
        Self(bar.with_style(style.expect("a template")))
    }

    /// Shows the progress that `replica` reports, until it is as wanted.
    async fn follow(
        &self,
        replica: &mut Replica,
        is_wanted: impl Fn(&Progress) -> bool,
    ) -> Result<Progress, BoxError> {
        loop {
            let now = Progress::parse(&replica.order("status").await?)?;
            let before = self.0.position();
            let visited = now.migrated + now.failed;
            self.0.set_message(now.wave.clone());
            self.0.set_position(visited);
            if self.0.is_hidden() && visited > before {
                println!(
                    "   wave {}: {visited} of {TENANTS}, {} failed",
                    now.wave, now.failed
                );
            }
            if is_wanted(&now) {
                return Ok(now);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn end(&self) {
        self.0.abandon();
    }
}

/// A copy of this program, started by the first process.
struct Replica {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    fn start(emulator: &Emulator, catalog: &CatalogServer) -> Result<Self, BoxError> {
        let mut process = Command::new(env::current_exe()?)
            .arg("replica")
            .env("NEON_API_URL", emulator.api_url())
            .env("NEON_API_KEY", emulator.api_key().expose())
            .env("NEON_PROXY", emulator.proxy_address().to_string())
            .env("NEON_ROOT", emulator.root_certificate_file())
            .env("CATALOG_URL", catalog.url())
            .env("CATALOG_KEYS", format!("example:{}", "7a".repeat(32)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("not started")?;
        let answers = BufReader::new(stdout).lines();
        Ok(Self { process, answers })
    }

    /// Sends an order, and returns its answer, which is one line.
    async fn order(&mut self, order: &str) -> Result<String, BoxError> {
        let stdin = self.process.stdin.as_mut().ok_or("not started")?;
        stdin.write_all(format!("{order}\n").as_bytes()).await?;
        let answer = self.answers.next_line().await?;
        let answer = answer.ok_or("the process has ended")?;
        match answer.strip_prefix("failed: ") {
            Some(why) => Err(format!("{order}: {why}").into()),
            None => Ok(answer),
        }
    }

    async fn end(&mut self) -> Result<(), BoxError> {
        drop(self.process.stdin.take()); // no more orders
        self.process.wait().await?;
        Ok(())
    }
}
