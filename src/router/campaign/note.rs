//! The state of a campaign, as the catalog keeps it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::plan::Campaign;
use crate::telemetry::status::CampaignCount;

/// Most tenants whose failure a campaign names.
const MOST_NAMED: usize = 100;

/// Longest text of a failure, in characters. The catalog keeps all of them in one note.
const LONGEST_ERROR: usize = 400;

/// The state of a campaign.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CampaignState {
    /// It goes on.
    Running,
    /// It was paused. Migrations that had begun have ended or are ending.
    Paused,
    /// Too many tenants have failed, or a process is alive that must not be. [`reason`](CampaignStatus::reason) has the
    /// cause.
    Stopped,
    /// Each tenant that it was to migrate is migrated, has failed, or could not be reached in several tries.
    Done,
    /// It was cancelled.
    Cancelled,
}

/// A tenant on which a step has failed in a campaign.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FailedTenant {
    /// The tenant.
    pub tenant: String,
    /// The error's text, at most 400 characters of it.
    pub error: String,
}

/// The progress of a campaign. The process that runs it writes it to the catalog every few seconds: after a kill, the
/// counts may lack the last of them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CampaignStatus {
    /// The version to which tenants are migrated.
    pub target: i64,
    /// The state.
    pub state: CampaignState,
    /// The settings.
    pub campaign: Campaign,
    /// The number of the present wave, from 1 on; the canaries are the first one.
    pub wave: usize,
    /// The number of waves.
    pub waves: usize,
    /// Time left of the pause after the wave, if it is in one.
    pub soaks_for: Option<Duration>,
    /// Tenants that were migrated in it.
    pub migrated: u64,
    /// Wakes by the campaign, with those that may have failed.
    pub woken: u64,
    /// Databases that are awake by its wakes, as far as is known: each counts until its suspend window has passed.
    #[serde(default)]
    pub awake: usize,
    /// Tenants on which a step has failed in it.
    pub failed: u64,
    /// Tenants that could not be reached in this wave yet.
    pub unreached: u64,
    /// The first 100 of those in `failed`.
    pub failures: Vec<FailedTenant>,
    /// The cause, if it has stopped.
    #[serde(default)]
    pub reason: Option<String>,
    /// Identifies this campaign, among others to the same version.
    #[serde(default)]
    pub(super) id: String,
    /// The router that runs it; empty if none does.
    pub(super) owner: String,
}

impl CampaignStatus {
    pub(crate) fn new(campaign: Campaign, target: i64) -> Self {
        Self {
            target,
            state: CampaignState::Running,
            wave: 1,
            waves: campaign.wave_count(),
            campaign,
            soaks_for: None,
            migrated: 0,
            woken: 0,
            awake: 0,
            failed: 0,
            unreached: 0,
            failures: Vec::new(),
            reason: None,
            id: uuid::Uuid::new_v4().to_string(),
            owner: String::new(),
        }
    }

    /// Returns whether it runs or may be resumed.
    pub fn is_open(&self) -> bool {
        matches!(self.state, CampaignState::Running | CampaignState::Paused)
    }

    /// Returns the counts, for the metrics.
    pub(super) fn count(&self) -> CampaignCount {
        CampaignCount {
            wave: self.wave as u64,
            waves: self.waves as u64,
            migrated: self.migrated,
            failed: self.failed,
            unreached: self.unreached,
            woken: self.woken,
        }
    }

    pub(super) fn note_failed(&mut self, tenant: &str, error: &str) {
        self.failed += 1;
        if self.failures.len() < MOST_NAMED {
            let tenant = tenant.to_owned();
            let error = error.chars().take(LONGEST_ERROR).collect();
            self.failures.push(FailedTenant { tenant, error });
        }
    }
}
