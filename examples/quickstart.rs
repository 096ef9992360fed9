//! Three tenants that nobody has ever seen, each with a database of its own, on Neon's emulator.
//!
//! Run it with `tests/with-postgres cargo run --example quickstart`.

use std::time::Duration;

use tokio::time::Instant;

use tenantry::{BoxError, Neon, Provisioner, TenantRouter, emulator::Emulator, records::Memory};

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Neon on this machine, as slow to wake as the real one. With a real API key, leave out this and the three lines
    // that mention it.
    let emulator = Emulator::builder()
        .wake_delay(Duration::from_millis(350))
        .start()
        .await?;

    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let router = TenantRouter::provisioning(Provisioner::new(Memory::new(), neon, "quickstart"))
        .resolve(emulator.resolver())
        .root_certificate(emulator.root_certificate())
        .build()?;

    println!(
        "{:<10} {:<26} {:>12} {:>12}  rows",
        "tenant", "access", "get", "query"
    );
    for tenant in TENANTS {
        visit(&router, tenant, "first: database created").await?;
    }
    for tenant in TENANTS {
        visit(&router, tenant, "second: idle connection").await?;
    }
    emulator.suspend_all().await; // Neon does this by itself after five idle minutes
    for tenant in TENANTS {
        visit(&router, tenant, "after suspend: woken").await?;
    }

    println!(
        "\n{:<10} {:<44} {:>6} {:>9}",
        "tenant", "host", "wakes", "sessions"
    );
    for it in emulator.witnesses() {
        let tenant = &it.annotations["tenantry-tenant"];
        println!(
            "{tenant:<10} {:<44} {:>6} {:>9}",
            it.host,
            it.wakes.len(),
            it.sessions.len()
        );
    }
    let status = router.status();
    println!(
        "\n{} created, {} connections opened, {} reused",
        status.provisioned, status.opened, status.reused
    );
    router.close().await;
    Ok(())
}

/// Gets the tenant's connection, adds a row to the tenant's own table, and reads back all that is there.
async fn visit(router: &TenantRouter, tenant: &str, access: &str) -> Result<(), BoxError> {
    let start = Instant::now();
    let client = router.get(tenant).await?;
    let got = start.elapsed();
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS visits (note text)")
        .await?;
    client
        .execute(
            "INSERT INTO visits VALUES ($1)",
            &[&format!("{tenant} was here")],
        )
        .await?;

    let start = Instant::now();
    let rows = client
        .query_typed("SELECT note, count(*) FROM visits GROUP BY note", &[])
        .await?;
    let queried = start.elapsed();
    let notes: Vec<_> = rows
        .iter()
        .map(|row| format!("{:?} × {}", row.get::<_, &str>(0), row.get::<_, i64>(1)))
        .collect();
    println!(
        "{tenant:<10} {access:<26} {got:>12.1?} {queried:>12.1?}  {}",
        notes.join(", ")
    );
    Ok(())
}
