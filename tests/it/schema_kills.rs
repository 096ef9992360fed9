//! Three processes that migrate the same tenants and are killed one after another.

use std::collections::{BTreeMap, BTreeSet};

use tenantry::{Failpoint, Moment, Schema, tokio_postgres::Client};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Duration, sleep, timeout},
};

use crate::support::{COMMITTING, Databases, LONG, Process, column, staying_at};

/// Each step writes its number, so that a step that ran twice is seen twice.
pub(crate) fn schema() -> Schema {
    let first = "CREATE TABLE IF NOT EXISTS log (step int); INSERT INTO log VALUES (1)";
    Schema::new()
        .step(1, "log", first)
        .step(2, "two", "INSERT INTO log VALUES (2)")
        .step(3, "three", "INSERT INTO log VALUES (3)")
}

/// Each COMMIT waits until the table `held` is empty.
const SLOW_COMMITS: &str = "CREATE TABLE log (step int); CREATE TABLE held AS SELECT 1;
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WHILE EXISTS (SELECT FROM held) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION wait()";

/// A tenant for each boundary of each step, and one for the inside of COMMIT.
fn tenants() -> Vec<String> {
    let mut tenants = vec![COMMITTING.to_owned()];
    for moment in Moment::ALL {
        let times = if moment == Moment::Locked { 1 } else { 3 };
        tenants.extend((1..=times).map(|nth| staying_at(&moment, nth)));
    }
    for failpoint in Failpoint::MIGRATION {
        let is_noted = failpoint == Failpoint::SchemaNoted; // after each step but the last
        let times = if is_noted { 2 } else { 1 };
        tenants.extend((1..=times).map(|nth| staying_at(&failpoint, nth)));
    }
    tenants
}

/// Processes that migrate the same tenants.
struct Processes<'a> {
    databases: &'a Databases,
    tenants: Vec<String>,
    living: BTreeMap<usize, Process>,
    /// The tenants of which each process has said where it stands with them.
    told: BTreeMap<usize, BTreeSet<String>>,
    /// The tenants at which each process stays.
    staying: BTreeMap<usize, BTreeSet<String>>,
    says: UnboundedSender<(usize, String)>,
    said: UnboundedReceiver<(usize, String)>,
}

impl<'a> Processes<'a> {
    fn new(databases: &'a Databases, tenants: Vec<String>) -> Self {
        let (says, said) = unbounded_channel();
        Self {
            databases,
            tenants,
            living: BTreeMap::new(),
            told: BTreeMap::new(),
            staying: BTreeMap::new(),
            says,
            said,
        }
    }

    /// Starts one more process.
    fn start(&mut self, stays: bool) {
        let number = self.told.len();
        let databases = self.databases;
        let mut process = databases.process_of_many("killed", &self.tenants, stays);
        let (mut lines, report) = (process.lines(), self.says.clone());
        tokio::spawn(async move {
            while let Some(line) = lines.next().await {
                let _ = report.send((number, line)); // the test may be over
            }
        });
        self.living.insert(number, process);
        self.told.insert(number, BTreeSet::new());
        self.staying.insert(number, BTreeSet::new());
    }

    /// Waits until those that live have come as far as they can with each tenant.
    async fn settle(&mut self) {
        while self.tenants.iter().any(|tenant| !self.is_told(tenant)) {
            let said = timeout(4 * LONG, self.said.recv()).await;
            let (number, line) = said.expect("they are silent").expect("a sender is here");
            let (tenant, what) = line.split_once(' ').expect("a tenant, then a text");
            assert!(what == "stays" || what.ends_with(" to 3"), "{line}");
            self.told
                .entry(number)
                .or_default()
                .insert(tenant.to_owned());
            if what == "stays" {
                let staying = self.staying.entry(number).or_default();
                staying.insert(tenant.to_owned());
            }
        }
    }

    fn is_told(&self, tenant: &str) -> bool {
        let mut living = self.living.keys();
        living.any(|number| self.told[number].contains(tenant))
    }

    /// Kills the process that stays at most tenants. Returns these.
    async fn kill_one(&mut self) -> BTreeSet<String> {
        let living = self.living.keys().copied();
        let most = living.max_by_key(|number| self.staying[number].len());
        let number = most.expect("one lives");
        let process = self.living.remove(&number).expect("it lives");
        process.kill().await;
        self.staying[&number].clone()
    }
}

/// Waits until a session is inside of COMMIT.
async fn until_committing(client: &Client) {
    let inside = "SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'";
    while column(client, inside).await.is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn three_processes_killed_at_each_step_boundary_and_inside_commit_run_no_step_twice() {
    let tenants = tenants();
    let names: Vec<_> = tenants.iter().map(String::as_str).collect();
    let databases = Databases::recorded(&names).await;
    let slow = databases.session(COMMITTING).await;
    slow.batch_execute(SLOW_COMMITS).await.unwrap();
    let mut processes = Processes::new(&databases, tenants.clone());
    (0..3).for_each(|_| processes.start(true));
    let mut killed_at = BTreeSet::new();
    for _ in 0..3 {
        processes.settle().await;
        timeout(4 * LONG, until_committing(&slow))
            .await
            .expect("a COMMIT");
        killed_at.append(&mut processes.kill_one().await);
    }
    // The last one's COMMIT may end now, after its process.
    slow.batch_execute("DELETE FROM held").await.unwrap();
    assert_eq!(killed_at, tenants.iter().cloned().collect(), "at each");
    processes.start(false);
    processes.settle().await;
    let router = databases.leased_router(schema());
    for tenant in &tenants {
        let client = databases.session(tenant).await;
        let log = column(&client, "SELECT step FROM log ORDER BY 1").await;
        assert_eq!(log, ["1", "2", "3"], "{tenant}");
        let history = "SELECT version || ' ' || done FROM tenantry.schema_history ORDER BY 1";
        let history = column(&client, history).await;
        assert_eq!(history, ["1 true", "2 true", "3 true"], "{tenant}");
        let record = databases.record(tenant).await;
        let state = (
            record.schema.version,
            record.schema.failure,
            record.leased_for,
        );
        assert_eq!(state, (3, None, None), "{tenant}");
        let again = router.migrate(tenant).await.unwrap();
        assert!(!again.woke && again.steps.is_empty(), "{tenant}");
    }
}
