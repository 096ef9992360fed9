//! Campaigns: the migration of a whole fleet, by one process at a time. The catalog has its state, so another process
//! goes on if that one ends.

mod estimate;
mod note;
mod pace;
mod pass;
mod plan;
mod processes;
mod sleep;
mod sweep;

use std::{
    sync::{Arc, Mutex, Weak, atomic::AtomicBool},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use self::{pace::Pace, sweep::Sweep};
use super::{Inner, migrate::no_schema};
use crate::{
    catalog::{SchemaTally, State, cached::CachedCatalog},
    model::error::{Error, ErrorKind},
    provision::{ProvisionEngine, source::Source},
    schema::CheckedSchema,
    sync::{lock, retry::chance, supervise::supervise},
    telemetry::status::{Status, TenantsBehind},
};

pub use estimate::Estimate;
pub use note::{CampaignState, CampaignStatus, FailedTenant};
pub use plan::Campaign;

/// The name of the note in the catalog.
const NOTE: &str = "campaign";
/// Most tries to change the note while others change it, too.
const MOST_TRIES: u32 = 20;

/// The campaigns of one router.
pub(crate) struct Campaigns {
    /// Identifies the router among those that share the catalog.
    id: String,
    /// Notified when this process has begun or resumed a campaign.
    begun: Notify,
    pace: Pace,
    /// `true` once the process has registered.
    is_registered: AtomicBool,
    /// The campaign that this process runs. Locked to read or replace it.
    running: Mutex<Option<Arc<Mutex<CampaignStatus>>>>,
    /// The tenants that lack steps, when they were counted last. Locked to read or replace it.
    behind: Mutex<TenantsBehind>,
}

impl Campaigns {
    pub(super) fn new() -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            begun: Notify::new(),
            pace: Pace::default(),
            is_registered: AtomicBool::new(false),
            running: Mutex::default(),
            behind: Mutex::default(),
        }
    }

    /// Writes the progress of this process's campaign into `status`, and the tenants that lack steps.
    pub(super) fn fill(&self, status: &mut Status) {
        status.behind = *lock(&self.behind);
        if let Some(running) = &*lock(&self.running) {
            status.campaign = lock(running).count();
        }
    }

    /// Notes the tenants that lack steps of `schema`.
    pub(crate) fn note_versions(&self, tallies: &[SchemaTally], schema: &CheckedSchema) {
        let mut behind = TenantsBehind::default();
        for tally in tallies.iter().filter(|it| it.state == State::Ready) {
            let lacking = match tally.version {
                0 => usize::MAX, // not known, or none
                version => schema.steps().filter(|step| step.0 > version).count(),
            };
            *match lacking {
                0 => &mut behind.none,
                1 => &mut behind.one,
                2..=5 => &mut behind.two_to_five,
                _ => &mut behind.more,
            } += tally.tenants;
            behind.failed += if tally.failed { tally.tenants } else { 0 };
        }
        *lock(&self.behind) = behind;
    }
}

/// Starts the tasks that run campaigns and register the process, if the router has a schema and a catalog.
pub(super) fn start(inner: &Arc<Inner>) {
    let keeps_notes = inner
        .shared
        .source
        .catalog()
        .map(CachedCatalog::keeps_notes);
    if keeps_notes == Some(true) && inner.migrator.is_some() {
        let runtime = inner.shared.runtime.clone();
        let (weak, campaigns) = (Arc::downgrade(inner), Arc::clone(&inner.campaigns));
        let (life, poll) = (
            Arc::clone(&inner.shared.life),
            inner.shared.config.catalog_poll,
        );
        runtime.spawn(async move {
            let work = supervise("campaign", || run(weak.clone(), &campaigns, poll));
            let heartbeat = supervise("registration", || processes::keep_registered(weak.clone()));
            tokio::select! {
                biased;
                () = life.terminated() => {}
                ((), ()) = async { tokio::join!(work, heartbeat) } => {}
            }
        });
    }
}

