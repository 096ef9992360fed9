//! Tests of the behaviour that every [`Catalog`] must have, for its implementors (feature `testing`).
//!
//! ```no_run
//! use tenantry::catalog::{Memory, suite};
//!
//! # #[tokio::main] async fn main() {
//! suite::run(true, || async { Memory::new() }).await; // as a test of your own
//! # }
//! ```

mod ids;
mod leases;
mod notes;
mod processes;
mod reading;
mod schema;
mod written;

use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::{Instant, sleep};

use super::record::{AfterWrite, Lease, Leased, Placement, Record, State};
use super::{Catalog, InvalidRecord};
use crate::model::{
    endpoint::Endpoint,
    error::BoxError,
    tenant::{Namespace, TenantId},
};

/// A time longer than any wait of a case.
const LONG: Duration = Duration::from_secs(30);
/// Time of a lease that does not expire during a case.
const LEASE: Duration = Duration::from_secs(3600);
/// Time of a lease that expires during a case.
const SHORT: Duration = Duration::from_millis(300);

/// The result of a case.
type Outcome<T = ()> = Result<T, BoxError>;

/// Tests that a catalog behaves as [`Catalog`] requires. Takes some seconds of real time.
///
/// `make` is called for each case, and returns an empty catalog that is not [bound](super::Catalog::bind) to a
/// namespace yet. `with_passwords` says whether the catalog is to keep passwords.
///
/// # Panics
/// If the catalog does not behave as required. The text names the expected behaviour.
///
/// # Cancel safety
/// Dropping the future leaves the catalog of the running case as it is.
pub async fn run<R, Fut>(with_passwords: bool, mut make: impl FnMut() -> Fut)
where
    R: Catalog,
    Fut: Future<Output = R>,
{
    let mut stage = async || Stage::new(make().await, with_passwords);
    Box::pin(of_leases(&mut stage)).await; // boxed, so that the futures of its callers stay small
    Box::pin(of_records(&mut stage)).await;
    Box::pin(of_schemas(&mut stage)).await;
}

async fn of_leases<R: Catalog>(stage: &mut impl AsyncFnMut() -> Stage<R>) {
    let it = stage().await;
    named("serves one namespace", async { ids::one_namespace(&it) }).await;
    let it = stage().await;
    named("compares ids byte for byte", ids::byte_for_byte(&it)).await;
    let it = stage().await;
    named("grants a lease to one owner", leases::one_owner(&it)).await;
    let it = stage().await;
    named("renews a lease and keeps its token", leases::renewal(&it)).await;
    let it = stage().await;
    named("lets a lease expire", leases::expiry(&it)).await;
    let it = stage().await;
    named("lets an owner release a lease", leases::release(&it)).await;
    let it = stage().await;
    named(
        "grants a lease to only one of many callers",
        leases::race(&it),
    )
    .await;
    let it = stage().await;
    named(
        "accepts writes only under the current lease",
        leases::fencing(&it),
    )
    .await;
}

async fn of_records<R: Catalog>(stage: &mut impl AsyncFnMut() -> Stage<R>) {
    let it = stage().await;
    named("keeps what is written", written::whole(&it)).await;
    let it = stage().await;
    named("keeps passwords", written::passwords(&it)).await;
    let it = stage().await;
    named(
        "accepts only allowed changes of state",
        written::transitions(&it),
    )
    .await;
    let it = stage().await;
    named(
        "raises the generation exactly when the endpoint or the project changes",
        written::generation(&it),
    )
    .await;
    let it = stage().await;
    named(
        "gives each database to one tenant",
        written::one_database(&it),
    )
    .await;
    let it = stage().await;
    named("counts down the time of doubt", written::doubt(&it)).await;
    let it = stage().await;
    named("finds many at once", reading::find_many(&it)).await;
    let it = stage().await;
    named("lists in pages", reading::list(&it)).await;
    let it = stage().await;
    named("reports changes in pages", reading::changes(&it)).await;
    let it = stage().await;
    named(
        "reports every change while others write",
        reading::changes_beside_writers(&it),
    )
    .await;
    let it = stage().await;
    named("looks up ready tenants only", reading::served(&it)).await;
}

async fn of_schemas<R: Catalog>(stage: &mut impl AsyncFnMut() -> Stage<R>) {
    let it = stage().await;
    named(
        "counts down the time to the next try of a schema's step",
        schema::retry(&it),
    )
    .await;
    let it = stage().await;
    named(
        "keeps the age of the failure of a schema's step",
        schema::age(&it),
    )
    .await;
    let it = stage().await;
    named("counts tenants", schema::tally(&it)).await;
    let it = stage().await;
    named("keeps notes", notes::notes(&it)).await;
    let it = stage().await;
    named("keeps processes", processes::processes(&it)).await;
}

async fn named(name: &str, case: impl Future<Output = Outcome>) {
    let done = tokio::time::timeout(2 * LONG, case).await;
    if let Err(why) = done.unwrap_or_else(|_| Err("it takes too long".into())) {
        panic!("a catalog {name}: {why}");
    }
}

