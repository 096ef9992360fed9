//! Three tenants that the router has never seen: each gets a database of its own, on an emulator of Neon.
//!
//! Run it with `tests/with-postgres cargo run --example quickstart`.

use std::time::Duration;
use tenantry::{BoxError, Neon, Provisioner, TenantRouter, catalog::Memory, emulator::Emulator};
use tokio::time::Instant;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    println!(
        "This runs on an emulator of Neon, with real Postgres and TLS. A database takes 350 ms to start.\n"
    );
    let delay = Duration::from_millis(350); // as long as at Neon
    let emulator = Emulator::builder().wake_delay(delay).start().await?;
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let provisioner = Provisioner::new(Memory::new(), neon, "quickstart");
    let provisioner = provisioner.on_first_access(); // only for ids that clients cannot make up
    let router = TenantRouter::provisioning(provisioner)
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate())
        .build()?;

    println!(
        "1. The first get of an unknown tenant creates its database, by one call of Neon's API."
    );
    let created = visit_all(&router).await?;
    println!("2. The next get takes a connection from the tenant's pool.");
    let warm = visit_all(&router).await?;
    println!(
        "3. All databases are suspended, which closes all connections. The next get starts the database again."
    );
    emulator.suspend_all().await; // Neon does this by itself after five idle minutes
    let woken = visit_all(&router).await?;

    println!("\ntenant       created        warm       woken   rows in its own database");
    for (at, tenant) in TENANTS.into_iter().enumerate() {
        let times = [&created[at], &warm[at], &woken[at]];
        let times = times.map(|visit| format!("{:>9.3} ms", visit.took.as_secs_f64() * 1e3));
        println!(
            "{tenant:<8} {}   {}",
            times.join(""),
            woken[at].rows.join(", ")
        );
    }
    let wakes: usize = emulator.witnesses().iter().map(|it| it.wakes.len()).sum();
    println!(
        "\nEach of the three databases was started when it was created and when it was woken: {wakes} starts in all."
    );
    println!(
        "Next: tests/with-postgres cargo run --example saas, a notes service to try with curl."
    );
    router.close().await;
    Ok(())
}

/// One access to a tenant's database.
struct Visit {
    /// The time that `get` took.
    took: Duration,
    /// All rows that the database has.
    rows: Vec<String>,
}

/// Visits each tenant, one after the other.
async fn visit_all(router: &TenantRouter) -> Result<Vec<Visit>, BoxError> {
    let mut visits = Vec::new();
    for tenant in TENANTS {
        visits.push(visit(router, tenant).await?);
    }
    Ok(visits)
}

/// Gets a connection to the tenant's database, adds a row, and reads all rows back.
async fn visit(router: &TenantRouter, tenant: &str) -> Result<Visit, BoxError> {
    let start = Instant::now();
    let client = router.get(tenant).await?;
    let took = start.elapsed();
    let table =
        "CREATE TABLE IF NOT EXISTS visits (number int GENERATED ALWAYS AS IDENTITY, visitor text)";
    client.batch_execute(table).await?;
    let insert = "INSERT INTO visits (visitor) VALUES ($1)";
    client.execute(insert, &[&tenant]).await?;
    let select = "SELECT visitor || ' ' || number FROM visits ORDER BY number";
    let rows = client.query_typed(select, &[]).await?;
    let rows = rows.iter().map(|row| row.get(0)).collect();
    Ok(Visit { took, rows })
}