/// Looks for a campaign again and again, and takes it over if no other process runs it. Returns when the router is
/// gone.
async fn run(router: Weak<Inner>, campaigns: &Campaigns, poll: Option<Duration>) {
    loop {
        let found = {
            let Some(inner) = router.upgrade() else {
                return;
            };
            inner.try_take_over().await
        };
        match found {
            Ok(Some(sweep)) => {
                sweep.run(&router, campaigns).await;
                continue; // it may have been resumed by now
            }
            Ok(None) => {}
            Err(err) => tracing::debug!(%err, "cannot look for a campaign"),
        }
        let begun = campaigns.begun.notified();
        match poll {
            Some(poll) => {
                let more = poll / 5 * u32::from(chance()) / u32::from(u8::MAX);
                let _ = timeout(poll / 10 * 9 + more, begun).await;
            }
            None => begun.await,
        }
    }
}

impl Inner {
    /// Returns the engine and the schema of campaigns.
    fn engine_and_schema(&self) -> Result<(&ProvisionEngine, &Arc<CheckedSchema>), Error> {
        match (&self.shared.source, &self.migrator) {
            (Source::Provisioning(engine), Some(migrator)) => Ok((engine, migrator.schema())),
            _ => Err(no_schema()),
        }
    }

    /// Returns the schema with the steps that `campaign` applies.
    fn schema_for(&self, campaign: &Campaign) -> Result<Arc<CheckedSchema>, Error> {
        let (_, schema) = self.engine_and_schema()?;
        let Some(version) = campaign.contract else {
            return Ok(Arc::clone(schema));
        };
        schema.up_to_contract(version).ok_or_else(|| {
            let message = format!(
                "the campaign names step {version}, but the router's schema marks no step of that version with `contract`"
            );
            Error::new(ErrorKind::Misused, message)
        })
    }

    /// Returns the schema with the steps that `campaign` applies, after its checks.
    pub(crate) fn schema_for_rehearsal(
        &self,
        campaign: &Campaign,
    ) -> Result<Arc<CheckedSchema>, Error> {
        campaign.check()?;
        self.schema_for(campaign)
    }

    /// Returns the campaign in the catalog, and the version and the age of its note.
    async fn read_campaign(&self) -> Result<Option<(CampaignStatus, u64, Duration)>, Error> {
        let (engine, _) = self.engine_and_schema()?;
        let Some(note) = engine.catalog.note(NOTE).await? else {
            return Ok(None);
        };
        let status = serde_json::from_str(&note.text).map_err(|err| {
            let message = "the catalog's note of the campaign cannot be read; a newer release may have written it";
            Error::new(ErrorKind::Catalog, message).with_source(err)
        })?;
        Ok(Some((status, note.version, note.age)))
    }

    async fn write_campaign(&self, status: &CampaignStatus, replaces: u64) -> Result<bool, Error> {
        let (engine, _) = self.engine_and_schema()?;
        let text = serde_json::to_string(status).map_err(|err| {
            Error::new(ErrorKind::Internal, "a campaign cannot be written").with_source(err)
        })?;
        engine.catalog.write_note(NOTE, &text, replaces).await
    }

    /// Returns the campaign that was begun last.
    pub(crate) async fn campaign(&self) -> Result<Option<CampaignStatus>, Error> {
        Ok(self.read_campaign().await?.map(|(status, ..)| status))
    }

    /// Begins `campaign`. It replaces one that has ended, or that had a lower target.
    pub(crate) async fn begin_campaign(&self, campaign: Campaign) -> Result<CampaignStatus, Error> {
        campaign.check()?;
        let target = self.schema_for(&campaign)?.latest();
        self.check_canaries(&campaign).await?;
        self.check_processes(&campaign).await?;
        let status = CampaignStatus::new(campaign, target);
        for _ in 0..MOST_TRIES {
            let replaces = match self.read_campaign().await? {
                Some((earlier, ..)) if earlier.is_open() && earlier.target >= target => {
                    return Err(already_open(&earlier));
                }
                Some((_, version, _)) => version,
                None => 0,
            };
            if self.write_campaign(&status, replaces).await? {
                self.campaigns.begun.notify_one();
                return Ok(status);
            }
        }
        Err(changed_by_others())
    }

