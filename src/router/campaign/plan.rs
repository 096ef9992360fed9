//! A campaign as a value: which tenants in which order, at which pace, and when to stop.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    error::{Error, ErrorKind},
    tenant::TenantId,
};

/// The migration of all tenants to this program's schema, at a pace that you set.
///
/// The tenants whose databases are awake come first and cost no wake, then those that the process which runs the
/// campaign has used lately. Others stay as they are, and are migrated [on access](crate::OnAccess), unless
/// [`dormant`](Self::dormant) is set.
///
/// ```
/// use std::time::Duration;
/// use tenantry::fleet::Campaign;
///
/// let campaign = Campaign::new()
///     .canaries(["acme", "demo"])
///     .waves([1, 10, 100])
///     .soak(Duration::from_secs(600))
///     .wakes_per_hour(600)
///     .awake_at_once(20)
///     .stop_after(5);
/// # let _ = campaign;
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[must_use = "a campaign does nothing until it is passed to `Fleet::migrate`"]
pub struct Campaign {
    canaries: Vec<String>,
    waves: Vec<u8>,
    pub(super) soak: Duration,
    pub(super) wakes_per_hour: u32,
    pub(super) awake_at_once: usize,
    pub(super) concurrency: usize,
    pub(super) stop_after: u64,
    stop_share: Option<f64>,
    pub(super) dormant: bool,
    #[serde(default)]
    pub(super) sleep_again: bool,
    #[serde(default)]
    pub(super) contract: Option<i64>,
}

/// Ended migrations before a share of failures means something.
const ENOUGH_FOR_SHARE: u64 = 20;

/// Longest pause after a wave.
const LONGEST_SOAK: Duration = Duration::from_secs(30 * 24 * 3600);

impl Default for Campaign {
    fn default() -> Self {
        Self {
            canaries: Vec::new(),
            waves: vec![1, 10, 100],
            soak: Duration::from_secs(600),
            wakes_per_hour: 600,
            awake_at_once: 20,
            concurrency: 8,
            stop_after: 5,
            stop_share: None,
            dormant: false,
            sleep_again: false,
            contract: None,
        }
    }
}

impl Campaign {
    /// Creates a campaign with the default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the tenants of the first wave, by name. Defaults to none. They are migrated whether they sleep or not.
    pub fn canaries<T: Into<String>>(mut self, tenants: impl IntoIterator<Item = T>) -> Self {
        self.canaries = tenants.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the waves after the canaries, each as a percentage of all tenants that includes the waves before it. The
    /// last one must be 100. Defaults to 1, 10 and 100. A tenant is in the same wave in every campaign.
    pub fn waves(mut self, percentages: impl IntoIterator<Item = u8>) -> Self {
        self.waves = percentages.into_iter().collect();
        self
    }

    /// Sets the pause after each wave but the last, in which you can look at your metrics. Defaults to 10 minutes.
    /// At most 30 days.
    pub fn soak(mut self, pause: Duration) -> Self {
        self.soak = pause;
        self
    }

    /// Sets how many databases the campaign may wake in an hour. Defaults to 600. At Neon each wake costs a suspend
    /// window of compute time. The wakes are spread evenly. The callers' own wakes do not count.
    pub fn wakes_per_hour(mut self, count: u32) -> Self {
        self.wakes_per_hour = count;
        self
    }

    /// Sets how many databases that the campaign has woken may be awake at once. Defaults to 20. A database counts from
    /// its wake until its suspend window has passed after the migration. Plans of Neon limit the computes that run at
    /// the same time.
    pub fn awake_at_once(mut self, count: usize) -> Self {
        self.awake_at_once = count;
        self
    }

    /// Sets how many tenants are migrated at the same time. Defaults to 8.
    pub fn concurrency(mut self, count: usize) -> Self {
        self.concurrency = count;
        self
    }

    /// Stops the campaign after that many tenants on which a step has failed in it. Defaults to 5.
    pub fn stop_after(mut self, failures: u64) -> Self {
        self.stop_after = failures;
        self
    }

    /// Stops the campaign also when failures are more than that share of the ended migrations, from 20 of these on.
    /// Defaults to none.
    pub fn stop_at_share(mut self, share: f64) -> Self {
        self.stop_share = Some(share);
        self
    }

    /// Wakes also the tenants that this process has not used lately. Defaults to `false`: they are migrated on access.
    pub fn dormant(mut self, includes: bool) -> Self {
        self.dormant = includes;
        self
    }

    /// Suspends a database again that the campaign has woken, if it has no other session. Defaults to `false`: it
    /// sleeps once its suspend window has passed, which Neon bills. A caller whose login falls between the look and the
    /// suspension waits for another wake.
    pub fn sleep_again(mut self, suspends: bool) -> Self {
        self.sleep_again = suspends;
        self
    }

    /// Names the step of that version, which [takes away](crate::Schema::contract) what earlier releases need: the
    /// campaign applies all steps up to it. Defaults to none. It begins only if no process is alive that
    /// [requires](crate::Schema::requires) less than the version before the first such step, and stops when one turns
    /// up. The steps still reach dormant tenants only if [`dormant`](Self::dormant) is set.
    ///
    /// A process with a schema registers in the catalog every 30 seconds. One that was killed counts as alive for 5
    /// minutes. Processes without a schema are not known.
    pub fn contract(mut self, version: i64) -> Self {
        self.contract = Some(version);
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let is_ascending = self.waves.windows(2).all(|pair| pair[0] < pair[1]);
        let ends_with_all = self.waves.last() == Some(&100) && self.waves[0] > 0;
        let message = if !is_ascending || !ends_with_all {
            "the waves of a campaign must be percentages that ascend and end with 100".to_owned()
        } else if self.wakes_per_hour == 0 || self.awake_at_once == 0 || self.concurrency == 0 {
            "wakes_per_hour, awake_at_once and concurrency of a campaign must be more than 0"
                .to_owned()
        } else if self.soak > LONGEST_SOAK {
            "the soak of a campaign must be at most 30 days".to_owned()
        } else if self.stop_after == 0
            || self.stop_share.is_some_and(|it| !(0.0..=1.0).contains(&it))
        {
            "stop_after of a campaign must be more than 0, and stop_at_share between 0 and 1"
                .to_owned()
        } else if let Some(wrong) = self.canaries.iter().find(|it| TenantId::parse(it).is_err()) {
            format!("the canary {wrong:?} is no tenant id")
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Misused, message))
    }

