//! What a project has used, from real counters, and what it may use.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::emulator::reason::Reason;

/// What a project has used: what Neon's API shows, and what quotas are about.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Seconds in which a compute was awake.
    pub active_time_seconds: u64,
    /// The same, times the compute units it had at least.
    pub compute_time_seconds: u64,
    /// Bytes written ahead (WAL), over all branches.
    pub written_data_bytes: u64,
    /// Bytes sent to clients.
    pub data_transfer_bytes: u64,
}

impl Usage {
    /// Both together, as far as numbers go.
    pub(in crate::emulator) fn plus(self, other: Self) -> Self {
        Self {
            active_time_seconds: self
                .active_time_seconds
                .saturating_add(other.active_time_seconds),
            compute_time_seconds: self
                .compute_time_seconds
                .saturating_add(other.compute_time_seconds),
            written_data_bytes: self
                .written_data_bytes
                .saturating_add(other.written_data_bytes),
            data_transfer_bytes: self
                .data_transfer_bytes
                .saturating_add(other.data_transfer_bytes),
        }
    }
}

/// What a project may use, as the API has it. Zero is no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(in crate::emulator) struct Quota {
    #[serde(skip_serializing_if = "Option::is_none")]
    active_time_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_time_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_data_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_transfer_bytes: Option<u64>,
    // Stored and shown only: Neon's description says that a compute starts all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    logical_size_bytes: Option<u64>,
}

impl Quota {
    /// Which of the limits a project has reached that has used so much.
    fn exceeded_by(&self, used: Usage) -> Option<Reason> {
        let limits = [
            (
                self.active_time_seconds,
                used.active_time_seconds,
                Reason::ActiveTimeQuota,
            ),
            (
                self.compute_time_seconds,
                used.compute_time_seconds,
                Reason::ComputeTimeQuota,
            ),
            (
                self.written_data_bytes,
                used.written_data_bytes,
                Reason::WrittenDataQuota,
            ),
            (
                self.data_transfer_bytes,
                used.data_transfer_bytes,
                Reason::DataTransferQuota,
            ),
        ];
        let over = |&(limit, used, _): &(Option<u64>, u64, _)| {
            limit.is_some_and(|limit| limit > 0 && used >= limit)
        };
        limits.into_iter().find(over).map(|(_, _, reason)| reason)
    }
}

/// One compute's counters.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Meter {
    transferred: AtomicU64,
    // Guards the rest; held for a look or a change.
    read: Mutex<Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    active: Duration,
    /// Unit-seconds.
    computed: f64,
    /// Since when it is awake, and with how many units.
    awake: Option<(Instant, f64)>,
    /// Positions in the write-ahead log: the first, and the last that was seen.
    wal: Option<(u64, u64)>,
    stored: u64,
}

impl Reading {
    fn settle(&mut self) {
        if let Some((since, units)) = &mut self.awake {
            let now = Instant::now();
            let more = now - *since;
            *since = now;
            self.active += more;
            self.computed += more.as_secs_f64() * *units;
        }
    }
}

impl Meter {
    pub(in crate::emulator) fn woken(&self, units: f64) {
        let mut read = self.read();
        read.settle();
        read.awake = Some((Instant::now(), units));
    }

    pub(in crate::emulator) fn suspended(&self) {
        let mut read = self.read();
        read.settle();
        read.awake = None;
    }

    pub(in crate::emulator) fn transferred(&self, bytes: usize) {
        self.transferred.fetch_add(bytes as u64, Relaxed);
    }

    /// Notes a position in the write-ahead log; the first one is where counting begins.
    pub(in crate::emulator) fn wal_at(&self, position: u64) {
        let mut read = self.read();
        let (first, _) = read.wal.unwrap_or((position, position));
        read.wal = Some((first, position));
    }

    /// Notes the size of all databases.
    pub(in crate::emulator) fn stores(&self, bytes: u64) {
        self.read().stored = bytes;
    }

    /// The size of all databases when it was last looked at, in bytes.
    pub(in crate::emulator) fn stored(&self) -> u64 {
        self.read().stored
    }

    pub(in crate::emulator) fn used(&self) -> Usage {
        let mut read = self.read();
        read.settle();
        Usage {
            active_time_seconds: read.active.as_secs(),
            compute_time_seconds: Duration::try_from_secs_f64(read.computed)
                .map_or(0, |time| time.as_secs()),
            written_data_bytes: read
                .wal
                .map_or(0, |(first, last)| last.saturating_sub(first)),
            data_transfer_bytes: self.transferred.load(Relaxed),
        }
    }

    fn read(&self) -> MutexGuard<'_, Reading> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A project's account: its quota, and what all its computes used.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Ledger {
    // Guards everything; held for a look or a change.
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    quota: Quota,
    /// Used on command.
    more: Usage,
    /// Also those of branches that are gone: what they used stays used.
    meters: Vec<Arc<Meter>>,
}

impl Ledger {
    pub(in crate::emulator) fn new(quota: Quota) -> Arc<Self> {
        let ledger = Self::default();
        ledger.account().quota = quota;
        Arc::new(ledger)
    }

    /// A meter for one more compute.
    pub(in crate::emulator) fn meter(&self) -> Arc<Meter> {
        let meter = Arc::<Meter>::default();
        self.account().meters.push(Arc::clone(&meter));
        meter
    }

    pub(in crate::emulator) fn quota(&self) -> Quota {
        self.account().quota
    }

    pub(in crate::emulator) fn set_quota(&self, quota: Quota) {
        self.account().quota = quota;
    }

    /// Counts `usage` besides what is really used.
    pub(in crate::emulator) fn add(&self, usage: Usage) {
        let mut account = self.account();
        account.more = account.more.plus(usage);
    }

    pub(in crate::emulator) fn used(&self) -> Usage {
        let account = self.account();
        let used = account.meters.iter().map(|meter| meter.used());
        used.fold(account.more, Usage::plus)
    }

    /// Which quota is exhausted, if any.
    pub(in crate::emulator) fn exceeded(&self) -> Option<Reason> {
        self.quota().exceeded_by(self.used())
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn awake_time_is_counted_while_it_lasts_and_after() {
        let meter = Meter::default();
        meter.woken(0.25);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(meter.used().active_time_seconds, 100);
        assert_eq!(meter.used().compute_time_seconds, 25);
        meter.suspended();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(meter.used().active_time_seconds, 100);
        meter.wal_at(1000);
        meter.wal_at(1700);
        assert_eq!(meter.used().written_data_bytes, 700);
    }

    #[test]
    fn a_quota_is_exhausted_when_it_is_reached_and_zero_is_none() {
        let quota: Quota =
            serde_json::from_str(r#"{"active_time_seconds": 10, "data_transfer_bytes": 0}"#)
                .unwrap();
        let used = |active_time_seconds| Usage {
            active_time_seconds,
            data_transfer_bytes: 1 << 40,
            ..Usage::default()
        };
        assert_eq!(quota.exceeded_by(used(9)), None);
        assert_eq!(quota.exceeded_by(used(10)), Some(Reason::ActiveTimeQuota));
        let endless = used(u64::MAX).plus(used(1));
        assert_eq!(quota.exceeded_by(endless), Some(Reason::ActiveTimeQuota));
    }
}
