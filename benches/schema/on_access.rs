//! A step that a sleeping tenant gets on access.

use std::time::Duration;

use tenantry::{BoxError, Schema, TenantRouter};
use tokio::time::Instant;

use crate::{
    bare::Bare,
    setup::{self, Setup},
    support::{self, QUERY, Samples, Table},
};

const TABLE: &str = "CREATE TABLE notes (text text)";
const STEP: &str = "ALTER TABLE notes ADD COLUMN day date";
const UNDO: &str = "ALTER TABLE notes DROP COLUMN day";
/// The databases sleep only when they are told to.
const WINDOW: Duration = Duration::from_secs(3600);
const TENANT: &str = "ours";

#[derive(Default)]
pub(crate) struct OnAccess {
    bare: Samples,
    ours: Samples,
    /// The access of a tenant that lacks nothing.
    current: Samples,
}

/// Both sides of the comparison.
struct Sides {
    setup: Setup,
    router: TenantRouter,
    ours: Bare,
    bare: Bare,
}

pub(crate) async fn run(rounds: usize) -> Result<OnAccess, BoxError> {
    let sides = Sides::new().await?;
    let mut results = OnAccess::default();
    let bar = support::progress(rounds);
    for round in 0..=rounds {
        let (ours, bare) = if round.is_multiple_of(2) {
            let ours = sides.ours().await?;
            (ours, sides.bare().await?)
        } else {
            let bare = sides.bare().await?;
            (sides.ours().await?, bare)
        };
        let current = sides.current().await?;
        sides.undo().await?;
        if round > 0 {
            // The first round opens connections to the catalog and to the API.
            results.ours.add(ours);
            results.bare.add(bare);
            results.current.add(current);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    sides.router.close().await;
    Ok(results)
}

impl Sides {
    async fn new() -> Result<Self, BoxError> {
        let setup = Setup::new(WINDOW).await?;
        let first = setup.router(Schema::new().step(1, "notes", TABLE))?;
        drop(first.get(TENANT).await?);
        drop(first.get("bare").await?);
        first.close().await;
        let schema = Schema::new().step(1, "notes", TABLE).step(2, "day", STEP);
        let router = setup.router(schema)?;
        let witnesses = setup.emulator.witnesses();
        let [ours, bare] = &witnesses[..] else {
            return Err("there are not two databases".into());
        };
        let (ours, bare) = (
            Bare::new(&setup, ours).await?,
            Bare::new(&setup, bare).await?,
        );
        bare.execute("CREATE TABLE versions (version int); INSERT INTO versions VALUES (1)")
            .await?;
        setup.emulator.suspend_all().await;
        Ok(Self {
            setup,
            router,
            ours,
            bare,
        })
    }

    async fn ours(&self) -> Result<Duration, BoxError> {
        let took = self.access().await?;
        let known = setup::fleet(&self.router)?.schema_of(TENANT).await?;
        if known.version != Some(2) {
            return Err("the access did not migrate the tenant".into());
        }
        Ok(took)
    }

    /// `get` and a query. The compute sleeps afterwards.
    async fn access(&self) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let client = self.router.get(TENANT).await?;
        client.query_typed(QUERY, &[]).await?;
        let took = start.elapsed();
        drop(client);
        self.router.evict(TENANT);
        self.setup.emulator.suspend_all().await;
        Ok(took)
    }

    async fn current(&self) -> Result<Duration, BoxError> {
        self.access().await
    }

    async fn bare(&self) -> Result<Duration, BoxError> {
        let took = self.bare.migrate(STEP).await?;
        self.setup.emulator.suspend_all().await;
        Ok(took)
    }

    /// Takes the step away on both sides.
    async fn undo(&self) -> Result<(), BoxError> {
        let ours = "DELETE FROM tenantry.schema_history WHERE version = 2";
        self.ours.execute(&format!("{UNDO}; {ours}")).await?;
        let bare = "DELETE FROM versions WHERE version = 2";
        self.bare.execute(&format!("{UNDO}; {bare}")).await?;
        setup::fleet(&self.router)?.forget_schema(TENANT).await?;
        self.router.evict(TENANT);
        self.setup.emulator.suspend_all().await;
        Ok(())
    }
}

impl OnAccess {
    pub(crate) fn print(&self) {
        println!("\nThe access to a sleeping tenant that lacks one step, to its first row");
        let mut table = Table::new(&["", "median", "p90", "p99"]);
        let rows = [
            ("bare code", &self.bare),
            ("tenantry", &self.ours),
            ("tenantry, if it lacks nothing", &self.current),
        ];
        for (name, samples) in rows {
            table.row(&[name, &samples.ms(0.5), &samples.ms(0.9), &samples.ms(0.99)]);
        }
        table.print();
        println!("on_access_over_bare {:.3}", self.over_bare());
    }

    fn over_bare(&self) -> f64 {
        self.ours.at(0.5) / self.bare.at(0.5)
    }

    pub(crate) fn figures(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("on_access_over_bare", self.over_bare()),
            ("on_access_median_ms", self.ours.at(0.5)),
            ("on_access_bare_median_ms", self.bare.at(0.5)),
            ("on_access_current_median_ms", self.current.at(0.5)),
        ]
    }
}
