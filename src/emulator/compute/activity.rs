//! Detects idle computes and suspends them.
//!
//! The rules are those of Neon's own monitor: a new session, time spent in queries, or a backend that is not idle is
//! activity; an open connection alone is not.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, types::Type};
use tokio_util::sync::CancellationToken;

use super::Compute;
use crate::emulator::EmulatorError;

/// Interval between the looks of Neon's monitor.
const LOOK: Duration = Duration::from_millis(500);

/// Longest wait for the result of one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for counters that a caller requests. A frozen compute keeps the counters that were read last.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

const SEEN: &str = "
SELECT (SELECT coalesce(sum(active_time), 0)::float8 + coalesce(sum(sessions), 0)::float8
          FROM pg_stat_database WHERE datname NOT IN ('postgres', 'template0', 'template1')),
       coalesce(bool_or(state <> 'idle'), false),
       extract(epoch FROM clock_timestamp() - max(state_change))::float8,
       (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8
  FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> 'cloud_admin'";

const STORED: &str = "
SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8, sum(pg_database_size(oid))::int8 FROM pg_database";

/// Watches one run of `compute`. Suspends it after its suspend window without activity, or once its project has used up
/// its quota. Ends with that run.
pub(in crate::emulator) async fn suspend_when_idle(compute: Arc<Compute>, run: CancellationToken) {
    loop {
        let watched = tokio::select! {
            () = run.cancelled() => return,
            watched = idle(&compute) => watched,
        };
        match watched {
            Ok(()) => {
                compute.suspend_run(&run).await;
                return;
            }
            // If one Postgres process crashes, Postgres ends all sessions, including this one.
            Err(err) => tracing::debug!(%err, "emulator: cannot watch a compute; trying again"),
        }
        sleep(LOOK).await;
    }
}

/// Waits until the compute should be suspended.
async fn idle(compute: &Compute) -> Result<(), EmulatorError> {
    let admin = compute.postgres.admin("postgres").await?;
    let mut last_active = Instant::now();
    let mut last_total = None;
    loop {
        let seen = timeout(LOOK_TIMEOUT, look(&admin)).await;
        let seen = seen.map_err(|_| EmulatorError::new("a compute does not answer"))?;
        let Seen { total, idle, wal } = seen.map_err(cannot_watch)?;
        compute.meter.wal_at(wal);
        let now = Instant::now();
        if last_total.replace(total) != Some(total) {
            last_active = now;
        } else if let Some(idle) = idle {
            last_active = last_active.max(now.checked_sub(idle).unwrap_or(now));
        }
        let window = compute.terms().suspend_window;
        let idle = window.is_some_and(|window| last_active.elapsed() >= window);
        if idle || compute.refusal().is_some() {
            return Ok(());
        }
        sleep(window.map_or(LOOK, |window| LOOK.min(window / 4))).await;
    }
}

/// Reads the counters that only Postgres knows.
pub(in crate::emulator) async fn read_meter(compute: &Compute) -> Result<(), EmulatorError> {
    let work = async {
        let admin = compute.postgres.admin("postgres").await?;
        let no_types: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
        let rows = admin.query_typed(STORED, no_types).await;
        for row in rows.map_err(cannot_watch)? {
            let (wal, stored): (i64, i64) = (row.get(0), row.get(1));
            compute.meter.wal_at(wal.unsigned_abs());
            compute.meter.stores(stored.unsigned_abs());
        }
        Ok(())
    };
    let late = |_| EmulatorError::new("a compute does not answer");
    timeout(READ_TIMEOUT, work).await.map_err(late)?
}

fn cannot_watch(err: tokio_postgres::Error) -> EmulatorError {
    EmulatorError::new("cannot watch a compute").because(err)
}

/// The result of one look.
struct Seen {
    /// Sum that grows with every activity.
    total: f64,
    /// Time for which all sessions have been idle; `None` if there are none.
    idle: Option<Duration>,
    /// Position in the write-ahead log.
    wal: u64,
}

async fn look(admin: &Client) -> Result<Seen, tokio_postgres::Error> {
    let no_types: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
    let mut seen = Seen {
        total: 0.0,
        idle: None,
        wal: 0,
    };
    for row in admin.query_typed(SEEN, no_types).await? {
        let (busy, idle): (bool, Option<f64>) = (row.try_get(1)?, row.try_get(2)?);
        let idle = idle.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        seen = Seen {
            total: row.try_get(0)?,
            idle: if busy { Some(Duration::ZERO) } else { idle },
            wal: row.try_get::<_, i64>(3)?.unsigned_abs(),
        };
    }
    Ok(seen)
}
