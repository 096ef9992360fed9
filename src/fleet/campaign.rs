//! An operator's calls about campaigns. They read and write the catalog; the work is done by one of the processes that
//! share it.

use std::time::Duration;

use tokio::time::sleep;

use super::Fleet;
use crate::{
    model::error::Error,
    router::campaign::{Campaign, CampaignState, CampaignStatus, Estimate, no_campaign},
};

/// Interval at which `wait_for_campaign` reads the campaign's progress.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Fleet {
    /// Begins to migrate the fleet to this program's schema, and returns at once. This process does the work, or if it
    /// ends, another one that shares the catalog and has the same [latest](crate::Schema::latest) version. There is one
    /// campaign at a time.
    ///
    /// It replaces a campaign to a lower version. A process looks for a campaign to take over at each
    /// [`catalog_poll`](crate::RouterBuilder::catalog_poll), and takes it over once nothing was heard from its process
    /// for [`lease_time`](crate::Provisioner::lease_time).
    ///
    /// ```no_run
    /// use tenantry::fleet::Campaign;
    ///
    /// # async fn f(fleet: tenantry::Fleet) -> Result<(), tenantry::Error> {
    /// fleet.migrate(Campaign::new().canaries(["demo"]).wakes_per_hour(600)).await?;
    /// let ended = fleet
    ///     .wait_for_campaign(|now| println!("wave {} of {}: {} migrated", now.wave, now.waves, now.migrated))
    ///     .await?;
    /// println!("{:?}, {} failed", ended.state, ended.failed);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - `ErrorKind::Misused` if the router has no schema, or for settings that cannot work.
    /// - `ErrorKind::UnknownTenant` for a canary without a database.
    /// - `ErrorKind::Conflict` if a campaign to this version or a higher one is open, or if a process is alive that
    ///   does not require the version before the step that the campaign [names](Campaign::contract).
    /// - Errors of the catalog, and `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the campaign begun or not.
    pub async fn migrate(&self, campaign: Campaign) -> Result<CampaignStatus, Error> {
        self.check_running()?;
        self.inner.begin_campaign(campaign).await
    }

    /// Counts the work of `campaign` before it is begun: the tenants by version, the wakes, their price, and the time.
    /// It reads the whole catalog, 500 records with each call, and wakes no database.
    ///
    /// ```no_run
    /// use tenantry::fleet::Campaign;
    ///
    /// # async fn f(fleet: tenantry::Fleet) -> Result<(), tenantry::Error> {
    /// let estimate = fleet.estimate(&Campaign::new().dormant(true)).await?;
    /// println!("{} tenants, {} wakes, ${:.2}, at least {:?}",
    ///     estimate.due, estimate.wakes, estimate.cost(0.106), estimate.takes);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `ErrorKind::Misused` if the router has no schema, or for settings that cannot work; errors of the catalog, and
    /// `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn estimate(&self, campaign: &Campaign) -> Result<Estimate, Error> {
        self.check_running()?;
        self.inner.estimate_campaign(campaign).await
    }

    /// Returns the campaign that was begun last, or `None` if there was none.
    ///
    /// # Errors
    /// `ErrorKind::Misused` if the router has no schema; errors of the catalog, and `ErrorKind::Closed`.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn campaign(&self) -> Result<Option<CampaignStatus>, Error> {
        self.check_running()?;
        self.inner.campaign().await
    }

    /// Waits until the campaign has ended or is paused. Calls `on_progress` with its progress every second.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if there is no campaign, and those of [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the campaign.
    pub async fn wait_for_campaign(
        &self,
        mut on_progress: impl FnMut(&CampaignStatus),
    ) -> Result<CampaignStatus, Error> {
        loop {
            let status = self.campaign().await?.ok_or_else(no_campaign)?;
            on_progress(&status);
            if status.state != CampaignState::Running {
                return Ok(status);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Pauses the campaign. Migrations that have begun go on to their end; no other begins after a few seconds
    /// (a quarter of [`lease_time`](crate::Provisioner::lease_time)), at once if this process runs it.
    ///
    /// # Errors
    /// `ErrorKind::NotFound` if there is no campaign, `ErrorKind::Conflict` if it has ended, and those of
    /// [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    /// Dropping the future may leave the state changed or not.
    pub async fn pause_campaign(&self) -> Result<CampaignStatus, Error> {
        self.change(&[CampaignState::Running], CampaignState::Paused)
            .await
    }

    /// Resumes a campaign that was paused, or that has stopped because of failures, which are then counted anew.
    /// Tenants that have failed are left out until they are [due](crate::catalog::SchemaFailure::retry).
    ///
    /// # Errors
    /// Those of [`pause_campaign`](Self::pause_campaign).
    ///
    /// # Cancel safety
    /// Dropping the future may leave the state changed or not.
    pub async fn resume_campaign(&self) -> Result<CampaignStatus, Error> {
        let from = [CampaignState::Paused, CampaignState::Stopped];
        self.change(&from, CampaignState::Running).await
    }

    /// Ends the campaign. Tenants that were not migrated are migrated on access, or by the next campaign.
    ///
    /// # Errors
    /// Those of [`pause_campaign`](Self::pause_campaign).
    ///
    /// # Cancel safety
    /// Dropping the future may leave the state changed or not.
    pub async fn cancel_campaign(&self) -> Result<CampaignStatus, Error> {
        let open = [
            CampaignState::Running,
            CampaignState::Paused,
            CampaignState::Stopped,
        ];
        self.change(&open, CampaignState::Cancelled).await
    }

    pub(super) fn check_running(&self) -> Result<(), Error> {
        if self.inner.shared.life.is_stopping() {
            Err(Error::closed())
        } else {
            Ok(())
        }
    }

    async fn change(
        &self,
        from: &[CampaignState],
        to: CampaignState,
    ) -> Result<CampaignStatus, Error> {
        self.check_running()?;
        self.inner.change_campaign(from, to).await
    }
}