    /// Returns the number of waves, with that of the canaries if there are any.
    pub(super) fn wave_count(&self) -> usize {
        self.waves.len() + usize::from(!self.canaries.is_empty())
    }

    /// Returns the canaries if they are the wave with that number, from 0 on.
    pub(super) fn canaries_of(&self, wave: usize) -> Option<Vec<TenantId>> {
        let is_theirs = wave == 0 && !self.canaries.is_empty();
        let parsed = self
            .canaries
            .iter()
            .filter_map(|it| TenantId::parse(it).ok());
        is_theirs.then(|| parsed.collect())
    }

    /// Returns whether `tenant` is in the wave with that number, or in one before it.
    pub(super) fn includes(&self, wave: usize, tenant: &TenantId) -> bool {
        let first = usize::from(!self.canaries.is_empty());
        let percentage = wave.checked_sub(first).and_then(|at| self.waves.get(at));
        percentage.is_some_and(|it| share_of(tenant) < u64::from(*it))
    }

    /// Returns whether so many failures stop the campaign.
    pub(super) fn is_too_much(&self, failed: u64, migrated: u64) -> bool {
        let ended = failed + migrated;
        #[allow(clippy::cast_precision_loss, reason = "numbers of tenants")]
        let share = failed as f64 / ended.max(1) as f64;
        let is_over_share = self.stop_share.is_some_and(|most| share > most);
        failed >= self.stop_after || (is_over_share && ended >= ENOUGH_FOR_SHARE)
    }
}

/// Returns a number from 0 to 99 that depends on the id alone (FNV-1a).
fn share_of(tenant: &TenantId) -> u64 {
    let bytes = tenant.as_str().bytes();
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 16) % 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_grow_by_a_stable_hash() {
        let campaign = Campaign::new().canaries(["t1"]).waves([1, 10, 100]);
        let tenants: Vec<_> = (0..10_000)
            .map(|n| TenantId::parse(&format!("t{n}")).unwrap())
            .collect();
        let of = |wave| {
            let within = tenants.iter().filter(|it| campaign.includes(wave, it));
            within.count()
        };
        let counts = [0, 1, 2, 3].map(of);
        assert_eq!((counts[0], counts[3]), (0, 10_000));
        assert!((50..200).contains(&counts[1]), "{counts:?}");
        assert!((800..1200).contains(&counts[2]), "{counts:?}");
        assert_eq!(
            share_of(&TenantId::parse("acme").unwrap()),
            share_of(&TenantId::parse("acme").unwrap())
        );
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for wrong in [
            Campaign::new().waves([10, 50]),
            Campaign::new().waves([10, 10, 100]),
            Campaign::new().waves([0, 100]),
            Campaign::new().waves([]),
            Campaign::new().wakes_per_hour(0),
            Campaign::new().awake_at_once(0),
            Campaign::new().concurrency(0),
            Campaign::new().stop_after(0),
            Campaign::new().soak(Duration::MAX),
            Campaign::new().stop_at_share(1.5),
            Campaign::new().canaries([""]),
        ] {
            assert_eq!(
                wrong.check().unwrap_err().kind(),
                ErrorKind::Misused,
                "{wrong:?}"
            );
        }
        Campaign::new().check().unwrap();
    }

    #[test]
    fn it_stops_at_a_number_or_at_a_share() {
        let number = Campaign::new().stop_after(3);
        assert!(!number.is_too_much(2, 0) && number.is_too_much(3, 1000));
        let share = Campaign::new().stop_after(1000).stop_at_share(0.02);
        assert!(!share.is_too_much(1, 10), "too few to judge");
        assert!(!share.is_too_much(2, 98) && share.is_too_much(3, 97));
    }
}