/// The catalog under test in one case.
struct Stage<R> {
    records: R,
    with_passwords: bool,
}

impl<R: Catalog> Stage<R> {
    fn new(records: R, with_passwords: bool) -> Self {
        let namespace = Namespace::parse("suite").expect("a namespace");
        if let Err(why) = records.bind(&namespace, with_passwords) {
            panic!("a new catalog must accept any namespace: {why}");
        }
        Self {
            records,
            with_passwords,
        }
    }

    /// Returns the lease and the record; the lease must be granted.
    async fn granted(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Outcome<(Lease, Record)> {
        match self.records.lease(tenant, owner, time).await? {
            Leased::Granted(lease, record) => {
                equal("the tenant of the lease", &lease.tenant, tenant)?;
                equal("the owner of the lease", &lease.owner.as_str(), &owner)?;
                equal("the tenant of the record", &record.tenant, tenant)?;
                Ok((lease, *record))
            }
            Leased::Held(left) => {
                Err(format!("the lease was not granted to {owner}: held for {left:?}").into())
            }
        }
    }

    /// Returns the remaining time of the lease, which another owner must hold.
    async fn held(&self, tenant: &TenantId, owner: &str) -> Outcome<Duration> {
        match self.records.lease(tenant, owner, LEASE).await? {
            Leased::Granted(..) => {
                Err(format!("{owner} was granted a lease that another owner has").into())
            }
            Leased::Held(left) => Ok(left),
        }
    }

    async fn found(&self, tenant: &TenantId) -> Outcome<Record> {
        let found = self.records.find(tenant).await?;
        found.ok_or_else(|| format!("there is no record of {tenant}").into())
    }

    async fn wrote(&self, lease: &Lease, record: &Record, then: AfterWrite) -> Outcome {
        let wrote = self.records.write(lease, record, then).await?;
        holds(wrote, "a write under a valid lease was not accepted")
    }

    /// Makes a write that must fail with [`InvalidRecord`].
    async fn refused(&self, lease: &Lease, record: &Record, why: &str) -> Outcome {
        match self.records.write(lease, record, AfterWrite::Keep).await {
            Ok(wrote) => Err(format!("{why}: no error, but {wrote}").into()),
            Err(err) if err.is::<InvalidRecord>() => Ok(()),
            Err(err) => Err(format!("{why}: the error is not an InvalidRecord: {err}").into()),
        }
    }

    /// Returns the endpoint of a database in `project`.
    fn endpoint(&self, project: &str) -> Endpoint {
        let password = if self.with_passwords { "hunter2" } else { "" };
        let (direct, pooled) = (
            format!("{project}.example.org"),
            format!("{project}-pooler.example.org"),
        );
        Endpoint::neon(direct, pooled, "app", "owner", password)
    }

    /// Brings the tenant's record to `state`, with a database from `Preparing` on. The lease is kept.
    async fn brought(
        &self,
        tenant: &TenantId,
        state: State,
        project: &str,
    ) -> Outcome<(Lease, Record)> {
        let (lease, mut record) = self.granted(tenant, "suite", LEASE).await?;
        for &step in path(state) {
            record.state = step;
            if !matches!(step, State::Claimed | State::Creating) {
                record.placement = Some(Placement::new(project));
                record.endpoint = Some(self.endpoint(project));
            }
            self.wrote(&lease, &record, AfterWrite::Keep).await?;
        }
        Ok((lease, record))
    }

    /// Brings the tenant's record to `Ready`, and releases the lease.
    async fn ready(&self, tenant: &TenantId, project: &str) -> Outcome<Record> {
        let (lease, _) = self.brought(tenant, State::Ready, project).await?;
        self.records.release(&lease).await?;
        self.found(tenant).await
    }
}

/// Returns the states through which a new record reaches `state`.
fn path(state: State) -> &'static [State] {
    match state {
        State::Claimed => &[State::Claimed],
        State::Creating => &[State::Creating],
        State::Preparing => &[State::Preparing],
        State::Ready => &[State::Preparing, State::Ready],
        State::Held => &[State::Preparing, State::Ready, State::Held],
        State::Deleting => &[State::Preparing, State::Deleting],
        State::Deleted => &[State::Preparing, State::Deleting, State::Deleted],
    }
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).expect("a tenant's id")
}

fn holds(condition: bool, otherwise: &str) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(otherwise.into())
    }
}

fn equal<T: Debug + PartialEq>(what: &str, is: &T, should: &T) -> Outcome {
    if is == should {
        return Ok(());
    }
    Err(format!("{what} is {is:?} and should be {should:?}").into())
}

/// Polls `condition` until it holds, for at most [`LONG`].
async fn until<Fut: Future<Output = Outcome<bool>>>(
    what: &str,
    mut condition: impl FnMut() -> Fut,
) -> Outcome {
    let start = Instant::now();
    while !condition().await? {
        holds(start.elapsed() < LONG, what)?;
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
