//! Three tenants that nobody has ever seen, each with a database of its own, on an emulator of Neon.
//!
//! Run it with `tests/with-postgres cargo run --example quickstart`.

use std::time::Duration;
use tenantry::{BoxError, Neon, Provisioner, TenantRouter, catalog::Memory, emulator::Emulator};
use tokio::time::Instant;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Neon on this machine, as slow to wake as the real one.
    let delay = Duration::from_millis(350);
    let emulator = Emulator::builder().wake_delay(delay).start().await?;
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let provisioner = Provisioner::new(Memory::new(), neon, "quickstart");
    let provisioner = provisioner.on_first_access(); // for ids that no client can make up
    let router = TenantRouter::provisioning(provisioner)
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate())
        .build()?;

    println!(
        "tenant   access                    get     of it wake         query  rows of its own"
    );
    for access in ["first: created", "second: reused", "asleep: woken"] {
        for tenant in ["acme", "globex", "initech"] {
            visit(&router, &emulator, tenant, access).await?;
        }
        if access.starts_with("second") {
            emulator.suspend_all().await; // Neon does this by itself after five idle minutes
        }
    }

    println!("\ntenant   wakes  sessions  host");
    for it in emulator.witnesses() {
        let (tenant, wakes) = (&it.annotations["tenantry-tenant"], it.wakes.len());
        println!(
            "{tenant:<8} {wakes:>5}  {:>8}  {}",
            it.sessions.len(),
            it.host
        );
    }
    router.close().await;
    Ok(())
}

/// Gets the tenant's connection, adds a row to its own table, and reads back all that is there.
async fn visit(
    router: &TenantRouter,
    emulator: &Emulator,
    tenant: &str,
    access: &str,
) -> Result<(), BoxError> {
    let start = Instant::now();
    let client = router.get(tenant).await?;
    let got = start.elapsed();
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS visits (visitor text)")
        .await?;
    client
        .execute("INSERT INTO visits VALUES ($1)", &[&tenant])
        .await?;

    let begin = Instant::now();
    let rows = client
        .query_typed("SELECT visitor FROM visits", &[])
        .await?;
    let queried = begin.elapsed();

    let all = emulator.witnesses().into_iter().flat_map(|it| it.wakes);
    let woken: Duration = all
        .filter(|wake| wake.at >= start)
        .map(|wake| wake.took)
        .sum();
    let times = [got, woken, queried].map(|time| format!("{:>10.3} ms", time.as_secs_f64() * 1e3));
    let visitors: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    println!("{tenant:<8} {access:<15} {}  {visitors:?}", times.join(" "));
    Ok(())
}