    /// Returns an error if the catalog does not know a canary: its wave would pass without it.
    async fn check_canaries(&self, campaign: &Campaign) -> Result<(), Error> {
        let (engine, _) = self.engine_and_schema()?;
        let Some(canaries) = campaign.canaries_of(0) else {
            return Ok(());
        };
        let records = engine.catalog.read_records(&canaries).await?;
        for (canary, record) in canaries.iter().zip(records) {
            if record?.is_none_or(|it| it.state != State::Ready) {
                let message =
                    "a canary of the campaign has no database that is served; name another one";
                return Err(Error::new(ErrorKind::UnknownTenant, message).with_tenant(canary));
            }
        }
        Ok(())
    }

    /// Brings the campaign from one of the states `from` into `to`.
    pub(crate) async fn change_campaign(
        &self,
        from: &[CampaignState],
        to: CampaignState,
    ) -> Result<CampaignStatus, Error> {
        for _ in 0..MOST_TRIES {
            let Some((mut status, version, _)) = self.read_campaign().await? else {
                return Err(no_campaign());
            };
            if status.state == to {
                return Ok(status);
            }
            if !from.contains(&status.state) {
                let message = format!(
                    "the campaign is {:?}, so it cannot become {to:?}",
                    status.state
                );
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            if status.state == CampaignState::Stopped {
                (status.failed, status.failures) = (0, Vec::new());
                status.reason = None;
            }
            status.state = to;
            status.owner.clear();
            if self.write_campaign(&status, version).await? {
                self.campaigns.begun.notify_one();
                return Ok(status);
            }
            sleep(Duration::from_millis(u64::from(chance()) / 8)).await;
        }
        Err(changed_by_others())
    }

    /// Takes over the campaign in the catalog, if it is for this program and no other process runs it.
    async fn try_take_over(&self) -> Result<Option<Sweep>, Error> {
        let (engine, _) = self.engine_and_schema()?;
        let Some((mut status, version, age)) = self.read_campaign().await? else {
            return Ok(None);
        };
        let schema = self.schema_for(&status.campaign).ok();
        let Some(schema) = schema.filter(|it| it.latest() == status.target) else {
            return Ok(None); // for another release
        };
        let lease_time = engine.settings.lease_time();
        let (id, owner) = (&self.campaigns.id, &status.owner);
        let is_free = owner.is_empty() || owner == id || age > lease_time;
        if status.state != CampaignState::Running || !is_free {
            return Ok(None);
        }
        if let Err(err) = self.check_processes(&status.campaign).await {
            if err.kind() != ErrorKind::Conflict {
                return Err(err);
            }
            (status.state, status.reason) = (CampaignState::Stopped, Some(err.to_string()));
            self.write_campaign(&status, version).await?;
            return Ok(None);
        }
        if status.woken > 0 || !owner.is_empty() {
            // The earlier process may have woken one just now.
            self.campaigns.pace.wait_a_step(&status.campaign);
        }
        self.campaigns.pace.expect_awake(status.awake);
        status.owner.clone_from(id);
        status.unreached = 0;
        let is_taken = self.write_campaign(&status, version).await?;
        let began = Instant::now();
        Ok(is_taken.then(|| Sweep::new(status, schema, lease_time / 4, began)))
    }
}

/// Returns the error for a catalog without a campaign.
pub(crate) fn no_campaign() -> Error {
    let message = "there is no campaign; begin one with `Fleet::migrate`";
    Error::new(ErrorKind::NotFound, message)
}

fn already_open(earlier: &CampaignStatus) -> Error {
    let message = format!(
        "a campaign to version {} is open; wait for its end, or cancel it with `Fleet::cancel_campaign`",
        earlier.target
    );
    Error::new(ErrorKind::Conflict, message)
}

fn changed_by_others() -> Error {
    let message = "other processes change the campaign all the time; call again";
    Error::new(ErrorKind::Locked, message)
}
