//! Three processes of one app that share one catalog in Postgres. A tenant that one process creates is served by all.
//! Fifty callers in each process at once create one database. A deletion reaches all processes. If a process is killed,
//! another one finishes its work.
//!
//! Run it with `tests/with-postgres cargo run --example replicas`. It starts an emulator of Neon, a Postgres for the
//! catalog, and three copies of itself. All of them end after a few seconds.

use std::{env, io, net::SocketAddr, process::Stdio, time::Duration};

use futures_util::future::try_join_all;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tenantry::{
    BoxError, KeyRing, Neon, Provisioner, Resolve, TenantRouter,
    catalog::Postgres,
    emulator::{ApiFault, CatalogServer, Emulator},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin},
    process::{Child, Command},
    time::{Instant, sleep},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match env::args().nth(1) {
        Some(name) => replica(&name).await,
        None => run_demo().await,
    }
}

/// Builds the router of each process. A real app does not need the last two settings.
fn router() -> Result<TenantRouter, BoxError> {
    let catalog = Postgres::builder(env::var("CATALOG_URL")?)
        .keys(KeyRing::parse(&env::var("CATALOG_KEYS")?)?)
        .build()?;
    let neon = Neon::builder(env::var("NEON_API_KEY")?)
        .base_url(env::var("NEON_API_URL")?)
        .rate_share(1.0 / 3.0) // Neon counts the replicas together
        .build()?;
    let provisioner = Provisioner::new(catalog, neon, "example")
        .on_first_access()
        .lease_time(Duration::from_secs(2)); // short, for an example; 30 seconds by default
    let root = CertificateDer::from_pem_file(env::var("NEON_ROOT")?)?;
    let router = TenantRouter::provisioning(provisioner)
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
async fn replica(name: &str) -> Result<(), BoxError> {
    let router = router()?;
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let done = execute(&router, name, &order).await;
        let status = router.status();
        let counts = format!("created {}, adopted {}", status.provisioned, status.adopted);
        let done = done.unwrap_or_else(|err| format!("failed: {err}"));
        println!("{done} ({counts} so far)");
    }
    router.close().await;
    Ok(())
}

async fn execute(router: &TenantRouter, name: &str, order: &str) -> Result<String, BoxError> {
    let (verb, tenant) = order.split_once(' ').ok_or("no order")?;
    match verb {
        // Adds a row to the tenant's table, and reads all rows.
        "visit" => {
            let client = router.get(tenant).await?;
            let create = "CREATE TABLE IF NOT EXISTS visits (id serial, visitor text)";
            client.batch_execute(create).await?;
            let insert = "INSERT INTO visits (visitor) VALUES ($1)";
            client.execute(insert, &[&name]).await?;
            let select = "SELECT visitor FROM visits ORDER BY id";
            let rows = client.query(select, &[]).await?;
            let visitors: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            Ok(format!("visited by {}", visitors.join(", ")))
        }
        // Fifty callers at once.
        "herd" => {
            let callers = (0..50).map(async |_| router.get(tenant).await.map(drop));
            Ok(format!(
                "{} callers served",
                try_join_all(callers).await?.len()
            ))
        }
        "delete" => {
            let fleet = router.fleet().ok_or("this router creates nothing")?;
            fleet.delete_after(tenant, Duration::from_secs(1)).await?;
            Ok("deleted, and gone at Neon".to_owned())
        }
        // Gets a connection again and again, until the tenant is refused.
        "watch" => loop {
            if let Err(err) = router.get(tenant).await {
                return Ok(format!("refused: {:?}", err.kind()));
            }
            sleep(Duration::from_millis(10)).await;
        },
        _ => Err("there is no such order".into()),
    }
}

/// Runs the demonstration in the first process.
async fn run_demo() -> Result<(), BoxError> {
    let (emulator, catalog) = (Emulator::start().await?, CatalogServer::start().await?);
    let start = |name| Replica::start(name, &emulator, &catalog);
    let (mut a, mut b, mut c) = (start("a")?, start("b")?, start("c")?);
    let count = |tenant| {
        println!(
            "   projects of {tenant} at Neon: {}",
            projects(&emulator, tenant)
        );
    };

    println!("a creates a tenant's database, and the catalog tells b and c");
    for replica in [&mut a, &mut b, &mut c] {
        replica.send_order("visit acme").await?;
    }
    count("acme");

    println!("\nfifty callers of each want a new tenant, all at once");
    let herd = "herd globex";
    tokio::try_join!(a.send_order(herd), b.send_order(herd), c.send_order(herd))?;
    count("globex");

    println!("\nb deletes a tenant to which a and c have connections");
    let watch = "watch globex";
    tokio::try_join!(
        b.send_order("delete globex"),
        a.send_order(watch),
        c.send_order(watch)
    )?;
    count("globex");

    println!(
        "\na is killed before it hears what it has created; b and c go on when its lease ends"
    );
    let milliseconds = 60_000;
    emulator.fail_api("POST /projects", ApiFault::Slow { milliseconds }, 1);
    let created = async {
        while projects(&emulator, "initech") == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        done = a.send_order("visit initech") => return done,
        () = created => a.process.kill().await?,
    }
    tokio::try_join!(b.send_order("visit initech"), c.send_order("visit initech"))?;
    count("initech");
    tokio::try_join!(b.end(), c.end())?;
    Ok(())
}

fn projects(emulator: &Emulator, tenant: &str) -> usize {
    let all = emulator.witnesses().into_iter();
    all.filter(|it| it.annotations["tenantry-tenant"] == tenant)
        .count()
}

/// A copy of this program, started by the first process.
struct Replica {
    name: &'static str,
    process: Child,
}

impl Replica {
    fn start(
        name: &'static str,
        emulator: &Emulator,
        catalog: &CatalogServer,
    ) -> Result<Self, BoxError> {
        let process = Command::new(env::current_exe()?)
            .arg(name)
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
        Ok(Self { name, process })
    }

    /// Sends an order, waits for its answer, and prints it.
    async fn send_order(&mut self, order: &str) -> Result<(), BoxError> {
        let (stdin, stdout) = (&mut self.process.stdin, &mut self.process.stdout);
        let (stdin, stdout) = stdin.as_mut().zip(stdout.as_mut()).ok_or("not started")?;
        let start = Instant::now();
        stdin.write_all(format!("{order}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer).await?; // an answer is one line
        let took = start.elapsed().as_millis();
        print!("   {}: {order:<13} {took:>5} ms  {answer}", self.name);
        Ok(())
    }

    async fn end(&mut self) -> Result<(), BoxError> {
        drop(self.process.stdin.take()); // no more orders
        self.process.wait().await?;
        Ok(())
    }
}
