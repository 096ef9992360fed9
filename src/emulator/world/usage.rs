//! The usage of a project, from real counters, and its quota.

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

/// The usage of a project, as Neon's API shows it and quotas limit it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Seconds in which a compute was awake.
    pub active_time_seconds: u64,
    /// The same, multiplied by the compute's smallest number of compute units.
    pub compute_time_seconds: u64,
    /// Bytes written to the write-ahead log (WAL), over all branches.
    pub written_data_bytes: u64,
    /// Bytes sent to clients.
    pub data_transfer_bytes: u64,
}

impl Usage {
    /// Returns the sum, saturating at the largest number.
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

/// The limits of a project, as the API encodes them. Zero is no limit.
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
    // Stored and shown only: Neon's description says that a compute starts even above this limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    logical_size_bytes: Option<u64>,
}

impl Quota {
    /// Returns the first limit that this usage has reached, if any.
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

/// The counters of one compute.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Meter {
    transferred: AtomicU64,
    // Guards the other counters. Held only for short reads and writes.
    read: Mutex<Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    active: Duration,
    /// Compute time in unit-seconds.
    computed: f64,
    /// Instant since which awake time is not counted yet, and the compute units; `None` while it is asleep.
    awake: Option<(Instant, f64)>,
    /// First and last observed position in the write-ahead log.
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

    /// Records a position in the write-ahead log. Counting begins at the first one.
    pub(in crate::emulator) fn wal_at(&self, position: u64) {
        let mut read = self.read();
        let (first, _) = read.wal.unwrap_or((position, position));
        read.wal = Some((first, position));
    }

    /// Records the size of all databases.
    pub(in crate::emulator) fn stores(&self, bytes: u64) {
        self.read().stored = bytes;
    }

    /// Returns the last recorded size of all databases, in bytes.
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

/// The account of a project: its quota, and the usage of all its computes.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Ledger {
    // Held only for short reads and writes.
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    quota: Quota,
    /// Usage that a test has added.
    more: Usage,
    /// Meters of all branches, including deleted ones: their usage still counts.
    meters: Vec<Arc<Meter>>,
}

impl Ledger {
    pub(in crate::emulator) fn new(quota: Quota) -> Arc<Self> {
        let ledger = Self::default();
        ledger.account().quota = quota;
        Arc::new(ledger)
    }

    /// Creates a meter for one more compute.
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

    /// Adds `usage` to what is really used.
    pub(in crate::emulator) fn add(&self, usage: Usage) {
        let mut account = self.account();
        account.more = account.more.plus(usage);
    }

    pub(in crate::emulator) fn used(&self) -> Usage {
        let account = self.account();
        let used = account.meters.iter().map(|meter| meter.used());
        used.fold(account.more, Usage::plus)
    }

    /// Returns the quota that is exhausted, if any.
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
