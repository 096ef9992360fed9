//! An emulator of Neon on this machine, until Ctrl-C. Any Postgres client and any client of Neon's API can use it.
//!
//! Run it with `tests/with-postgres cargo run --example neon_emulator`, or with fixed ports: `cargo run --example
//! neon_emulator -- 8080 5433`.

use std::time::Duration;

use tenantry::{BoxError, Neon, emulator::Emulator, neon::CreateProject};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut ports = std::env::args().skip(1).map(|port| port.parse::<u16>());
    let (api_port, proxy_port) = (
        ports.next().transpose()?.unwrap_or(0),
        ports.next().transpose()?.unwrap_or(0),
    );
    let emulator = Emulator::builder()
        .wake_delay(Duration::from_millis(350))
        .ports(api_port, proxy_port)
        .start()
        .await?;

    // One project, so that there is a database to connect to.
    let neon = Neon::builder(emulator.api_key())
        .base_url(emulator.api_url())
        .build()?;
    let created = neon.create_project(&CreateProject::new("example")).await?;
    neon.wait_for_operations(&created.project.id).await?;
    let at = &created.connection_uris[0].connection_parameters;
    let (proxy, ca) = (emulator.proxy_address(), emulator.root_certificate_file());

    println!("API URL    {}", emulator.api_url());
    println!("API key    {}", emulator.api_key().expose());
    println!("CA file    {}", ca.display());
    println!("project    {}", created.project.id);
    println!(
        "psql       PGPASSWORD={} psql 'host={} hostaddr={} port={} user={} dbname={} sslmode=verify-full sslrootcert={}'",
        at.password.expose(),
        at.pooler_host,
        proxy.ip(),
        proxy.port(),
        at.role,
        at.database,
        ca.display(),
    );
    println!(
        "\nA compute sleeps after five idle minutes and takes some 350 ms to wake. Ctrl-C ends all of it."
    );
    tokio::signal::ctrl_c().await?;
    Ok(())
}
